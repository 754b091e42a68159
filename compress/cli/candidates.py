"""Things to time: a network or an exported file, loaded where it was asked to run, on images of its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from compress.models.card import ModelCard
    from exporters.runtimes import Provider, Runner, Runtime
    from profiles.latency.benchmark import Candidate
    from profiles.latency.gpu import GpuStages


def candidate(
    model: nn.Module | Path,
    card: ModelCard,
    batch_size: int,
    *,
    runtime: Runtime | None = None,
    provider: Provider | None = None,
    threads: int | None = None,
    trusted: bool = False,
) -> Candidate[Any]:
    """One thing to time: a network or an exported file, on random images of the card's size in the host's memory.

    The images are float32, or uint8 for a file that prepares them. It is loaded here, and answers once: what that takes
    is in the candidate. Raises UsageError for a batch that it does not take.
    """
    import torch

    from exporters.loading import load
    from exporters.runtimes.base import to_uint8_images
    from profiles.latency.benchmark import Candidate
    from profiles.latency.machine import available_cores
    from profiles.latency.memory import load_and_first_call

    def images(runner: Runner) -> Any:
        fewest, most = runner.batch_range
        if not fewest <= batch_size <= (most or batch_size):
            taken = f"{fewest} only" if fewest == most else f"{fewest} to {most}"
            raise UsageError(f"{model}: takes batches of {taken}, found --batch-size {batch_size}.")
        found = torch.rand(batch_size, runner.channels, *card.image_size)
        return to_uint8_images(found) if runner.expects_uint8 else found

    how = {"runtime": runtime, "provider": provider, "threads": available_cores() if threads is None else threads}
    libraries_loaded(model, runtime)
    begun = load_and_first_call(partial(load, model, trust_engine=trusted, **how), images, peak=peak_of(model, provider))
    runner = begun.call
    return Candidate(
        runner,
        begun.example,
        batch_size,
        runtime=runner.runtime,
        device=runner.provider,
        precision=runner.precision,
        threads=runner.threads,
        load_ms=begun.load_ms if isinstance(model, Path) else None,  # a network is loaded already
        first_call_ms=begun.first_call_ms,
        peak_bytes=begun.peak_bytes,
        gpu_stages=parts_of(runner),
        gpu=gpu_of(runner.provider),
    )


def libraries_loaded(model: nn.Module | Path, runtime: Runtime | None) -> None:
    """Have the runtime's library in memory before the clock starts: it would count for the first file only."""
    if isinstance(model, Path) and (runtime == "openvino" or model.suffix.lower() == ".xml"):
        from exporters.runtimes.openvino import import_openvino

        import_openvino().Core()


def peak_of(model: nn.Module | Path, provider: Provider | None) -> Callable[[Callable[[], object]], int | None]:
    """What tells the memory that loading and a call take where they compute. Of files on a GPU nothing does."""
    import torch

    from profiles.latency.machine import is_nvidia_gpu
    from profiles.latency.memory import peak_resident_memory
    from profiles.latency.tensor_memory import peak_memory_with_weights

    if isinstance(model, torch.nn.Module):
        there = provider in (None, "cpu") or (provider == "cuda" and torch.cuda.is_available())
        return partial(peak_memory_with_weights, module=model, device=provider or "cpu") if there else untold
    elsewhere = is_nvidia_gpu(provider or "cpu") or model.suffix.lower() == ".engine"
    return untold if elsewhere else peak_resident_memory


def untold(call: Callable[[], object]) -> None:
    call()


def parts_of(runner: Runner) -> GpuStages | None:
    """The runner's call in three steps that CUDA's events can tell apart; None on the processor, and in ONNX Runtime,
    which copies within."""
    import torch

    from profiles.latency.gpu import GpuStages

    event = partial(torch.cuda.Event, enable_timing=True)
    if runner.provider == "cuda" and runner.runtime in ("torch", "torch-compile"):
        step: Any = runner
        inference = torch.inference_mode()(step.forward)
        return GpuStages(lambda images: torch.as_tensor(images).to("cuda"), inference, lambda y: y.float().cpu(), event)
    if runner.runtime in ("tensorrt", "tensorrt-rtx"):
        engine: Any = runner
        return GpuStages(engine.copy_in, engine.compute, engine.copy_out, engine.create_event)
    return None


def gpu_of(provider: str) -> str | None:
    """NVML's name of the GPU that PyTorch uses; None for the processor, and where PyTorch does not tell."""
    import torch

    from profiles.latency.machine import is_nvidia_gpu

    if not is_nvidia_gpu(provider) or not torch.cuda.is_available():
        return None
    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    return None if uuid is None else str(uuid)


def reopened(
    *,
    spec: str,
    file: str | None,
    image_size: Sequence[int],
    wishes: Mapping[str, Any],
    batch_size: int,
    runtime: Runtime,
    provider: Provider | None,
    threads: int | None,
) -> Candidate[Any]:
    """The same candidate in another process, by what JSON can hold: the exported `file`, else the network of `spec`."""
    from compress.models.card import ModelCard
    from compress.predictor import load_predictor

    size = (image_size[0], image_size[1])
    how: dict[str, Any] = {"runtime": runtime, "provider": provider, "threads": threads}
    trusted = bool(wishes.get("trust_pickle"))
    if file is not None:
        return candidate(Path(file), ModelCard("", 2, size), batch_size, trusted=trusted, **how)
    asked = wishes.get("image_size")
    opened = load_predictor(spec, untrained=True, **{**wishes, "image_size": None if asked is None else tuple(asked)})
    return candidate(opened.network, opened.card, batch_size, **how)
