"""Published weights of torchvision and timm, fetched by these libraries, with their own normalisation."""

from __future__ import annotations

from typing import NoReturn

from torch import nn

from compress.errors import CompressError, UsageError, nearest
from compress.models import _timm_package, task_of, torchvision_names
from compress.models.card import Card
from compress.models.defaults import defaults
from compress.models.fingerprint import shell
from compress.models.segmenters import TorchvisionSegmenter, torchvision_segmenters

PREFIXES = ("torchvision/", "timm/", "smp/")


def published(spec: str) -> tuple[nn.Module, Card]:
    """The body and card of `torchvision/NAME` or `timm/NAME` (timm's NAME.TAG too), with their default weights.

    Raises UsageError for an unknown name, CompressError where the weights cannot be had.
    """
    prefix, _, name = spec.partition("/")
    if prefix == "smp":
        return from_smp(spec)
    return from_torchvision(name) if prefix == "torchvision" else from_timm(name)


def from_torchvision(name: str) -> tuple[nn.Module, Card]:
    import torchvision

    known = [*torchvision_names(), *torchvision_segmenters()]
    if name not in known:
        raise UsageError(
            f"torchvision/{name}: no such classifier or segmenter in torchvision{nearest(name, known) or '.'}"
        )
    weights = getattr(torchvision.models.get_model_weights(name), "DEFAULT")  # noqa: B009 - not in the enum's type
    try:
        model = torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:
        where = f"download {weights.url} elsewhere and give the file as the teacher"
        raise unavailable(f"torchvision/{name}", error, where) from error
    if name in torchvision_segmenters():
        model = TorchvisionSegmenter(model)
    names = list(weights.meta["categories"])
    return model, describe(f"torchvision/{name}", len(names), names, str(weights))


def from_timm(name: str) -> tuple[nn.Module, Card]:
    timm = _timm_package()
    if not timm.is_model(name):
        raise UsageError(
            f"timm/{name}: no such model in timm {timm.__version__}{nearest(name, timm.list_models()) or '.'}"
        )
    try:
        model = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        where = "download the weights elsewhere and give the file as the teacher"
        raise unavailable(f"timm/{name}", error, where) from error
    cfg = getattr(model, "pretrained_cfg", {})
    return model, describe(f"timm/{name}", int(getattr(model, "num_classes", 0)), None, str(cfg.get("tag") or ""))


def from_smp(spec: str) -> NoReturn:
    """smp publishes encoders trained on ImageNet, but no trained segmenters under these names."""
    shell(spec, classes=2)  # raises for a name that nobody knows
    raise UsageError(
        f"{spec}: an architecture without trained weights; give your checkpoint of it as the teacher, "
        f"with --teacher-arch {spec}."
    )


def unavailable(spec: str, error: Exception, where: str) -> CompressError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return CompressError(f"{spec}: the published weights could not be had ({reason}); {where}.")


def describe(architecture: str, classes: int, names: list[str] | None, source: str) -> Card:
    if classes < 1:
        raise UsageError(f"{architecture}: its published weights have no classifier, so they cannot teach one.")
    usual = defaults(architecture)
    return Card(
        architecture,
        classes,
        usual.image_size,
        task_of(architecture),
        mean=usual.mean,
        std=usual.std,
        resize=usual.resize,
        class_names=names,
        provenance={"source": source},
    )
