"""What identifies an architecture in a bare state dict: the names and shapes of its float tensors.

Two axes say nothing about the architecture and are left out: the classifier's width, and the channels that the first
layer reads. Which axes these are is found by building every architecture twice (see `make_fingerprints`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.models import body, is_own
from compress.models.fitting import matters

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

#: hashes kept of each architecture for the search of its nearest relatives
SKETCH = 48
COLOUR, GREY = 3, 1
CLASSES, OTHER_CLASSES = 1000, 1009


@dataclass(frozen=True)
class Axes:
    """The free axes of an architecture: (tensor's name, axis), and for channels also the width of one channel."""

    classes: tuple[tuple[str, int], ...]
    channels: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True)
class Fingerprint:
    """One architecture: hash of its names, hash of its normalised shapes, its free axes, a sketch of its tensors."""

    name: str
    names: str
    shapes: str
    axes: Axes
    sketch: tuple[int, ...]


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {key: tuple(value.shape) for key, value in state.items() if matters(key, value)}


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:14]


def names_hash(shapes: Shapes) -> str:
    return digest(list(shapes))


def shapes_hash(shapes: Shapes, axes: Axes) -> str:
    """Hash of all (name, shape) with the free axes left out."""
    free: dict[str, set[int]] = {}
    for key, axis, *_ in [*axes.classes, *axes.channels]:
        free.setdefault(key, set()).add(axis)
    return digest([line(key, shape, free.get(key, set())) for key, shape in shapes.items()])


def line(key: str, shape: Shape, free: set[int]) -> str:
    return f"{key} {','.join('*' if axis in free else str(size) for axis, size in enumerate(shape))}"


def sketch(shapes: Shapes) -> tuple[int, ...]:
    """The smallest hashes of all (name, shape): from two of them the overlap of two networks can be estimated."""
    hashes = (
        int.from_bytes(hashlib.sha256(line(key, shape, set()).encode()).digest()[:4], "big")
        for key, shape in shapes.items()
    )
    return tuple(sorted(set(hashes))[:SKETCH])


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Estimated share of the union of two networks' tensors that both have, in [0, 1]."""
    union = sorted({*a, *b})[:SKETCH]
    both = set(a) & set(b)
    return sum(value in both for value in union) / max(len(union), 1)


class Shell(TorchFunctionMode):
    """Weights on the meta device, all else computed: for networks that work out their widths with tensors."""

    FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in self.FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def shell(name: str, *, classes: int, channels: int = COLOUR) -> nn.Module:
    """The network `name` without its weights: built on the meta device, nothing of size is allocated."""
    if is_own(name):
        return body(name, classes=classes, channels=channels)  # what the user's own factory does is not for us to bend
    try:
        with torch.device("meta"):
            return body(name, classes=classes, channels=channels)
    except RuntimeError:  # torchvision's RegNets and smp's transformers ask tensors for their values
        with Shell():
            return body(name, classes=classes, channels=channels)


def build_shapes(name: str, classes: int, channels: int) -> dict[str, Shape]:
    return shapes_of(shell(name, classes=classes, channels=channels).state_dict())


def fingerprint(name: str) -> Fingerprint:
    """The fingerprint of the architecture `name`, from builds that differ in class count and in input channels."""
    first = build_shapes(name, CLASSES, COLOUR)
    wider = build_shapes(name, OTHER_CLASSES, COLOUR)
    classes = tuple(
        (key, axis)
        for key, shape in first.items()
        for axis, size in enumerate(shape)
        if (size, wider[key][axis]) == (CLASSES, OTHER_CLASSES)
    )
    axes = Axes(classes, channel_axes(name, first))
    return Fingerprint(name, names_hash(first), shapes_hash(first, axes), axes, sketch(first))


def channel_axes(name: str, first: Shapes) -> tuple[tuple[str, int, int], ...]:
    """Where the input's channels show; nothing for torchvision, whose factories only build for colour."""
    if name.startswith("torchvision/"):
        return ()
    try:
        grey = build_shapes(name, CLASSES, GREY)
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError, IndexError):
        return ()  # some of timm's networks only know colour
    if grey.keys() != first.keys():
        return ()
    return tuple(
        (key, axis, size // COLOUR)
        for key, shape in first.items()
        for axis, size in enumerate(shape)
        if size == COLOUR * grey[key][axis]
    )
