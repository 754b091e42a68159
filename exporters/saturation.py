"""Processors on which sums of int8 products saturate, and weights with which no sum can.

x86 without VNNI multiplies unsigned activations by signed weights in pairs: VPMADDUBSW adds two products and saturates
the sum to 16 bits. Two products of 255 * 127 are 64770, beyond 32767. With weights of seven bits, -64...64, the largest
sum is 2 * 255 * 64 = 32640, so every processor computes the same. A bound on the weights is therefore a proof.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path

from onnx import ModelProto, TensorProto, numpy_helper

from exporters.reading import metadata_of, read_model, tensors_of

#: largest magnitude of a weight with which no pair of products exceeds 16 bits
SAFE_WEIGHT = 64
#: where Linux lists the instruction sets of the processor
CPUINFO = Path("/proc/cpuinfo")
X86 = ("x86_64", "amd64", "i386", "i686")
VNNI = {"avx_vnni", "avx512_vnni"}


def has_exact_int8() -> bool:
    """Whether this processor adds int8 products in 32 bits. False for x86 where VNNI is absent or not known."""
    try:
        flags = CPUINFO.read_text(errors="replace").split()
    except OSError:
        flags = []
    return adds_in_32_bits(platform.machine(), flags)


def adds_in_32_bits(architecture: str, instructions: Collection[str]) -> bool:
    """Whether a processor adds int8 products in 32 bits. `instructions`: as Linux spells them."""
    return architecture.lower() not in X86 or not VNNI.isdisjoint(instructions)


def list_unsafe_weights(model: ModelProto, folder: Path) -> list[str]:
    """List the int8 weights of a graph whose products can exceed 16 bits. `folder`: of weights in other files."""
    return [
        tensor.name
        for tensor in tensors_of(model)
        if tensor.data_type == TensorProto.INT8
        and len(tensor.dims) > 1
        and abs(numpy_helper.to_array(tensor, str(folder)).astype(int)).max(initial=0) > SAFE_WEIGHT
    ]


def describe_saturation(path: Path) -> str | None:
    """Say what is wrong with running an ONNX file on a processor without VNNI. None: no sum can saturate."""
    model = read_model(path)
    if metadata_of(model).get("precision", "int8") != "int8":
        return None
    unsafe = list_unsafe_weights(model, path.parent)
    return warning_of(path, len(unsafe)) if unsafe else None


def warning_of(path: Path, count: int) -> str:
    return (
        f"{path}: {count} layers have 8-bit weights, and the processor has no VNNI. Sums of products can saturate and "
        "the output can be wrong; export for all processors, with --target ort-cpu or openvino."
    )
