"""Search for int8 weights with which sums of products can saturate; see `exporters.cpu`."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto, TensorProto, numpy_helper

from exporters.cpu import SAFE_WEIGHT, saturation_warning
from exporters.onnx_validation import iter_tensors, model_metadata


def list_unsafe_weights(model: ModelProto, directory: Path) -> list[str]:
    """Return the names of int8 weights whose products can exceed 16 bits.

    Args:
        model: The graph.
        directory: Directory of weights that are stored in other files.
    """
    return [
        tensor.name
        for tensor in iter_tensors(model)
        if tensor.data_type == TensorProto.INT8
        and len(tensor.dims) > 1
        and abs(numpy_helper.to_array(tensor, str(directory)).astype(int)).max(initial=0) > SAFE_WEIGHT
    ]


def find_saturation(model: ModelProto, path: Path) -> str | None:
    """Return a warning if the model of an ONNX file can compute wrong outputs on a CPU without VNNI, else None."""
    if model_metadata(model).get("precision", "int8") != "int8":
        return None
    unsafe = list_unsafe_weights(model, path.parent)
    return saturation_warning(path, len(unsafe)) if unsafe else None
