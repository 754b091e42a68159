"""Things to time: a network or an exported file, loaded where it was asked to run, on images of its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from compress.models.card import Card
    from exporters.runtime import Provider, Runner, Runtime
    from profiles.latency import Candidate
    from profiles.parts import Parts


def candidate(
    model: nn.Module | Path,
    card: Card,
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

    from exporters.runner import to_bytes
    from exporters.runtime import load
    from profiles.latency import Candidate
    from profiles.machine import cores
    from profiles.resident import begin

    def images(runner: Runner) -> Any:
        fewest, most = runner.batches
        if not fewest <= batch_size <= (most or batch_size):
            taken = f"{fewest} only" if fewest == most else f"{fewest} to {most}"
            raise UsageError(f"{model}: takes batches of {taken}, found --batch-size {batch_size}.")
        found = torch.rand(batch_size, runner.channels, *card.image_size)
        return to_bytes(found) if runner.takes_bytes else found

    how = {"runtime": runtime, "provider": provider, "threads": cores() if threads is None else threads}
    libraries_loaded(model, runtime)
    begun = begin(partial(load, model, trusted=trusted, **how), images, peak=peak_of(model, provider))
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
        first_ms=begun.first_ms,
        peak_bytes=begun.peak_bytes,
        parts=parts_of(runner),
        gpu=gpu_of(runner.provider),
    )


def libraries_loaded(model: nn.Module | Path, runtime: Runtime | None) -> None:
    """Have the runtime's library in memory before the clock starts: it would count for the first file only."""
    if isinstance(model, Path) and (runtime == "openvino" or model.suffix.lower() == ".xml"):
        from exporters.openvino import package

        package().Core()


def peak_of(model: nn.Module | Path, provider: Provider | None) -> Callable[[Callable[[], object]], int | None]:
    """What tells the memory that loading and a call take where they compute. Of files on a GPU nothing does."""
    import torch

    from profiles.machine import on_gpu
    from profiles.memory import rise
    from profiles.resident import resident_peak

    if isinstance(model, torch.nn.Module):
        there = provider in (None, "cpu") or (provider == "cuda" and torch.cuda.is_available())
        return partial(rise, module=model, device=provider or "cpu") if there else untold
    elsewhere = on_gpu(provider or "cpu") or model.suffix.lower() == ".engine"
    return untold if elsewhere else resident_peak


def untold(call: Callable[[], object]) -> None:
    call()


def parts_of(runner: Runner) -> Parts | None:
    """The runner's call in three steps that CUDA's events can tell apart; None on the processor, and in ONNX Runtime,
    which copies within."""
    import torch

    from profiles.parts import Parts

    event = partial(torch.cuda.Event, enable_timing=True)
    if runner.provider == "cuda" and runner.runtime in ("torch", "torch-compile"):
        step: Any = runner
        inference = torch.inference_mode()(step.ask)
        return Parts(lambda images: torch.as_tensor(images).to("cuda"), inference, lambda y: y.float().cpu(), event)
    if runner.runtime in ("tensorrt", "tensorrt-rtx"):
        from exporters.engines import to_answer

        engine: Any = runner
        place = partial(torch.cuda.stream, engine.stream)
        return Parts(engine.placed, engine.enqueue, lambda ys: [to_answer(y) for y in ys.values()], event, place)
    return None


def gpu_of(provider: str) -> str | None:
    """NVML's name of the GPU that PyTorch uses; None for the processor, and where PyTorch does not tell."""
    import torch

    from profiles.machine import on_gpu

    if not on_gpu(provider) or not torch.cuda.is_available():
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
    from compress.cli.opening import open_model
    from compress.models.card import Card

    size = (image_size[0], image_size[1])
    how: dict[str, Any] = {"runtime": runtime, "provider": provider, "threads": threads}
    trusted = bool(wishes.get("trust_pickle"))
    if file is not None:
        return candidate(Path(file), Card("", 2, size), batch_size, trusted=trusted, **how)
    asked = wishes.get("image_size")
    opened = open_model(spec, untrained=True, **{**wishes, "image_size": None if asked is None else tuple(asked)})
    return candidate(opened.network, opened.card, batch_size, **how)
