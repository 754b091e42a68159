"""FLOPs by input size, and which operators do not scale with the number of pixels.

Convolutions cost the same per pixel. A classifier behind global pooling costs the same for every image; attention
between all positions grows with the square of the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from compress.resources import available_memory
from profiles.flops.counter import TRACE_ERRORS, count_products, trace_with_fvcore

#: height, width
Size = tuple[int, int]
#: difference from 1 below which an exponent counts as proportional; share of the cost below which it is not reported
EXPONENT_TOLERANCE, MIN_COST_SHARE = 0.05, 0.005


@dataclass(frozen=True)
class InputSizeCost:
    """Cost of one image of a given size, or the reason why it could not be counted."""

    size: Size  #: height, width
    macs: int | None = None
    flops: int | None = None  #: 2 * macs
    activations: int | None = None  #: output elements of products
    by_operator: dict[str, int] | None = None  #: operator type -> macs
    error: str = ""  #: why this size was not counted; empty if it was

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]


def count_flops_by_size(
    module: nn.Module, sizes: Iterable[Size], *, channels: int = 3, pixel_bytes: float = 0
) -> list[InputSizeCost]:
    """Count the arithmetic of a network for several input sizes.

    Args:
        module: Network; it runs once per size, so a large image takes its time and memory.
        sizes: Heights and widths in pixels.
        channels: Input channels.
        pixel_bytes: Estimated memory per pixel; a size that would not fit into free memory is not run.

    Returns:
        One entry per size; `error` is set for a size that could not be counted.
    """
    return [count_flops_at_size(module, size, channels, pixel_bytes) for size in sizes]


def count_flops_at_size(module: nn.Module, size: Size, channels: int, pixel_bytes: float) -> InputSizeCost:
    """Count one size."""
    need, free = pixel_bytes * size[0] * size[1], available_memory()
    if free is not None and need > free:
        return InputSizeCost(size, error=f"needs about {need / 1e9:.1f} GB of memory, found {free / 1e9:.1f} GB free")
    example = (torch.zeros(1, channels, *size),)
    try:
        try:
            trace = trace_with_fvcore(module, example)
        except TRACE_ERRORS:
            macs = count_products(module, example)  # raises again if the network itself fails
            return InputSizeCost(size, macs, 2 * macs, None, {"products": macs})
    except Exception as error:  # user code may raise anything
        return InputSizeCost(size, error=f"the network does not accept it: {first_error_line(error)}")
    macs = sum(trace.by_operator.values())
    return InputSizeCost(
        size, macs, 2 * macs, sum(operation.activations for operation in trace.operations), trace.by_operator
    )


def first_error_line(error: Exception) -> str:
    """Return the first line of an error message, at most 120 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:120].rstrip(" .")


def scaling_exponent(small: int, large: int, fewer: int, more: int) -> float | None:
    """Return e in cost ~ pixels ** e between two sizes; None for equal pixels or a cost of zero."""
    if fewer == more or not small or not large:
        return None
    return math.log(large / small) / math.log(more / fewer)


def describe_growth(rows: list[InputSizeCost], base: InputSizeCost) -> list[str]:
    """Describe each operator whose cost is not proportional to pixels, from `base` to the size farthest from it."""
    counted = [row for row in rows if row.by_operator is not None and row.pixels != base.pixels]
    if base.by_operator is None or not counted:
        return []
    far = max(counted, key=lambda row: abs(math.log(row.pixels / base.pixels)))
    lines = []
    for name, macs in base.by_operator.items():
        then = (far.by_operator or {}).get(name, 0)
        e = scaling_exponent(macs, then, base.pixels, far.pixels)
        here, there = macs / (base.macs or 1), then / (far.macs or 1)
        if e is not None and abs(e - 1) > EXPONENT_TOLERANCE and max(here, there) >= MIN_COST_SHARE:
            lines.append(
                f"{name} {describe_exponent(e)}: {here:.1%} of the cost at {format_size(base)}, "
                f"{there:.1%} at {format_size(far)}"
            )
    return lines


def describe_exponent(e: float) -> str:
    """Describe an exponent that is not 1."""
    if abs(e) <= EXPONENT_TOLERANCE:
        return "costs the same at every size"
    return f"grows as pixels to the power of {e:.2f}"


def format_size(row: InputSizeCost) -> str:
    return f"{row.size[0]}x{row.size[1]}"
