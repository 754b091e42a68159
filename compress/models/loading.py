"""Load a model from a name, directory, run, checkpoint, exported program or module."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import resources
from pathlib import Path

from torch import nn

from compress.errors import CompressError, UsageError, suggest_nearest
from compress.files import require_regular_file, sha256
from compress.models.architecture_index import find_match
from compress.models.card import ASSUMED, IMAGENET_MEAN, IMAGENET_STD, ModelCard, check_card, with_sources
from compress.models.checkpoints import PART_MARK, read_checkpoint, split_part
from compress.models.exported_programs import (
    EXPORTED,
    infer_card,
    infer_output,
    load_exported_program,
    load_torchscript,
)
from compress.models.file_safety import detect_file_kind
from compress.models.hugging_face import (
    find_folder,
    is_hugging_face_config,
    is_timm_config,
    load_hugging_face,
    load_timm_folder,
    read_config,
)
from compress.models.network import Network
from compress.models.onnx_teacher import OnnxTeacher, load_onnx_teacher
from compress.models.overrides import ModelOverrides, apply_overrides
from compress.models.pretrained import PRETRAINED_PREFIXES, default_preprocessing, load_pretrained
from compress.models.probe import ProgramLoader, load_with_limits
from compress.models.registry import DEFAULT_CLASSES, MODULE_PREFIX, build_model, is_user_code, register_module
from compress.models.serialization import is_model_directory, load_model_directory
from compress.models.state_dicts import INPUT_FIELDS, build_from_checkpoint, require_finite

#: where a run directory contains its models; the first that exists is loaded
RUN_SUBDIRS = ("best", "student", "last")
#: kind of file -> the function that loads it, and runs it to infer its card
PROGRAM_LOADERS: dict[str, ProgramLoader] = {
    "onnx": load_onnx_teacher, "program": load_exported_program, "script": load_torchscript,
}  # fmt: skip


def load_model(spec: str | Path | nn.Module, overrides: ModelOverrides | None = None) -> tuple[Network, ModelCard]:
    """Load a model in eval mode on the CPU.

    Args:
        spec: `embedded/NAME`, a model directory, a run directory, a .pt/.pth/.safetensors file (`FILE#NAME` for one of
            several networks in it), a `torch.export` program (.pt2), a TorchScript file, an .onnx file (outputs only,
            no gradients), `torchvision/NAME` or `timm/NAME` (published weights), `package.module:factory`, or a module.
            A module is copied. If its
            tensors are those of a known architecture, its image size and normalization are assumed to be the usual
            ones; else it needs `image_size`, and images in [0, 1] go in unchanged.
        overrides: Facts that the model does not contain, or that are wrong in it.

    Returns:
        A network from RGB images [n, 3, h, w] in [0, 1] to logits [n, classes], or [n, classes, h, w] for segmentation,
        and its card. `card.provenance["field_sources"]` tells where its fields come from.

    Raises:
        UsageError: The request cannot be right: no such file or name, or another class count.
        CompressError: The file is damaged, unsafe or does not fit, or a tensor has NaN or infinity.

    Example:
        >>> network, card = load_model("embedded/fashion_wrn16_2")
        >>> network(card.example_input()).shape
        torch.Size([1, 10])
    """
    network, card = load_unchecked(spec, overrides or ModelOverrides())
    require_finite(network.body, describe_spec(spec))
    return network, card


def describe_spec(spec: str | Path | nn.Module) -> str:
    return type(spec).__name__ if isinstance(spec, nn.Module) else str(spec)


def load_unchecked(spec: str | Path | nn.Module, overrides: ModelOverrides) -> tuple[Network, ModelCard]:
    """Load a model as `load_model` does, even if its tensors have NaN or infinity."""
    spec = register_module(spec) if isinstance(spec, nn.Module) else str(spec)
    if spec.startswith(PRETRAINED_PREFIXES):
        body, card = load_pretrained(spec)
    elif spec.startswith(MODULE_PREFIX):
        body, card = load_registered_module(spec, overrides)
    elif is_user_code(spec) and not os.path.exists(spec):
        body, card = load_user_model(spec, overrides)
    else:
        path = resolve_model_path(spec)
        body, card = load_directory(path, overrides) if path.is_dir() else load_file(path, overrides)
    card = apply_overrides(card, overrides, spec)
    check_card(card, spec)
    network = Network(body, card_for_wrapper(body, card)).eval()
    network.card = card
    return network, card


def card_for_wrapper(body: nn.Module, card: ModelCard) -> ModelCard:
    """The card by which images are normalized before `body`. ONNX files of ours normalize them inside."""
    if isinstance(body, OnnxTeacher) and body.normalizes_input:
        return replace(card, mean=(0.0,) * 3, std=(1.0,) * 3, grayscale=False)
    return card


def resolve_model_path(spec: str) -> Path:
    """The file or directory that `spec` names, or `FILE#NAME`. Raises UsageError if it does not exist."""
    if spec.startswith("embedded/"):
        name, known = spec.removeprefix("embedded/"), list_embedded_models()
        if name not in known:
            raise UsageError(
                f"{spec}: no such embedded model{suggest_nearest(name, known)}; known: {', '.join(known) or 'none'}."
            )
        return embedded_dir() / name
    chosen = Path(os.path.expanduser(spec))
    path, part = split_part(chosen)
    if not os.path.lexists(path):  # unlike the methods of Path, no error for a name that is too long
        raise UsageError(f"{spec}: no such file or directory; `compress models` lists the models with a name.")
    if os.path.isdir(path):
        return path
    require_regular_file(path)
    return path if part is None else chosen


def embedded_dir() -> Path:
    return Path(str(resources.files("compress"))) / "embedded"


def list_embedded_models() -> list[str]:
    """Names of the models that the package contains, without `embedded/`."""
    return sorted(path.name for path in embedded_dir().iterdir() if path.is_dir() and is_model_directory(path))


def load_directory(directory: Path, overrides: ModelOverrides) -> tuple[nn.Module, ModelCard]:
    """Load a model directory, the best model of a run directory, or a folder of transformers or timm."""
    config = read_config(directory)
    if is_hugging_face_config(config):
        return load_with_limits(load_hugging_face, directory, overrides)
    if is_timm_config(config):
        return load_timm_folder(directory, overrides)
    candidates = (directory, *(directory / name for name in RUN_SUBDIRS))
    existing = next((path for path in candidates if is_model_directory(path)), None)
    if existing is None:
        raise UsageError(
            f"{directory}: found no model, expected config.json or a run with {', '.join(RUN_SUBDIRS)} in it."
        )
    network, card = load_model_directory(existing, user_code=overrides.architecture)
    return network.body, card


def load_user_model(spec: str, overrides: ModelOverrides) -> tuple[nn.Module, ModelCard]:
    """Build a network, weights included, with the user's `package.module:factory`."""
    model = build_model(spec, classes=overrides.classes or DEFAULT_CLASSES).eval()
    return model, replace(infer_card(model, spec, overrides), architecture=spec)


def load_registered_module(spec: str, overrides: ModelOverrides) -> tuple[nn.Module, ModelCard]:
    """Copy a module of the user and infer its card; a network that `load_model` returned has one."""
    model = build_model(spec, classes=DEFAULT_CLASSES).eval()
    if isinstance(model, Network):
        return model.body, model.card
    return model, replace(infer_module_card(model, spec, overrides), sha256=spec.removeprefix(MODULE_PREFIX))


def infer_module_card(model: nn.Module, spec: str, overrides: ModelOverrides) -> ModelCard:
    """The card of a module of the user; the usual input is assumed if its tensors are those of a known architecture."""
    match = find_match(model.state_dict())
    if match is None:
        return replace(infer_card(model, spec, overrides), architecture=spec)
    usual = default_preprocessing(match.candidates[0], grayscale=match.channels == 1)
    size = overrides.image_size or usual.image_size
    card = infer_card(model, spec, replace(overrides, image_size=size, grayscale=match.channels == 1))
    mean, std = usual.mean, usual.std
    if getattr(model, "transform_input", False):  # torchvision's Inception and GoogLeNet, which change it themselves
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return replace(
        card, architecture=spec, mean=mean, std=std, resize=usual.resize,
        provenance=with_sources(card.provenance, ASSUMED, *INPUT_FIELDS),
    )  # fmt: skip


def load_file(path: Path, overrides: ModelOverrides) -> tuple[nn.Module, ModelCard]:
    """Load a file: an exported program, weights of some architecture, or a module from a trusted pickle.

    `path` may be `FILE#NAME`, one of several networks in a file of weights.
    """
    chosen, (path, part) = path, split_part(path)
    folder = find_folder(path) if part is None else None
    if folder is not None:
        return load_directory(folder, overrides)
    kind = detect_file_kind(path)
    if kind != "weights" and part is not None:
        raise UsageError(f"{chosen}: only files of weights have several networks; leave out {PART_MARK}{part}.")
    if kind == "script" and not overrides.trust_pickle:
        raise CompressError(
            f"{path}: TorchScript can write any file when it runs; export it with torch.export (.pt2), or load it "
            "with --trust-pickle if you trust it."
        )
    if kind != "weights":
        body, card = load_with_limits(PROGRAM_LOADERS[kind], path, overrides)
        return body, replace(card, sha256=sha256(path))
    weights = read_checkpoint(chosen, trust_pickle=overrides.trust_pickle, ema=overrides.ema)
    if weights.module is None or overrides.architecture is not None:
        model, card = build_from_checkpoint(path, weights, overrides)
        is_own = is_user_code(card.architecture)
        return model, infer_output(model.eval(), card, str(path), overrides) if is_own else card
    names = weights.class_names
    card = infer_module_card(weights.module, str(path), overrides)
    names = names if len(names or []) == card.classes else None
    return weights.module, replace(card, architecture=EXPORTED, sha256=sha256(path), class_names=names)
