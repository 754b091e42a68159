"""What a network costs by the size of its images, and where that is not in proportion to their pixels.

Convolutions cost as much for every pixel. A classifier behind global pooling costs the same for every image; attention
between all places of an image grows with the square of its pixels. What grows otherwise than pixels is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from profiles.flops import UNTRACEABLE, products, traced

#: height, width
Size = tuple[int, int]
#: what the kernel says of memory that a process may still have
MEMORY = Path("/proc/meminfo")
#: exponents this near to 1 are called proportional; shares of the cost below this are not spoken of
NEAR, SMALL = 0.05, 0.005


@dataclass(frozen=True)
class AtSize:
    """The cost of one image of a size; nothing but a reason where there is none."""

    size: Size  #: height, width
    macs: int | None = None
    flops: int | None = None  #: 2 * macs
    activations: int | None = None  #: numbers that products make
    by_operator: dict[str, int] | None = None  #: kind of operator -> macs
    refused: str = ""  #: why this size cannot be counted, in one sentence; empty where it was

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]


def by_size(module: nn.Module, sizes: Iterable[Size], *, channels: int = 3, pixel_bytes: float = 0) -> list[AtSize]:
    """`module` on one image of each of the sizes. It really runs, so a large image takes its time and memory.

    `pixel_bytes`: memory that a pixel takes, as far as known; a size that would not fit into this machine is refused.
    """
    return [at_size(module, size, channels, pixel_bytes) for size in sizes]


def at_size(module: nn.Module, size: Size, channels: int, pixel_bytes: float) -> AtSize:
    need, free = pixel_bytes * size[0] * size[1], available()
    if free is not None and need > free:
        return AtSize(size, refused=f"counting it takes about {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free")
    example = (torch.zeros(1, channels, *size),)
    try:
        try:
            found = traced(module, example)
        except UNTRACEABLE:
            macs = products(module, example)  # raises again what was the network's own fault
            return AtSize(size, macs, 2 * macs, None, {"products": macs})
    except Exception as error:  # a network may be anybody's code, and refuse a size by whatever it likes
        return AtSize(size, refused=f"the network refuses it: {sentence(error)}")
    macs = sum(found.by_operator.values())
    return AtSize(size, macs, 2 * macs, sum(work.activations for work in found.works), found.by_operator)


def sentence(error: Exception) -> str:
    """The first line of what an error says, at most 120 letters of it."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:120].rstrip(" .")


def available() -> int | None:
    """Bytes that this process may still have; None where the system does not tell."""
    try:
        lines = MEMORY.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024


def exponent(small: int, large: int, fewer: int, more: int) -> float | None:
    """e in cost ~ pixels ** e between two sizes; None where it has no meaning: the same pixels, or a cost of zero."""
    if fewer == more or not small or not large:
        return None
    return math.log(large / small) / math.log(more / fewer)


def growth(rows: list[AtSize], base: AtSize) -> list[str]:
    """A sentence for each kind of operator whose cost is not proportional to pixels, from `base` to the size that is
    farthest from it."""
    counted = [row for row in rows if row.by_operator is not None and row.pixels != base.pixels]
    if base.by_operator is None or not counted:
        return []
    far = max(counted, key=lambda row: abs(math.log(row.pixels / base.pixels)))
    lines = []
    for name, macs in base.by_operator.items():
        then = (far.by_operator or {}).get(name, 0)
        e = exponent(macs, then, base.pixels, far.pixels)
        here, there = macs / (base.macs or 1), then / (far.macs or 1)
        if e is not None and abs(e - 1) > NEAR and max(here, there) >= SMALL:
            lines.append(f"{name} {how(e)}: {here:.1%} of the cost at {text(base)}, {there:.1%} at {text(far)}")
    return lines


def how(e: float) -> str:
    if abs(e) <= NEAR:
        return "costs the same at every size"
    return f"grows as pixels to the power of {e:.2f}"


def text(row: AtSize) -> str:
    return f"{row.size[0]}x{row.size[1]}"
