"""Which architecture a bare state dict belongs to, from its names and shapes alone.

Looked up among the built-in families (hashed live, so a new family needs no rebuild) and the shipped index of
torchvision's, timm's and smp's networks (`python -m compress.models.make_architecture_index` builds it).
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

#: heads that torchvision's published weights contain and only training needs
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

#: hashes kept of each architecture for the search of its nearest relatives
SKETCH_SIZE = 48
RGB_CHANNELS, GRAYSCALE_CHANNELS = 3, 1
PROBE_CLASSES = 1009


@dataclass(frozen=True)
class FreeAxes:
    """The free axes of an architecture: (tensor's name, axis), and for channels also the width of one channel."""

    classes: tuple[tuple[str, int], ...]
    channels: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True)
class Fingerprint:
    """One architecture: hash of its names, hash of its normalised shapes, its free axes, a sketch of its tensors."""

    name: str
    names_hash: str
    shapes_hash: str
    axes: FreeAxes
    sketch: tuple[int, ...]


def is_relevant_tensor(key: str, value: Tensor) -> bool:
    """Whether a tensor decides what the network answers: a float that is not in a training-time side head."""
    return value.is_floating_point() and not key.startswith(AUXILIARY_HEADS)


def tensor_shapes(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {key: tuple(value.shape) for key, value in state.items() if is_relevant_tensor(key, value)}


def hash_lines(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:14]


def hash_names(shapes: Shapes) -> str:
    return hash_lines(list(shapes))


def hash_shapes(shapes: Shapes, axes: FreeAxes) -> str:
    """Hash of all (name, shape) with the free axes left out."""
    free: dict[str, set[int]] = {}
    for key, axis, *_ in [*axes.classes, *axes.channels]:
        free.setdefault(key, set()).add(axis)
    return hash_lines([format_tensor(key, shape, free.get(key, set())) for key, shape in shapes.items()])


def format_tensor(key: str, shape: Shape, free: set[int]) -> str:
    return f"{key} {','.join('*' if axis in free else str(size) for axis, size in enumerate(shape))}"


def compute_sketch(shapes: Shapes) -> tuple[int, ...]:
    """The smallest hashes of all (name, shape): from two of them the overlap of two networks can be estimated."""
    hashes = (
        int.from_bytes(hashlib.sha256(format_tensor(key, shape, set()).encode()).digest()[:4], "big")
        for key, shape in shapes.items()
    )
    return tuple(sorted(set(hashes))[:SKETCH_SIZE])


def estimate_overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Estimated share of the union of two networks' tensors that both have, in [0, 1]."""
    union = sorted({*a, *b})[:SKETCH_SIZE]
    both = set(a) & set(b)
    return sum(value in both for value in union) / max(len(union), 1)


def build_tensor_shapes(name: str, classes: int, channels: int) -> dict[str, Shape]:
    return tensor_shapes(build_on_meta(name, classes=classes, channels=channels).state_dict())


def compute_fingerprint(name: str) -> Fingerprint:
    """The fingerprint of the architecture `name`, from builds that differ in class count and in input channels."""
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
    """Where the input's channels show; nothing for torchvision, whose factories only build for colour."""
    if name.startswith("torchvision/"):
        return ()
    try:
        grey = build_tensor_shapes(name, DEFAULT_CLASSES, GRAYSCALE_CHANNELS)
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError, IndexError):
        return ()  # some of timm's networks only know colour
    if grey.keys() != first.keys():
        return ()
    return tuple(
        (key, axis, size // RGB_CHANNELS)
        for key, shape in first.items()
        for axis, size in enumerate(shape)
        if size == RGB_CHANNELS * grey[key][axis]
    )


INDEX_FILE = "fingerprints.json.gz"
MAX_NEAREST = 5


@dataclass(frozen=True)
class Match:
    """The architectures that a state dict may belong to (one: certain), and what its free axes say."""

    candidates: tuple[str, ...]
    classes: int
    channels: int = 3
    equivalents: tuple[str, ...] = ()  #: other names of the one candidate: they compute the very same function
    also_fits: tuple[str, ...] = ()  #: architectures that fit as well, but compute another function

    @property
    def is_certain(self) -> bool:
        return len(self.candidates) == 1


@dataclass(frozen=True)
class ArchitectureIndex:
    """Every known architecture, and the groups among them that differ in name only."""

    fingerprints: tuple[Fingerprint, ...]
    equivalents: tuple[frozenset[str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()


def recognize_architecture(state: Mapping[str, Tensor]) -> Match:
    """The architecture of `state`, its class count and its input channels.

    Raises CompressError, naming the nearest known architectures, where none has these names and shapes.
    """
    shapes = tensor_shapes(state)
    known = load_index()
    names = hash_names(shapes)
    found: dict[str, tuple[int, int]] = {}
    for print_ in known.fingerprints:
        if print_.names_hash == names and print_.shapes_hash == hash_shapes(shapes, print_.axes):
            free = read_free_sizes(shapes, print_.axes)
            if free is not None:
                found[print_.name] = free
    if not found:
        raise CompressError(unknown_architecture_message(shapes, known))
    candidates, same = merge_equivalents(list(found), known.equivalents)
    classes, channels = found[candidates[0]]
    return Match(tuple(candidates), classes, channels, tuple(same))


def read_free_sizes(shapes: Shapes, axes: FreeAxes) -> tuple[int, int] | None:
    """(classes, channels) as the free axes say, or None where they contradict each other."""
    classes = {shapes[key][axis] for key, axis in axes.classes}
    channels = {shapes[key][axis] / width for key, axis, width in axes.channels} or {3.0}
    if len(classes) != 1 or len(channels) != 1:
        return None
    wide = channels.pop()
    return (classes.pop(), int(wide)) if wide == int(wide) else None


def merge_equivalents(names: list[str], twins: tuple[frozenset[str], ...]) -> tuple[list[str], list[str]]:
    """Take names of one and the same function together: (what remains to choose from, the sole one's other names)."""
    rank = {name: place for place, name in enumerate(sorted(names, key=sort_key))}
    groups: list[list[str]] = []
    for name in rank:
        home = next((g for g in groups if any({g[0], name} <= group for group in twins)), None)
        if home is None:
            groups.append([name])
        else:
            home.append(name)
    return [group[0] for group in groups], groups[0][1:] if len(groups) == 1 else []


def sort_key(name: str) -> tuple[int, int, str]:
    """Built-ins first, then torchvision (nothing more to install), then the plainest of timm's names."""
    return ("/" in name) + name.startswith(("timm/", "smp/")), len(name), name


def unknown_architecture_message(shapes: Shapes, known: ArchitectureIndex) -> str:
    near = nearest_architectures(shapes, known)
    advice = "give the architecture with --teacher-arch (package.module:factory for a network of your own)"
    if not near:
        return f"no network of ours, torchvision's, timm's or smp's has tensors like these; {advice}."
    listed = ", ".join(f"{name} (about {share:.0%} of the tensors)" for name, share in near)
    return f"no network of ours, torchvision's, timm's or smp's has exactly these tensors; nearest: {listed}; {advice}."


def nearest_architectures(shapes: Shapes, known: ArchitectureIndex) -> list[tuple[str, float]]:
    """The known architectures that share most tensors (name and shape), with the estimated share, best first."""
    own = compute_sketch(shapes)
    shares = [(print_.name, estimate_overlap(own, print_.sketch)) for print_ in known.fingerprints]
    shares.sort(key=lambda pair: (-pair[1], sort_key(pair[0])))
    return [(name, share) for name, share in shares[:MAX_NEAREST] if share > 0]


@functools.cache
def load_index() -> ArchitectureIndex:
    shipped = read_shipped_index()
    live = tuple(compute_fingerprint(name) for name in MODELS)
    return ArchitectureIndex((*live, *shipped.fingerprints), shipped.equivalents, shipped.versions)


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
    return ArchitectureIndex(tuple(prints), tuple(map(frozenset, packed["twins"])), tuple(packed["versions"].items()))


def pack_index(known: ArchitectureIndex) -> bytes:
    """The index as the bytes that `read_index` reads; the same index gives the same bytes."""
    table = list(dict.fromkeys(print_.axes for print_ in known.fingerprints))
    place = {axes: number for number, axes in enumerate(table)}
    numbers = [value for print_ in known.fingerprints for value in print_.sketch[:SKETCH_SIZE]]
    packed: dict[str, Any] = {
        "versions": dict(known.versions),
        "axes": [[axes.classes, axes.channels] for axes in table],
        "architectures": [
            [p.name, p.names_hash, p.shapes_hash, place[p.axes], len(p.sketch)] for p in known.fingerprints
        ],
        "twins": sorted(sorted(group) for group in known.equivalents),
        "sketches": base64.b64encode(np.array(numbers, dtype=">u4").tobytes()).decode(),
    }
    return gzip.compress(json.dumps(packed, separators=(",", ":")).encode(), 9, mtime=0)


# # MERGED DOC """What identifies an architecture in a bare state dict: the names and shapes of its float tensors.
#
# Two axes say nothing about the architecture and are left out: the classifier's width, and the channels that the first
# layer reads. Which axes these are is found by building every architecture twice (see `make_fingerprints`).
# """
#
