"""Which architecture a bare state dict belongs to, from its names and shapes alone.

Looked up among the built-in families (hashed live, so a new family needs no rebuild) and the shipped index of
torchvision's, timm's and smp's networks (`python -m compress.models.make_fingerprints` builds it).
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from torch import Tensor

from compress.errors import CompressError
from compress.models import MODELS
from compress.models.fingerprint import (
    SKETCH,
    Axes,
    Fingerprint,
    Shapes,
    fingerprint,
    names_hash,
    overlap,
    shapes_hash,
    shapes_of,
    sketch,
)

INDEX = "fingerprints.json.gz"
NEAREST = 5


@dataclass(frozen=True)
class Match:
    """The architectures that a state dict may belong to (one: certain), and what its free axes say."""

    candidates: tuple[str, ...]
    classes: int
    channels: int = 3
    same: tuple[str, ...] = ()  #: other names of the one candidate: they compute the very same function
    also_fits: tuple[str, ...] = ()  #: architectures that fit as well, but compute another function

    @property
    def certain(self) -> bool:
        return len(self.candidates) == 1


@dataclass(frozen=True)
class Index:
    """Every known architecture, and the groups among them that differ in name only."""

    fingerprints: tuple[Fingerprint, ...]
    twins: tuple[frozenset[str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()


def recognise(state: Mapping[str, Tensor]) -> Match:
    """The architecture of `state`, its class count and its input channels.

    Raises CompressError, naming the nearest known architectures, where none has these names and shapes.
    """
    shapes = shapes_of(state)
    known = index()
    names = names_hash(shapes)
    found: dict[str, tuple[int, int]] = {}
    for print_ in known.fingerprints:
        if print_.names == names and print_.shapes == shapes_hash(shapes, print_.axes):
            free = free_sizes(shapes, print_.axes)
            if free is not None:
                found[print_.name] = free
    if not found:
        raise CompressError(stranger(shapes, known))
    candidates, same = merge(list(found), known.twins)
    classes, channels = found[candidates[0]]
    return Match(tuple(candidates), classes, channels, tuple(same))


def free_sizes(shapes: Shapes, axes: Axes) -> tuple[int, int] | None:
    """(classes, channels) as the free axes say, or None where they contradict each other."""
    classes = {shapes[key][axis] for key, axis in axes.classes}
    channels = {shapes[key][axis] / width for key, axis, width in axes.channels} or {3.0}
    if len(classes) != 1 or len(channels) != 1:
        return None
    wide = channels.pop()
    return (classes.pop(), int(wide)) if wide == int(wide) else None


def merge(names: list[str], twins: tuple[frozenset[str], ...]) -> tuple[list[str], list[str]]:
    """Take names of one and the same function together: (what remains to choose from, the sole one's other names)."""
    rank = {name: place for place, name in enumerate(sorted(names, key=preference))}
    groups: list[list[str]] = []
    for name in rank:
        home = next((g for g in groups if any({g[0], name} <= group for group in twins)), None)
        if home is None:
            groups.append([name])
        else:
            home.append(name)
    return [group[0] for group in groups], groups[0][1:] if len(groups) == 1 else []


def preference(name: str) -> tuple[int, int, str]:
    """Built-ins first, then torchvision (nothing more to install), then the plainest of timm's names."""
    return ("/" in name) + name.startswith(("timm/", "smp/")), len(name), name


def stranger(shapes: Shapes, known: Index) -> str:
    near = nearest(shapes, known)
    advice = "give the architecture with --teacher-arch (package.module:factory for a network of your own)"
    if not near:
        return f"no network of ours, torchvision's, timm's or smp's has tensors like these; {advice}."
    listed = ", ".join(f"{name} (about {share:.0%} of the tensors)" for name, share in near)
    return f"no network of ours, torchvision's, timm's or smp's has exactly these tensors; nearest: {listed}; {advice}."


def nearest(shapes: Shapes, known: Index) -> list[tuple[str, float]]:
    """The known architectures that share most tensors (name and shape), with the estimated share, best first."""
    own = sketch(shapes)
    shares = [(print_.name, overlap(own, print_.sketch)) for print_ in known.fingerprints]
    shares.sort(key=lambda pair: (-pair[1], preference(pair[0])))
    return [(name, share) for name, share in shares[:NEAREST] if share > 0]


@functools.cache
def index() -> Index:
    shipped = read_index()
    live = tuple(fingerprint(name) for name in MODELS)
    return Index((*live, *shipped.fingerprints), shipped.twins, shipped.versions)


def read_index() -> Index:
    packed = json.loads(gzip.decompress((resources.files("compress.models") / INDEX).read_bytes()))
    table = [
        Axes(tuple((k, a) for k, a in classes), tuple((k, a, w) for k, a, w in channels))
        for classes, channels in packed["axes"]
    ]
    sketches = np.frombuffer(base64.b64decode(packed["sketches"]), dtype=">u4")
    prints, start = [], 0
    for name, names, shapes, axes, length in packed["architectures"]:
        prints.append(Fingerprint(name, names, shapes, table[axes], tuple(sketches[start : start + length].tolist())))
        start += length
    return Index(tuple(prints), tuple(map(frozenset, packed["twins"])), tuple(packed["versions"].items()))


def pack(known: Index) -> bytes:
    """The index as the bytes that `read_index` reads; the same index gives the same bytes."""
    table = list(dict.fromkeys(print_.axes for print_ in known.fingerprints))
    place = {axes: number for number, axes in enumerate(table)}
    numbers = [value for print_ in known.fingerprints for value in print_.sketch[:SKETCH]]
    packed: dict[str, Any] = {
        "versions": dict(known.versions),
        "axes": [[axes.classes, axes.channels] for axes in table],
        "architectures": [[p.name, p.names, p.shapes, place[p.axes], len(p.sketch)] for p in known.fingerprints],
        "twins": sorted(sorted(group) for group in known.twins),
        "sketches": base64.b64encode(np.array(numbers, dtype=">u4").tobytes()).decode(),
    }
    return gzip.compress(json.dumps(packed, separators=(",", ":")).encode(), 9, mtime=0)
