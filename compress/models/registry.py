"""Build a network by name: built-in families, torchvision, timm, smp, code and modules of the user.

A built-in family is one file in `families/` with a dict `MODELS`: name -> factory(classes, channels).
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from compress.errors import UsageError, suggest_nearest
from compress.models import families
from compress.models.card import ModelCard, base_task
from compress.models.network import Network
from compress.models.outputs import adapt_outputs, find_adapter
from compress.models.segmentation import (
    build_smp_segmenter,
    build_torchvision_segmenter,
    list_torchvision_segmenters,
)
from compress.plugins import import_object

ModelFactory = Callable[[int, int], nn.Module]

#: default class count
DEFAULT_CLASSES = 1000
#: number of dimensions of a network's output -> its task
TASK_BY_OUTPUT_DIMS = {2: "classification", 4: "segmentation"}
#: begins the names of modules that were given from Python
MODULE_PREFIX = "module:"

_REGISTERED: dict[str, nn.Module] = {}


def collect_families() -> dict[str, ModelFactory]:
    """Name -> factory of every built-in network."""
    models: dict[str, ModelFactory] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(families.__path__)):
        models |= importlib.import_module(f"{families.__name__}.{module}").MODELS
    return models


MODELS: dict[str, ModelFactory] = collect_families()


def build_model(architecture: str, *, classes: int, channels: int = 3) -> nn.Module:
    """Build a network with random weights.

    Args:
        architecture: A built-in name, torchvision/NAME, timm/NAME, smp/ARCH:ENCODER, package.module:factory, or what
            `register_module` returned (a copy of that module, with its own weights).
        classes: Number of classes.
        channels: Channels of the input, 3 or 1.

    Returns:
        A network from normalized images [n, channels, h, w] to logits [n, classes], or [n, classes, h, w] for
        segmentation.

    Raises:
        UsageError: There is no such architecture; the message suggests the nearest name.
    """
    if architecture in MODELS:
        return MODELS[architecture](classes, channels)
    prefix, _, name = architecture.partition("/")
    if prefix == "torchvision" and name:
        return build_torchvision_model(name, classes, channels)
    if prefix == "timm" and name:
        return build_timm_model(name, classes, channels)
    if prefix == "smp" and name:
        return build_smp_segmenter(name, classes, channels)
    if architecture.startswith(MODULE_PREFIX):
        return copy_registered_module(architecture, classes)
    if is_user_code(architecture):
        return build_user_model(architecture, classes, channels)
    known = [*MODELS, *(f"torchvision/{n}" for n in [*list_torchvision_classifiers(), *list_torchvision_segmenters()])]
    hint = suggest_nearest(architecture, known)
    raise UsageError(
        f"{architecture}: no such model{hint} See `compress models`; "
        "torchvision/…, timm/…, smp/… and module:factory work too."
    )


def build_network(card: ModelCard) -> Network:
    """Build the network that `card` describes, with random weights."""
    return Network(build_model(card.architecture, classes=card.classes, channels=card.channels), card)


def build_model_like(architecture: str, *, like: ModelCard) -> tuple[Network, ModelCard]:
    """Build a network with random weights for the task, classes, image size and normalization of `like`.

    Raises:
        UsageError: The architecture is for another task, or a registered module has another class count.
    """
    task = infer_task(architecture)
    if task != base_task(like.task):
        raise UsageError(
            f"{architecture}: a network for {task}, expected one for {like.task}, as the teacher (or the data) is; "
            "see `compress models`."
        )
    card = replace(like, architecture=architecture, metrics={}, provenance={}, sha256=None)
    network = build_network(card)
    require_logits(network, card)
    if architecture.startswith(MODULE_PREFIX):
        with torch.no_grad():
            classes = network.eval()(card.example_input()).shape[1]
        if classes != card.classes:
            raise UsageError(f"{architecture}: found {classes} classes, expected {card.classes}; adapt the module.")
        network.train()
    return network, card


def require_logits(network: Network, card: ModelCard) -> None:
    """Refuse a student of the user that ends in a softmax or sigmoid: the losses expect logits."""
    adapter = find_adapter(network)
    if adapter is None:
        return
    with torch.no_grad():
        outputs = adapter.observe(network.eval(), card.example_input())
    network.train()
    ends = [one.operator.kind for one in outputs if one.operator is not None]
    if ends:
        raise UsageError(
            f"{card.architecture}: ends in a {ends[0]}, expected logits; return the input of the {ends[0]}."
        )


def register_module(module: nn.Module) -> str:
    """Register a module under a text that every model setting of this process accepts.

    Args:
        module: A network from images [n, 3 or 1, h, w] to logits. It is copied, so it never changes.

    Returns:
        "module:" and a hash of its structure and tensors: the same content resumes a run, another one is refused.

    Raises:
        UsageError: The module cannot be copied.

    Example:
        >>> register_module(torch.nn.Flatten())[:7]
        'module:'
    """
    spec = f"{MODULE_PREFIX}{hash_module(module)[:16]}"
    if spec not in _REGISTERED:
        try:
            _REGISTERED[spec] = copy.deepcopy(module).cpu()
        except (RuntimeError, TypeError) as error:
            raise UsageError(
                f"{type(module).__name__}: cannot be copied ({error}); give package.module:factory."
            ) from error
    return spec


def hash_module(module: nn.Module) -> str:
    """SHA-256 of the structure, the settings (numbers and texts) and all tensors of a module."""
    digest = hashlib.sha256(f"{type(module).__qualname__} {module!r}".encode())
    for name, part in module.named_modules():
        settings = {key: value for key, value in vars(part).items() if isinstance(value, bool | int | float | str)}
        settings.pop("training", None)
        digest.update(f"{name} {sorted(settings.items())}".encode())
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def copy_registered_module(spec: str, classes: int) -> nn.Module:
    """Copy the module that was registered as `spec`. Raises UsageError in another process."""
    if spec not in _REGISTERED:
        raise UsageError(
            f"{spec}: a module that was given from Python and is not in this process; call the API again with the "
            "same module, or name it as package.module:factory."
        )
    module = copy.deepcopy(_REGISTERED[spec])
    adapt_outputs(module, type(module).__name__, classes)
    return module


def is_user_code(architecture: str) -> bool:
    """Whether a name means code of the user: `package.module:factory`, or a registered module."""
    return ":" in architecture and not architecture.startswith("smp/")


def infer_task(architecture: str) -> str:
    """The task of a named architecture: "classification" or "segmentation". Raises UsageError for unknown names."""
    prefix, _, name = architecture.partition("/")
    if prefix == "smp":
        return "segmentation"
    if prefix in ("torchvision", "timm"):
        is_segmenter = prefix == "torchvision" and name in list_torchvision_segmenters()
        return "segmentation" if is_segmenter else "classification"
    return infer_built_in_task(architecture) if architecture in MODELS else infer_user_task(architecture)


@functools.cache
def infer_built_in_task(name: str) -> str:
    with torch.device("meta"), torch.no_grad():
        return TASK_BY_OUTPUT_DIMS[build_model(name, classes=2).eval()(torch.empty(1, 3, 64, 64)).dim()]


def infer_user_task(architecture: str) -> str:
    """From one forward pass: on the meta device, or on the CPU if the user's code does not run there."""
    model, images = build_model(architecture, classes=2).eval(), torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        try:
            with torch.device("meta"):
                output = copy.deepcopy(model).to("meta")(images.to("meta"))
        except (RuntimeError, TypeError, ValueError):
            try:
                output = model(images)
            except (RuntimeError, TypeError, ValueError) as error:
                raise UsageError(f"{architecture}: fails on images of 64x64 ({error}).") from error
    if output.dim() not in TASK_BY_OUTPUT_DIMS:
        raise UsageError(
            f"{architecture}: found output {list(output.shape)} for images [1, 3, 64, 64], expected [1, classes] or "
            "[1, classes, 64, 64]."
        )
    return TASK_BY_OUTPUT_DIMS[output.dim()]


def build_on_meta(name: str, *, classes: int, channels: int = 3) -> nn.Module:
    """Build the network `name` on the meta device: shapes only, no memory for weights."""
    if is_user_code(name):
        return build_model(name, classes=classes, channels=channels)  # user code may not support the meta device
    try:
        with torch.device("meta"):
            return build_model(name, classes=classes, channels=channels)
    except RuntimeError:  # torchvision's RegNets and smp's transformers read values of tensors
        with MetaFactories():
            return build_model(name, classes=classes, channels=channels)


class MetaFactories(TorchFunctionMode):
    """Put weights on the meta device and compute all else, for networks that derive widths from tensors."""

    FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in self.FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def list_torchvision_classifiers() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def list_timm_models() -> list[str]:
    return import_timm().list_models()


def build_torchvision_model(name: str, classes: int, channels: int) -> nn.Module:
    import torchvision

    known = [*list_torchvision_classifiers(), *list_torchvision_segmenters()]
    if name not in known:
        raise UsageError(f"torchvision/{name}: no such classifier or segmenter{suggest_nearest(name, known)}")
    if name in list_torchvision_segmenters():
        model = build_torchvision_segmenter(name, classes)
        return model if channels == 3 else nn.Sequential(RepeatGrayscale(), model)
    extra = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    if extra:
        extra["init_weights"] = True
    model = torchvision.models.get_model(name, weights=None, num_classes=classes, **extra)
    return model if channels == 3 else nn.Sequential(RepeatGrayscale(), model)


def import_timm():
    try:
        import timm
    except ImportError as error:
        raise UsageError("timm is not installed; run `pip install 'compress-distill[timm]'`.") from error
    return timm


def build_timm_model(name: str, classes: int, channels: int) -> nn.Module:
    timm = import_timm()
    if not timm.is_model(name):
        hint = suggest_nearest(name, timm.list_models())
        raise UsageError(f"timm/{name}: no such model in timm {timm.__version__}{hint}")
    return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)


def build_user_model(path: str, classes: int, channels: int) -> nn.Module:
    """Call the user's `package.module:factory` with the class and channel counts, if it accepts them."""
    factory = import_object(path, "package.module:factory")
    counts = {"classes": classes, "num_classes": classes}
    counts |= {"channels": channels, "in_channels": channels, "in_chans": channels}
    parameters = inspect.signature(factory).parameters
    model = factory(**{name: count for name, count in counts.items() if name in parameters})
    if not isinstance(model, nn.Module):
        raise UsageError(f"{path}: found {type(model).__name__}, expected a factory that returns a torch.nn.Module.")
    adapt_outputs(model, path, classes)
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), channels)
    return nn.Sequential(RepeatGrayscale(), model) if (channels, first) == (1, 3) else model


class RepeatGrayscale(nn.Module):
    """Repeat one grayscale channel three times, for networks that only accept RGB."""

    def forward(self, x):
        return x.expand(-1, 3, -1, -1)
