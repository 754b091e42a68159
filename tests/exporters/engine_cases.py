"""Small ONNX files for engines, and stand-ins for the libraries and the GPU that are not here."""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorrt_rtx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from exporters.tensorrt.options import ShapeRanges
from exporters.tensorrt.build import EngineBuildResult, build_engine
from exporters.tensorrt.options import BuildOptions

SIZE = (8, 10)
BATCH = (1, 8, 64)
SHAPES = ShapeRanges(BATCH)
RTX: Any = "tensorrt-rtx"


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


def shipped(folder: Path) -> Path:
    """The classifier as our own export has it, with a word on what it is."""
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
    """As `classifier`, in fp16 but for what goes in and comes out; it does not say so."""
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
    """A builder's configuration that notes what TensorRT has and the library here has not."""

    def __init__(self, real: Any, logger: Any) -> None:
        self.__dict__.update(real=real, logger=logger, noted={}, flags=[], caches=[])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.noted[name] = value

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


def stand_in(version: str, **changes: Any) -> ModuleType:
    """The installed library as TensorRT of a version, and what its builder was told, as `told`."""
    told = SimpleNamespace()

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.real, self.logger = tensorrt_rtx.Builder(logger), logger
            self.create_optimization_profile = self.real.create_optimization_profile

        def create_network(self, flags: int) -> Any:
            told.network = flags
            return self.real.create_network(flags)

        def create_builder_config(self) -> Any:
            told.config = Settings(self.real.create_builder_config(), self.logger)
            return told.config

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            return self.real.build_serialized_network(network, config.real)

    module = ModuleType("tensorrt")
    module.__dict__.update(vars(tensorrt_rtx))
    module.__dict__.update(__version__=version, Builder=Builder, told=told, **changes)
    return module


def install(monkeypatch: Any, module: ModuleType) -> ModuleType:
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def plug_in(monkeypatch: Any, name: str = "NVIDIA A10", capability: tuple[int, int] = (8, 6)) -> None:
    """Have PyTorch say that there is a GPU."""
    found = SimpleNamespace(name=name, major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)


def run_on_host(monkeypatch: Any) -> None:
    """The host's memory in the place of a GPU's."""
    stream = SimpleNamespace(cuda_stream=7, wait_stream=lambda other: None)
    monkeypatch.setattr("exporters.runtimes.tensorrt.DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda one: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda one: contextlib.nullcontext())


class Context:
    """Runs an ONNX file on addresses in memory, as an engine's context does."""

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
    """A runtime whose engines all run in `context`."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            return SimpleNamespace(create_execution_context=lambda: context)

    return Runtime


def engine_of(source: Path, shapes: ShapeRanges = SHAPES, kind: Any = RTX, **options: Any) -> tuple[Path, EngineBuildResult]:
    """The engine beside its source, built."""
    engine = source.with_suffix(".engine")
    return engine, build_engine(source, engine, kind=kind, shapes=shapes, options=BuildOptions(**options))


def described(engine: Path) -> dict[str, Any]:
    return json.loads(engine.with_name(engine.name + ".json").read_text(encoding="utf-8"))


def sentence(caught: pytest.ExceptionInfo[Any]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text
