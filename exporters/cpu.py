"""Whether the CPU computes int8 exactly.

x86 without VNNI multiplies unsigned activations by signed weights in pairs: VPMADDUBSW adds two products and saturates
the sum to 16 bits. Two products of 255 * 127 are 64770, beyond 32767. With 7-bit weights, -64...64, the largest sum is
2 * 255 * 64 = 32640, so every CPU computes the same. A bound on the weights is therefore a proof.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path

#: largest magnitude of a weight with which no sum of two products exceeds 16 bits
SAFE_WEIGHT = 64
#: where Linux lists the CPU's instruction sets
CPUINFO = Path("/proc/cpuinfo")
X86 = ("x86_64", "amd64", "i386", "i686")
VNNI = {"avx_vnni", "avx512_vnni"}


def has_exact_int8() -> bool:
    """Return whether this CPU adds int8 products in 32 bits. False for x86 if VNNI is missing or unknown."""
    try:
        flags = CPUINFO.read_text(errors="replace").split()
    except OSError:
        flags = []
    return adds_in_32_bits(platform.machine(), flags)


def adds_in_32_bits(architecture: str, instructions: Collection[str]) -> bool:
    """Return whether a CPU adds int8 products in 32 bits.

    Args:
        architecture: Such as "x86_64".
        instructions: Instruction sets with Linux's names, such as "avx512_vnni".

    Example:
        >>> adds_in_32_bits("x86_64", ["avx2"]), adds_in_32_bits("aarch64", [])
        (False, True)
    """
    return architecture.lower() not in X86 or not VNNI.isdisjoint(instructions)


def saturation_warning(path: Path, count: int) -> str:
    return (
        f"{path}: {count} layers have 8-bit weights, and the CPU has no VNNI. Sums of products can saturate and the "
        "output can be wrong; export for all CPUs, with --target ort-cpu or openvino."
    )
