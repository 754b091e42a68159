"""Inputs and outputs of a file, read without a runtime: enough to send it to a machine that has one."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto, ValueInfoProto

from exporters.onnx_validation import model_metadata, read_model, weight_files
from exporters.runtimes.base import ModelInfo, Shape, unsupported_input_error
from exporters.runtimes.tensorrt import EngineInfo

#: types of an output that holds labels
LABEL_TYPES = (TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64)
INPUT_TYPES = (TensorProto.FLOAT, TensorProto.UINT8)


class OnnxModelInfo(ModelInfo):
    """A validated ONNX file with one image input."""

    runtime = "onnxruntime"

    def __init__(self, path: Path) -> None:
        """Read and validate the file. Raise RunnerError if it is damaged, unsafe or takes no images."""
        super().__init__("cpu")
        self.path = path
        model = read_model(path)
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        types = [value.type.tensor_type.elem_type for value in inputs]
        if len(inputs) != 1 or types[0] not in INPUT_TYPES or len(value_shape(inputs[0])) != 4:
            found = [(value.name, value_shape(value)) for value in inputs]
            raise unsupported_input_error(path, found, len(model.graph.output))
        output = model.graph.output[0]
        has_labels = output.type.tensor_type.elem_type in LABEL_TYPES
        self.expects_uint8 = types[0] == TensorProto.UINT8
        self.set_shapes(value_shape(inputs[0]), value_shape(output), has_labels=has_labels)
        self.metadata = model_metadata(model)
        self.precision = self.metadata.get("precision", "fp32")
        self.companion_files = tuple(sorted(weight_files(path, model)))


def read_model_info(path: Path, *, trust_engine: bool = False) -> ModelInfo:
    """Read inputs and outputs of an ONNX file or an engine.

    Args:
        path: An .onnx or .engine file.
        trust_engine: Accept a version-compatible engine, which contains code.

    Raises:
        RunnerError: The file is missing, damaged, unsafe or takes no images.
    """
    if path.suffix.lower() == ".engine":
        return EngineInfo(path, trust_engine=trust_engine)
    return OnnxModelInfo(path)


def value_shape(value: ValueInfoProto) -> Shape:
    """Return the sizes of a value's axes; an open axis has a name."""
    axes = value.type.tensor_type.shape.dim
    return [axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in axes]
