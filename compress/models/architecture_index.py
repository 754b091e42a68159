"""Recognize the architecture of a bare state dict from the names and shapes of its float tensors.

The index contains the built-in families, hashed when it is loaded, and the shipped index of the networks of
torchvision, timm and smp, which `python -m compress.models.make_architecture_index` builds.

Two kinds of axes depend on the use of a network and are left out of its hash: the classifier's width and the input
channels of the first layer. Builds with other counts show which axes these are.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from torch import Tensor

from compress.errors import CompressError
from compress.models.registry import DEFAULT_CLASSES, MODELS, build_on_meta

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

#: heads that torchvision's published weights contain and only training needs
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")
#: hashes stored of each architecture to find its nearest relatives
SKETCH_SIZE = 48
RGB_CHANNELS, GRAYSCALE_CHANNELS = 3, 1
#: class count of the second build
PROBE_CLASSES = 1009
INDEX_FILE = "architectures.json.gz"
#: relatives that an error names
MAX_NEAREST = 5


@dataclass(frozen=True)
class FreeAxes:
    """The free axes of an architecture: (tensor, axis), and for input channels also the width per channel."""

    classes: tuple[tuple[str, int], ...]
    channels: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True)
class Fingerprint:
    """One architecture: hashes of its tensors' names and shapes, its free axes, and a MinHash sketch."""

    name: str
    names_hash: str
    shapes_hash: str
    axes: FreeAxes
    sketch: tuple[int, ...]


@dataclass(frozen=True)
class Match:
    """The architectures that a state dict may belong to, and the sizes of its free axes."""

    candidates: tuple[str, ...]  #: one if the match is certain
    classes: int
    channels: int = 3
    equivalents: tuple[str, ...] = ()  #: other names of the only candidate, which compute the same function
    also_fits: tuple[str, ...] = ()  #: architectures that fit too, but compute another function

    @property
    def is_certain(self) -> bool:
        return len(self.candidates) == 1


@dataclass(frozen=True)
class ArchitectureIndex:
    """All known architectures, and the groups of names that compute the same function."""

    fingerprints: tuple[Fingerprint, ...]
    equivalents: tuple[frozenset[str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()  #: (package, version) that the index was built with


def is_relevant_tensor(key: str, value: Tensor) -> bool:
    """Whether a tensor affects the output: a float that is not in an auxiliary head."""
    return value.is_floating_point() and not key.startswith(AUXILIARY_HEADS)


def tensor_shapes(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Name -> shape of the relevant tensors."""
    return {key: tuple(value.shape) for key, value in state.items() if is_relevant_tensor(key, value)}


def hash_lines(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:14]


def hash_names(shapes: Shapes) -> str:
    return hash_lines(list(shapes))


def hash_shapes(shapes: Shapes, axes: FreeAxes) -> str:
    """Hash of all (name, shape) without the free axes."""
    free: dict[str, set[int]] = {}
    for key, axis, *_ in [*axes.classes, *axes.channels]:
        free.setdefault(key, set()).add(axis)
    return hash_lines([format_tensor(key, shape, free.get(key, set())) for key, shape in shapes.items()])


def format_tensor(key: str, shape: Shape, free: set[int]) -> str:
    return f"{key} {','.join('*' if axis in free else str(size) for axis, size in enumerate(shape))}"


def compute_sketch(shapes: Shapes) -> tuple[int, ...]:
    """The smallest hashes of all (name, shape); two sketches estimate the overlap of two networks (MinHash)."""
    hashes = (
        int.from_bytes(hashlib.sha256(format_tensor(key, shape, set()).encode()).digest()[:4], "big")
        for key, shape in shapes.items()
    )
    return tuple(sorted(set(hashes))[:SKETCH_SIZE])


def estimate_overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Estimated share, in [0, 1], of the union of two networks' tensors that both have."""
    union = sorted({*a, *b})[:SKETCH_SIZE]
    both = set(a) & set(b)
    return sum(value in both for value in union) / max(len(union), 1)


def build_tensor_shapes(name: str, classes: int, channels: int) -> dict[str, Shape]:
    return tensor_shapes(build_on_meta(name, classes=classes, channels=channels).state_dict())


def compute_fingerprint(name: str) -> Fingerprint:
    """The fingerprint of the architecture `name`, from builds that differ in class count and input channels."""
    first = build_tensor_shapes(name, DEFAULT_CLASSES, RGB_CHANNELS)
    wider = build_tensor_shapes(name, PROBE_CLASSES, RGB_CHANNELS)
    classes = tuple(
        (key, axis)
        for key, shape in first.items()
        for axis, size in enumerate(shape)
        if (size, wider[key][axis]) == (DEFAULT_CLASSES, PROBE_CLASSES)
    )
    axes = FreeAxes(classes, find_channel_axes(name, first))
    return Fingerprint(name, hash_names(first), hash_shapes(first, axes), axes, compute_sketch(first))


def find_channel_axes(name: str, first: Shapes) -> tuple[tuple[str, int, int], ...]:
    """The axes that depend on the input channels; none for torchvision, whose factories only build for RGB."""
    if name.startswith("torchvision/"):
        return ()
    try:
        gray = build_tensor_shapes(name, DEFAULT_CLASSES, GRAYSCALE_CHANNELS)
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError, IndexError):
        return ()  # some networks of timm only read RGB
    if gray.keys() != first.keys():
        return ()
    return tuple(
        (key, axis, size // RGB_CHANNELS)
        for key, shape in first.items()
        for axis, size in enumerate(shape)
        if size == RGB_CHANNELS * gray[key][axis]
    )


def recognize_architecture(state: Mapping[str, Tensor]) -> Match:
    """The architecture of `state`, its class count and its input channels.

    Raises CompressError, naming the nearest known architectures, if none has these names and shapes.
    """
    match = find_match(state)
    if match is None:
        raise CompressError(unknown_architecture_message(tensor_shapes(state), load_index()))
    return match


def find_match(state: Mapping[str, Tensor]) -> Match | None:
    """The architecture of `state`; None if no known one has these names and shapes."""
    shapes = tensor_shapes(state)
    index = load_index()
    names = hash_names(shapes)
    sizes: dict[str, tuple[int, int]] = {}
    for print_ in index.fingerprints:
        if print_.names_hash == names and print_.shapes_hash == hash_shapes(shapes, print_.axes):
            free = read_free_sizes(shapes, print_.axes)
            if free is not None:
                sizes[print_.name] = free
    if not sizes:
        return None
    candidates, equivalents = merge_equivalents(list(sizes), index.equivalents)
    classes, channels = sizes[candidates[0]]
    return Match(tuple(candidates), classes, channels, tuple(equivalents))


def read_free_sizes(shapes: Shapes, axes: FreeAxes) -> tuple[int, int] | None:
    """(classes, channels) from the free axes; None if they contradict each other."""
    classes = {shapes[key][axis] for key, axis in axes.classes}
    channels = {shapes[key][axis] / width for key, axis, width in axes.channels} or {3.0}
    if len(classes) != 1 or len(channels) != 1:
        return None
    count = channels.pop()
    return (classes.pop(), int(count)) if count == int(count) else None


def merge_equivalents(names: list[str], groups: tuple[frozenset[str], ...]) -> tuple[list[str], list[str]]:
    """Merge names of the same function: (remaining candidates, other names if only one remains)."""
    merged: list[list[str]] = []
    for name in sorted(names, key=sort_key):
        known = next((m for m in merged if any({m[0], name} <= group for group in groups)), None)
        if known is None:
            merged.append([name])
        else:
            known.append(name)
    return [group[0] for group in merged], merged[0][1:] if len(merged) == 1 else []


def sort_key(name: str) -> tuple[int, int, str]:
    """Built-in names first, then torchvision's, which are installed, then the shortest of timm's."""
    return ("/" in name) + name.startswith(("timm/", "smp/")), len(name), name


def unknown_architecture_message(shapes: Shapes, index: ArchitectureIndex) -> str:
    nearest = nearest_architectures(shapes, index)
    advice = "give the architecture with --teacher-arch (package.module:factory for your own network)"
    if not nearest:
        return f"no built-in network, and none of torchvision, timm or smp, has similar tensors; {advice}."
    names = ", ".join(f"{name} (about {share:.0%} of the tensors)" for name, share in nearest)
    return f"no built-in network, and none of torchvision, timm or smp, has these tensors; nearest: {names}; {advice}."


def nearest_architectures(shapes: Shapes, index: ArchitectureIndex) -> list[tuple[str, float]]:
    """The architectures that share most tensors (name and shape), with the estimated share, best first."""
    own = compute_sketch(shapes)
    shares = [(print_.name, estimate_overlap(own, print_.sketch)) for print_ in index.fingerprints]
    shares.sort(key=lambda pair: (-pair[1], sort_key(pair[0])))
    return [(name, share) for name, share in shares[:MAX_NEAREST] if share > 0]


@functools.cache
def load_index() -> ArchitectureIndex:
    """The shipped index and the built-in families."""
    shipped = read_shipped_index()
    built_in = tuple(compute_fingerprint(name) for name in MODELS)
    return ArchitectureIndex((*built_in, *shipped.fingerprints), shipped.equivalents, shipped.versions)


def read_shipped_index() -> ArchitectureIndex:
    packed = json.loads(gzip.decompress((resources.files("compress.models") / INDEX_FILE).read_bytes()))
    table = [
        FreeAxes(tuple((k, a) for k, a in classes), tuple((k, a, w) for k, a, w in channels))
        for classes, channels in packed["axes"]
    ]
    sketches = np.frombuffer(base64.b64decode(packed["sketches"]), dtype=">u4")
    prints, start = [], 0
    for name, names, shapes, axes, length in packed["architectures"]:
        prints.append(Fingerprint(name, names, shapes, table[axes], tuple(sketches[start : start + length].tolist())))
        start += length
    groups = tuple(map(frozenset, packed["equivalents"]))
    return ArchitectureIndex(tuple(prints), groups, tuple(packed["versions"].items()))


def pack_index(index: ArchitectureIndex) -> bytes:
    """The bytes that `read_shipped_index` reads; equal indexes give equal bytes."""
    table = list(dict.fromkeys(print_.axes for print_ in index.fingerprints))
    position = {axes: number for number, axes in enumerate(table)}
    numbers = [value for print_ in index.fingerprints for value in print_.sketch[:SKETCH_SIZE]]
    packed: dict[str, Any] = {
        "versions": dict(index.versions),
        "axes": [[axes.classes, axes.channels] for axes in table],
        "architectures": [
            [p.name, p.names_hash, p.shapes_hash, position[p.axes], len(p.sketch)] for p in index.fingerprints
        ],
        "equivalents": sorted(sorted(group) for group in index.equivalents),
        "sketches": base64.b64encode(np.array(numbers, dtype=">u4").tobytes()).decode(),
    }
    return gzip.compress(json.dumps(packed, separators=(",", ":")).encode(), 9, mtime=0)
