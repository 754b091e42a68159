"""Engines of TensorRT and TensorRT-RTX, run with NumPy and the driver alone.

Stands beside `exporters.runtimes.tensorrt`, which keeps its tensors in PyTorch. The same copies are made: images from the host's
memory, every answer back into it.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiles.latency.gpu import GpuStages
from profiles.remote.cuda import Driver, Event, Pointer
from profiles.remote.opening import Ready, package, unfit
from profiles.remote.order import Job, Refused

NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
#: TensorRT's types, by name -> NumPy's; bfloat16, which NumPy has not, as the bytes that it is
TYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32",
    "INT64": "int64", "BOOL": "bool",
}  # fmt: skip
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, OSError)


@dataclass
class Engine:
    """An engine with its context, and memory on the GPU for one shape of images."""

    driver: Driver
    holders: tuple[Any, ...]  #: what must live as long as the context
    context: Any
    images: str  #: name of the input
    outputs: dict[str, str]  #: name of an output -> NumPy's type
    shape: tuple[int, ...] = ()  #: of the images that there is room for
    place: Pointer = field(default_factory=Pointer)
    answers: dict[str, tuple[Pointer, NDArray[Any]]] = field(default_factory=dict)

    def prepare(self, images: NDArray[Any]) -> None:
        """Make room for images of this shape and for their answers."""
        self.place, self.shape = self.driver.room(images.nbytes), images.shape
        ready = self.context.set_input_shape(self.images, images.shape)
        ready = self.context.set_tensor_address(self.images, self.place.value) and ready
        for name, kind in self.outputs.items():
            shape = tuple(self.context.get_tensor_shape(name))
            if any(side < 0 for side in shape):
                raise Refused(f"the shape of {name} depends on what is in the images; it cannot be run")
            answer = np.empty(shape, kind)
            room = self.driver.room(answer.nbytes)
            ready = self.context.set_tensor_address(name, room.value) and ready
            self.answers[name] = room, answer
        if not ready:
            raise Refused(f"the engine does not take images {list(images.shape)}")

    def copy_in(self, images: NDArray[Any]) -> None:
        if images.shape != self.shape:
            self.prepare(images)
        self.driver.copy_in(images, self.place)

    def compute(self, _: object = None) -> None:
        if not self.context.execute_async_v3(self.driver.stream.value or 0):
            raise Refused(f"the engine does not run on images {list(self.shape)}")

    def copy_out(self, _: object = None) -> list[NDArray[Any]]:
        for place, answer in self.answers.values():
            self.driver.copy_out(place, answer)
        self.driver.wait()
        return [answer for _, answer in self.answers.values()]

    def __call__(self, images: NDArray[Any]) -> list[NDArray[Any]]:
        """Images in the host's memory to all answers there."""
        self.copy_in(images)
        self.compute()
        return self.copy_out()

    def parts(self) -> GpuStages:
        return GpuStages(self.copy_in, self.compute, self.copy_out, lambda: Event(self.driver))


def open_engine(job: Job, path: Path, driver: Driver | None = None) -> Ready:
    """Load an engine on the first GPU. Raises Refused, in the library's words, for one that is not for here."""
    trt = package(job.runtime)
    refuse_other_version(job, path, str(trt.__version__))
    driver = driver or Driver()
    try:
        holder, engine, context = loaded(trt, path, trusted=job.trusted)
    except FAILURES as error:
        raise Refused(f"{job.shown}: {NAMES[job.runtime]} {trt.__version__} there fails ({error})") from error
    if context is None:
        why = "; ".join(dict.fromkeys(journal(trt.ILogger).said)) or "nothing"
        raise Refused(f"{job.shown}: cannot be loaded there ({NAMES[job.runtime]} {trt.__version__} says: {why})")
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    kinds = {name: TYPES.get(engine.get_tensor_dtype(name).name, "") for name in names}
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    shapes = {name: list(engine.get_tensor_shape(name)) for name in inputs}
    if len(inputs) != 1 or kinds[inputs[0]] not in ("float32", "uint8") or len(shapes[inputs[0]]) != 4:
        raise Refused(f"{job.shown}: {unfit([(name, kinds[name], shapes[name]) for name in inputs])}")
    images = inputs[0]
    least, _, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(images, 0))
    shape = [low if low == high else "?" for low, high in zip(least, most, strict=True)]
    outputs = {name: kinds[name] for name in names if name != images}
    runner = Engine(driver, (holder, engine), context, images, outputs)
    return Ready(
        runner, shape, kinds[images] == "uint8", job.precision, (least[0], most[0]), runner.parts(), driver.uuid
    )


def loaded(trt: Any, path: Path, *, trusted: bool) -> tuple[Any, Any, Any]:
    """The library's runtime, engine and context, the last two None where it refuses."""
    logger = journal(trt.ILogger)
    logger.said.clear()
    holder = trt.Runtime(logger)
    if trusted:
        holder.engine_host_code_allowed = True
    engine = holder.deserialize_cuda_engine(path.read_bytes())
    return holder, engine, None if engine is None else engine.create_execution_context()


@functools.cache
def journal(interface: Any) -> Any:
    """What a library says of errors; one for the process, for it goes on using the first that it was given."""
    severity = interface.Severity

    class Journal(interface):
        def __init__(self) -> None:
            interface.__init__(self)
            self.said: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.said.append(" ".join(message.split()))

    return Journal()


def refuse_other_version(job: Job, path: Path, installed: str) -> None:
    """Raises Refused for an engine of another version of its library, which would not load."""
    said = json.loads(path.with_name(path.name + ".json").read_bytes())
    built = said["version"]
    if built != installed and not said["options"].get("version_compatible"):
        name = NAMES[job.runtime]
        raise Refused(f"{job.shown}: built by {name} {built}, found {name} {installed} there; export it for that")
