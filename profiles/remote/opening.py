"""Files opened in ONNX Runtime or OpenVINO with NumPy alone, on exactly the provider that is asked for.

This stands beside `exporters.loading` and `exporters.runtimes.openvino` because those import PyTorch, `onnx` and pydantic, which
another machine need not have. What decides a time is the same here, and a test holds both together: options of the
session, threads, precision, and that no other provider is taken in silence. What is not here has been done before the
file was sent: looking through it for what a stranger may have put there.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiles.latency.gpu import GpuStages
from profiles.remote.order import Job, Refused

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
#: operators, and OpenVINO's layers, in which a network's time goes
HEAVY = {"Conv", "ConvTranspose", "FusedConv", "QLinearConv", "Gemm", "MatMul", "FusedMatMul", "QLinearMatMul"}
LAYERS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
#: precision of a graph -> what the processor must be capable of, and how OpenVINO is asked for it
HINTS = {"fp16": ("FP16", "f16"), "bf16": ("BF16", "bf16")}
FLOAT32 = "f32"
PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}
#: where OpenVINO keeps the metadata of an ONNX file
METADATA = "framework"
#: what a runtime is installed as; `tensorrt` comes with the system on NVIDIA's boards
INSTALL = {"tensorrt-rtx": "tensorrt-rtx-cu13"}
MODULES = {"tensorrt-rtx": "tensorrt_rtx"}
Shape = list[Any]


@dataclass(frozen=True)
class Ready:
    """A file ready to be timed."""

    call: Callable[[NDArray[Any]], object]  #: images in host memory -> answers in host memory
    shape: Shape  #: of the images; what is no whole number is open
    takes_bytes: bool  #: uint8 [n, h, w, 3] and not float32 [n, 3, h, w]
    precision: str  #: that really runs
    batches: tuple[int, int | None] = (1, None)  #: fewest and most images a call
    parts: GpuStages | None = None  #: the same call in three steps, where the GPU is ours to time
    gpu: str | None = None  #: NVML's uuid of it, where it is known

    def __call__(self, images: NDArray[Any]) -> object:
        return self.call(images)


def open_file(job: Job, path: Path) -> Ready:
    """The file of `job` at `path`. Raises Refused for one that does not run as it is asked to."""
    if job.runtime == "onnxruntime":
        return open_onnx(job, path)
    if job.runtime == "openvino":
        return open_openvino(job, path)
    from profiles.remote.engine import open_engine

    return open_engine(job, path)


def package(runtime: str) -> Any:
    """The module of a runtime. Raises Refused, with what to install and for which Python, where it is not there."""
    name = MODULES.get(runtime, runtime)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise Refused(f"{name} there needs {error.name}, which is not installed; {install(error.name)}") from error
        raise Refused(f"{name} is not installed there; {install(INSTALL.get(runtime, name))}") from error
    except (ImportError, OSError) as error:
        raise Refused(f"{name} is installed there, but does not load ({first_line(error)})") from error


def install(name: str | None) -> str:
    return f"install it on that machine with: {sys.executable} -m pip install {name}"


def open_onnx(job: Job, path: Path) -> Ready:
    ort = package("onnxruntime")
    session = open_session(ort, job, path)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    kinds = [one.type for one in inputs]
    if kinds not in (["tensor(float)"], ["tensor(uint8)"]) or len(inputs[0].shape) != 4 or not outputs:
        raise Refused(f"{job.shown}: {unfit([(one.name, one.type, one.shape) for one in inputs])}")
    name = inputs[0].name
    fixed = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None
    return Ready(
        guarded(lambda images: session.run(None, {name: images}), failures(), job),
        inputs[0].shape,
        kinds == ["tensor(uint8)"],
        job.precision,
        (fixed or 1, fixed),
    )


def open_session(ort: Any, job: Job, path: Path) -> Any:
    """A session on exactly the provider asked for."""
    name, there = PROVIDERS[job.provider], ort.get_available_providers()
    if name not in there:
        raise Refused(f"{name} is not in ONNX Runtime {ort.__version__} there, which has {', '.join(there)}")
    if job.provider in ("cuda", "tensorrt") and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its errors are raised besides
    if job.threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    if job.provider != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=[name])
    except failures() as error:
        raise Refused(
            f"{job.shown}: ONNX Runtime {ort.__version__} there does not take it ({reason(error)})"
        ) from error
    if session.get_providers()[0] != name:
        raise Refused(
            f"{job.shown}: {name} was asked for, but ONNX Runtime there fell back to {session.get_providers()[0]}: its "
            "libraries do not load"
        )
    if job.provider != "cpu" and (left := left_behind(session)):
        raise Refused(
            f"{job.shown}: {name} was asked for, but ONNX Runtime there runs {len(left)} of its convolutions and "
            f"products on the processor ({', '.join(left[:3])})"
        )
    return session


def left_behind(session: Any) -> list[str]:
    """Convolutions and products that run on the processor all the same; an older ONNX Runtime does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == PROVIDERS["cpu"]]
    return [node.name or node.op_type for part in parts for node in part.get_nodes() if node.op_type in HEAVY]


def failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own exceptions share no base but Exception, and come by name."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, TypeError, OSError)


def open_openvino(job: Job, path: Path) -> Ready:
    """On the processor, in the precision of the graph where the processor has it, else in float32."""
    core = package("openvino").Core()
    failures = (RuntimeError, TypeError, ValueError)
    try:
        graph = core.read_model(str(path))
        said = noted_precision(graph) if path.suffix.lower() == ".xml" else job.precision
        needed, hint = HINTS.get(said, ("", FLOAT32))
        capable = needed in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings = {
            "INFERENCE_PRECISION_HINT": hint if capable else FLOAT32,
            "PERFORMANCE_HINT": "LATENCY",
            **({} if job.threads is None else {"INFERENCE_NUM_THREADS": job.threads}),
        }
        compiled = core.compile_model(graph, "CPU", settings)
        request = compiled.create_infer_request()
    except failures as error:
        raise Refused(f"{job.shown}: OpenVINO there does not take it ({last_line(error)})") from error
    kinds = [port.element_type.get_type_name() for port in compiled.inputs]
    shapes = [shape_of(port) for port in compiled.inputs]
    if kinds not in (["f32"], ["u8"]) or len(shapes[0]) != 4:
        raise Refused(f"{job.shown}: {unfit(list(zip(kinds, shapes, strict=True)))}")
    fixed = shapes[0][0] if isinstance(shapes[0][0], int) else None
    asked = PRECISIONS[compiled.get_property("INFERENCE_PRECISION_HINT").to_string()]
    counts = layers(compiled)
    return Ready(
        guarded(lambda images: answers(request.infer([images], share_inputs=True)), failures, job),
        shapes[0],
        kinds == ["u8"],
        max(counts, key=lambda name: counts[name], default=asked),
        (fixed or 1, fixed),
    )


def answers(found: Any) -> list[NDArray[Any]]:
    """Copies: the request reuses its memory."""
    return [np.array(answer) for answer in found.values()]


def noted_precision(graph: Any) -> str:
    """The precision that stands in the metadata of an OpenVINO file of ours; fp32 in another."""
    if not graph.has_rt_info([METADATA, "precision"]):
        return "fp32"
    return str(graph.get_rt_info([METADATA, "precision"]).value)


def layers(compiled: Any) -> Counter[str]:
    """How many convolutions and products of a compiled network run in which precision."""
    found: Counter[str] = Counter()
    for layer in compiled.get_runtime_model().get_ops():
        facts = layer.get_rt_info()
        if facts["layerType"].astype(str) in LAYERS:
            kind = str(facts["runtimePrecision"].astype(str))
            found[PRECISIONS.get(kind, kind)] += 1
    return found


def shape_of(port: Any) -> Shape:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return []
    return [side.get_length() if side.is_static else str(side) for side in shape]


def guarded(
    call: Callable[[NDArray[Any]], object], failures: tuple[type[Exception], ...], job: Job
) -> Callable[[NDArray[Any]], object]:
    """`call`, whose failures are sentences."""

    def answer(images: NDArray[Any]) -> object:
        try:
            return call(images)
        except failures as error:
            raise Refused(
                f"{job.shown}: does not run there on images {list(images.shape)} ({reason(error)})"
            ) from error

    return answer


def unfit(inputs: list[Any]) -> str:
    return f"found inputs {inputs}, expected one of images, float [n, 3, height, width] or uint8 [n, height, width, 3]"


def first_line(error: BaseException, length: int = 200) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:length]


def last_line(error: BaseException, length: int = 200) -> str:
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return (lines[-1].rstrip(".!") if lines else type(error).__name__)[:length]


def reason(error: BaseException) -> str:
    """What ONNX Runtime says, without the path that it repeats."""
    return first_line(error).rsplit(" failed:", 1)[-1].strip()
