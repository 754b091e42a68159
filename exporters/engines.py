"""What runs engines of TensorRT and TensorRT-RTX: images from the host or the GPU, answers in the host's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporters.failure import RunnerError
from exporters.nvidia import NAMES, Said, gpu_here, hearing, library
from exporters.runner import Answer, Images, Runner, require_bytes, to_host
from exporters.sidecar import Port, Profile, obstacle, read_engine

DEVICE = "cuda"


class EngineRunner(Runner):
    """An engine on the GPU that PyTorch uses, with a context and a stream of its own."""

    def __init__(self, path: Path, runtime: str | None = None, *, trusted: bool = False) -> None:
        """Raises RunnerError for an engine that is damaged, of another `runtime` than asked for, or not for here.

        `trusted`: an engine for later versions too may run the code for the processor that it brings with it.
        """
        super().__init__("cuda", None)
        self.path = path
        content, self.description = read_engine(path)
        self.runtime = self.description.kind
        if runtime not in (None, self.runtime):
            raise RunnerError(f"{path}: {runtime} does not read it; it runs in {self.runtime}.")
        self.describe(self.description.profiles[0])
        trt = library(self.description.kind, RunnerError)
        reason = obstacle(self.description, content, trt, gpu_here())
        if reason is not None:
            raise RunnerError(f"{path}: {reason}.")
        self.refuse_code(trusted=trusted)
        self.start(trt, content)

    def refuse_code(self, *, trusted: bool) -> None:
        """Raises RunnerError for an engine that brings code for the processor, unless that is `trusted`."""
        if self.description.options.get("version_compatible") and not trusted:
            raise RunnerError(
                f"{self.path}: is version-compatible, so it brings code that runs when it is loaded; if you trust "
                "whoever made it, pass --trust-engine."
            )

    def describe(self, profile: Profile) -> None:
        """What the description says; an axis that the engine was built for one size of counts as fixed."""
        found = self.description
        self.inputs = {name: list(port.shape) for name, port in found.inputs.items()}
        self.outputs = {name: list(port.shape) for name, port in found.outputs.items()}
        self.precision, self.metadata = found.precision, found.metadata
        ((_, images),), answer = found.inputs.items(), next(iter(found.outputs.values()))
        self.takes_bytes = images.type == "uint8"
        pairs = zip(profile.least, profile.most, images.shape, strict=True)
        shape = [low if low == high else name for low, high, name in pairs]
        self.read_shapes(shape, list(answer.shape), whole="float" not in answer.type)
        self.batches = profile.least[0], profile.most[0]

    def start(self, trt: Any, content: bytes) -> None:
        self.trt = trt
        self.device = torch.empty(0, device=DEVICE).device  # with its number, so that it stays this one
        with hearing(trt) as (logger, said):
            self.holder = trt.Runtime(logger)
            if self.description.options.get("version_compatible"):
                # such an engine has the runtime of its own version in it, which the library does not start unasked
                self.holder.engine_host_code_allowed = True
            self.engine = self.holder.deserialize_cuda_engine(content)
            self.context: Any = None if self.engine is None else self.engine.create_execution_context()
        if self.context is None:
            raise self.failed("cannot be loaded", said)
        self.stream = torch.cuda.Stream(self.device)

    def failed(self, what: str, said: Said) -> RunnerError:
        why = "; ".join(said.errors) or "nothing"
        return RunnerError(f"{self.path}: {what} ({NAMES[self.runtime]} says: {why}); export it again here.")

    def run(self, images: Images) -> dict[str, Answer]:
        with torch.cuda.device(self.device):
            # images that are still being made on the GPU come first
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                placed = self.placed(images)
                answers = self.enqueue(placed)
                return {name: to_answer(answer) for name, answer in answers.items()}

    def placed(self, images: Images) -> Tensor:
        """Images on the GPU in the type and order that the engine reads: in place, where they are that already."""
        if isinstance(images, Tensor) and images.device.type == self.device.type:
            if self.takes_bytes:
                require_bytes(images.dtype)
            self.check(images.shape)
            wanted = torch.uint8 if self.takes_bytes else torch.float32
            return images.detach().to(self.device, wanted).contiguous()
        array = to_host(images, takes_bytes=self.takes_bytes)
        self.check(array.shape)
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises RunnerError for images of another shape than the engine was built for."""
        profile = self.description.profiles[0]
        ranges = list(zip(profile.least, profile.most, strict=True))
        if len(shape) != 4 or any(not low <= n <= high for n, (low, high) in zip(shape, ranges, strict=True)):
            wanted = ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in ranges)
            raise RunnerError(f"{self.path}: images {list(shape)} do not run, expected [{wanted}].")

    def enqueue(self, images: Tensor) -> dict[str, Tensor]:
        """Start the engine on images, and do not wait: its answers, on the GPU."""
        ((name, _),) = self.inputs.items()
        with hearing(self.trt) as (_, said):
            ready = self.context.set_input_shape(name, tuple(images.shape))
            answers = {output: self.room(output, port) for output, port in self.description.outputs.items()}
            for tensor, memory in {name: images, **answers}.items():
                ready = self.context.set_tensor_address(tensor, memory.data_ptr()) and ready
            ready = ready and self.context.execute_async_v3(self.stream.cuda_stream)
        if not ready:
            raise self.failed(f"does not run on images {list(images.shape)}", said)
        return answers

    def room(self, output: str, port: Port) -> Tensor:
        """Where an answer to images of the shape that was set goes."""
        shape = tuple(self.context.get_tensor_shape(output))
        if any(size < 0 for size in shape):
            raise RunnerError(f"{self.path}: the shape of {output} depends on what is in the images; it cannot be run.")
        return torch.empty(shape, dtype=getattr(torch, port.type), device=self.device)

    def close(self) -> None:
        del self.context, self.engine, self.holder


def to_answer(tensor: Tensor) -> Answer:
    """An answer in the host's memory, once it is there: float32, or whole numbers."""
    host = tensor.cpu()
    if host.is_floating_point():
        return host.float().numpy()
    return (host.to(torch.uint8) if host.dtype == torch.bool else host).numpy()
