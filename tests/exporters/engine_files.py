"""Small ONNX files for engines, and substitutes for TensorRT and the CUDA driver."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tensorrt_rtx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from exporters.tensorrt.build import EngineBuildResult, build_engine
from exporters.tensorrt.metadata import HASH
from exporters.tensorrt.options import BuildOptions, ShapeRanges

SIZE = (8, 10)
BATCH = (1, 8, 64)
SHAPES = ShapeRanges(BATCH)
RTX: Any = "tensorrt-rtx"
STREAM = 7


def save(
    path: Path,
    nodes: list[NodeProto],
    images: list[int | str],
    answers: dict[str, tuple[int, list[int | str]]],
    weights: dict[str, NDArray[Any]] | None = None,
    *,
    kind: int = TensorProto.FLOAT,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a graph that reads `images` and gives `answers`, name -> type and shape."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", kind, images)],
        [helper.make_tensor_value_info(name, *answer) for name, answer in answers.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("acme", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def filters(kind: type = np.float32) -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(kind)


def classifier(path: Path, *, batch: int | str = "batch", metadata: dict[str, str] | None = None) -> Path:
    """float32 [batch, 3, 8, 10] -> 4 logits."""
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], name="conv", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["logits"]),
    ]
    answers: dict[str, Any] = {"logits": (TensorProto.FLOAT, [batch, 4])}
    return save(path, nodes, [batch, 3, *SIZE], answers, {"w": filters()}, metadata=metadata)


def classifier_with_metadata(folder: Path) -> Path:
    """The classifier with metadata as our own export has them."""
    return classifier(folder / "net.onnx", metadata={"classes": "4", "precision": "fp32"})


def segmenter(path: Path) -> Path:
    """float32 [batch, 3, height, width] -> maps of 4 logits."""
    nodes = [helper.make_node("Conv", ["images", "w"], ["logits"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
    answers: dict[str, Any] = {"logits": (TensorProto.FLOAT, ["batch", 4, "height", "width"])}
    return save(path, nodes, ["batch", 3, "height", "width"], answers, {"w": filters()})


def labeller(path: Path) -> Path:
    """uint8 [batch, height, width, 3] -> uint8 labels of the pixels, and the greatest logits."""
    nodes = [
        helper.make_node("Cast", ["images"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("ArgMax", ["c"], ["m"], axis=1, keepdims=0),
        helper.make_node("Cast", ["m"], ["labels"], to=TensorProto.UINT8),
        helper.make_node("ReduceMax", ["c", "axis"], ["greatest"], keepdims=0),
    ]
    shape: list[int | str] = ["batch", "height", "width"]
    answers: dict[str, Any] = {"labels": (TensorProto.UINT8, shape), "greatest": (TensorProto.FLOAT, shape)}
    weights = {"w": filters(), "axis": np.array([1])}
    return save(path, nodes, [*shape, 3], answers, weights, kind=TensorProto.UINT8)


def halved(path: Path) -> Path:
    """`classifier` in fp16 with float32 input and output, without metadata."""
    nodes = [
        helper.make_node("Cast", ["images"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Cast", ["f"], ["logits"], to=TensorProto.FLOAT),
    ]
    answers: dict[str, Any] = {"logits": (TensorProto.FLOAT, ["batch", 4])}
    return save(path, nodes, ["batch", 3, *SIZE], answers, {"w": filters(np.float16)})


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).random(shape, dtype=np.float32)


class Settings:
    """A builder configuration that records options which TensorRT has and the installed library lacks."""

    def __init__(self, real: Any, logger: Any) -> None:
        self.__dict__.update(real=real, logger=logger, recorded_options={}, flags=[], caches=[])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.recorded_options[name] = value

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag.name)

    def create_timing_cache(self, content: bytes) -> Any:
        if content not in (b"", b"timed"):
            self.logger.log(tensorrt_rtx.ILogger.Severity.WARNING, "the cache is of\nanother version")
        return SimpleNamespace(content=content, serialize=lambda: b"timed")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.caches.append(cache)
        return True

    def get_timing_cache(self) -> Any:
        return self.caches[-1]


def fake_tensorrt(version: str, **changes: Any) -> ModuleType:
    """The installed library under the name of TensorRT; `recorded` holds what its builder was given."""
    recorded = SimpleNamespace()

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.real, self.logger = tensorrt_rtx.Builder(logger), logger
            self.create_optimization_profile = self.real.create_optimization_profile

        def create_network(self, flags: int) -> Any:
            recorded.network = flags
            return self.real.create_network(flags)

        def create_builder_config(self) -> Any:
            recorded.config = Settings(self.real.create_builder_config(), self.logger)
            return recorded.config

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            return self.real.build_serialized_network(network, config.real)

    module = ModuleType("tensorrt")
    module.__dict__.update(vars(tensorrt_rtx))
    module.__dict__.update(__version__=version, Builder=Builder, recorded=recorded, **changes)
    return module


def install(monkeypatch: Any, module: ModuleType) -> ModuleType:
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


class HostCuda:
    """The CUDA driver's functions on host memory, with one GPU."""

    def __init__(self, name: str = "NVIDIA A10", capability: tuple[int, int] = (8, 6)) -> None:
        self.name, self.capability = name, capability
        self.buffers: dict[int, Any] = {}
        self.events: dict[int, float] = {}
        self.clock = 0.0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("cu"):
            return lambda *_: 0
        raise AttributeError(name)

    def cuDeviceGetName(self, text: Any, *_: Any) -> int:
        text.value = self.name.encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: Any, _: Any) -> int:
        value._obj.value = self.capability[attribute.value - 75]
        return 0

    def cuDeviceGetUuid(self, value: Any, _: Any) -> int:
        value._obj[:] = range(16)
        return 0

    def cuStreamCreate(self, handle: Any, _: Any) -> int:
        handle._obj.value = STREAM
        return 0

    def cuMemAlloc_v2(self, pointer: Any, size: Any) -> int:
        buffer = ctypes.create_string_buffer(size.value)
        pointer._obj.value = ctypes.addressof(buffer)
        self.buffers[pointer._obj.value] = buffer
        return 0

    def cuMemFree_v2(self, pointer: Any) -> int:
        del self.buffers[pointer.value]
        return 0

    def cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, _: Any) -> int:
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: Any, _: Any) -> int:
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuEventCreate(self, handle: Any, _: Any) -> int:
        handle._obj.value = len(self.events) + 1
        self.events[handle._obj.value] = 0.0
        return 0

    def cuEventRecord(self, handle: Any, _: Any) -> int:
        self.clock += 1.0
        self.events[handle.value] = self.clock
        return 0

    def cuEventElapsedTime(self, milliseconds: Any, begin: Any, end: Any) -> int:
        milliseconds._obj.value = self.events[end.value] - self.events[begin.value]
        return 0


class BrokenCuda(HostCuda):
    """A driver that finds no GPU."""

    def cuDeviceGet(self, *_: Any) -> int:
        return 100

    def cuGetErrorString(self, _: Any, text: Any) -> int:
        text._obj.value = b"no CUDA-capable device is detected"
        return 0


def plug_in(monkeypatch: Any, driver: HostCuda | None = None) -> HostCuda:
    """Replace the CUDA driver by one on host memory."""
    driver = driver or HostCuda()
    monkeypatch.setattr("exporters.cuda.load_library", lambda: driver)
    return driver


class HostTensor:
    """A torch tensor that says it is on the GPU, for code that binds GPU tensors in place."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.shape, self.dtype, self.device = tensor, tensor.shape, tensor.dtype, tensor.device
        self.is_cuda = True

    def data_ptr(self) -> int:
        return self.tensor.data_ptr()

    def detach(self) -> HostTensor:
        return self

    def float(self) -> HostTensor:
        return HostTensor(self.tensor.float())

    def contiguous(self) -> HostTensor:
        return HostTensor(self.tensor.contiguous())


class Context:
    """Runs an ONNX file on memory addresses, as an execution context does."""

    def __init__(self, source: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
        self.addresses: dict[str, int] = {}
        self.streams: list[int] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        kind = np.uint8 if self.session.get_inputs()[0].type == "tensor(uint8)" else np.float32
        self.images = np.zeros(shape, kind)
        self.answers = self.answer()
        return True

    def answer(self) -> dict[str, NDArray[Any]]:
        names = [one.name for one in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, {"images": self.images}), strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.answers[name].shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        ctypes.memmove(self.images.ctypes.data, self.addresses["images"], self.images.nbytes)
        for name, answer in self.answer().items():
            ctypes.memmove(self.addresses[name], np.ascontiguousarray(answer).ctypes.data, answer.nbytes)
        return True


def runtime(context: Any) -> type:
    """A library runtime whose engines all run in `context`."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            return SimpleNamespace(create_execution_context=lambda: context)

    return Runtime


def engine_of(
    source: Path, shapes: ShapeRanges = SHAPES, kind: Any = RTX, **options: Any
) -> tuple[Path, EngineBuildResult]:
    """Build an engine beside its source."""
    engine = source.with_suffix(".engine")
    return engine, build_engine(source, engine, kind=kind, shapes=shapes, options=BuildOptions(**options))


def read_json(engine: Path) -> dict[str, Any]:
    content = json.loads(engine.with_name(engine.name + ".json").read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key != HASH}
