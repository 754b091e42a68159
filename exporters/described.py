"""What a file says of itself, without a runtime: enough to send it to a machine that has one."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto, ValueInfoProto

from exporters.engines import EngineRunner
from exporters.failure import RunnerError
from exporters.reading import external, metadata_of, read_model, tensors_of
from exporters.runner import Answer, Images, Runner
from exporters.sidecar import description_of, read_engine

#: types of an output that holds labels
WHOLE = (TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64)
#: types of images -> whether they are bytes
IMAGES: dict[int, bool] = {TensorProto.FLOAT: False, TensorProto.UINT8: True}


class Described(Runner):
    """An ONNX file, looked through as before a runtime sees it; it does not answer."""

    runtime = "onnxruntime"

    def __init__(self, path: Path) -> None:
        """Raises RunnerError for a file that is damaged, hostile, or no network of one image input."""
        super().__init__("cpu", None)
        self.path = path
        model = read_model(path)
        weights = {one.name for one in model.graph.initializer}
        inputs = [one for one in model.graph.input if one.name not in weights]
        kinds = [one.type.tensor_type.elem_type for one in inputs]
        if len(inputs) != 1 or kinds[0] not in IMAGES or len(shape_of(inputs[0])) != 4:
            raise RunnerError(
                f"{path}: found inputs {[(one.name, shape_of(one)) for one in inputs]}, expected one float input "
                "[n, 3, height, width], or one of uint8 [n, height, width, 3]."
            )
        answer = model.graph.output[0]
        self.takes_bytes = IMAGES[kinds[0]]
        self.read_shapes(shape_of(inputs[0]), shape_of(answer), whole=answer.type.tensor_type.elem_type in WHOLE)
        self.metadata = metadata_of(model)
        self.precision = self.metadata.get("precision", "fp32")
        places = [external(one)["location"] for one in tensors_of(model) if one.data_location == TensorProto.EXTERNAL]
        self.beside = tuple(path.parent / place for place in dict.fromkeys(places))  #: files of its weights

    def run(self, images: Images) -> dict[str, Answer]:
        raise RunnerError(f"{self.path}: was only described here, not loaded.")

    def close(self) -> None:
        """Nothing is held."""


class DescribedEngine(EngineRunner):
    """An engine by what stands beside it; neither its library nor a GPU is needed, and it does not answer."""

    def __init__(self, path: Path, *, trusted: bool = False) -> None:
        """Raises RunnerError for an engine that is damaged, or brings code that is not `trusted`."""
        Runner.__init__(self, "cuda", None)
        self.path = path
        _, self.description = read_engine(path)
        self.runtime = self.description.kind
        self.describe(self.description.profiles[0])
        self.refuse_code(trusted=trusted)
        self.beside = (description_of(path),)

    def run(self, images: Images) -> dict[str, Answer]:
        raise RunnerError(f"{self.path}: was only described here, not loaded.")

    def close(self) -> None:
        """Nothing is held."""


def shape_of(value: ValueInfoProto) -> list[int | str]:
    """Sides that are open by their names."""
    sides = value.type.tensor_type.shape.dim
    return [side.dim_value if side.HasField("dim_value") else side.dim_param for side in sides]
