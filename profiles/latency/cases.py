"""Benchmark cases: a model in a runtime at a batch size, loaded in this process, in a child or on another machine.

Imports no torch, because it also runs on other machines.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import exporters
from compress.errors import CompressError, UsageError
from compress.resources import usable_cores
from exporters import runtimes
from exporters.runtimes import Provider, Runner, Runtime
from exporters.runtimes.base import to_uint8_images
from profiles.latency.benchmark import Candidate, InterleavedTimings, Latency, benchmark_interleaved
from profiles.latency.gpu import GpuStages
from profiles.latency.machine import describe_machine, is_nvidia_gpu
from profiles.latency.memory import load_and_first_call, peak_resident_memory
from profiles.latency.scenarios import CandidateSpec, ScenarioError, ScenarioSettings, run_scenario

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[str], None]
TENSORRT_RUNTIMES = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class NetworkSource:
    """How a child process obtains a PyTorch network."""

    function: str  #: "package.module:name"; called with `arguments`, returns the network
    arguments: dict[str, Any] = field(default_factory=dict)  #: JSON values


@dataclass(frozen=True, eq=False)
class BenchmarkCase:
    """A model in a runtime at a batch size: one row of a benchmark."""

    name: str  #: displayed
    model: nn.Module | Path  #: network, or exported file
    image_size: tuple[int, int] | None = None  #: (height, width); None: the file's fixed size
    batch_size: int = 1
    runtime: Runtime | None = None  #: None: PyTorch for a network, the default runtime for a file
    provider: Provider | None = None
    threads: int | None = None  #: None: one per core
    trust_engine: bool = False  #: accept an engine that contains code
    network_source: NetworkSource | None = None  #: needed to run a network in a LoadGen scenario
    validate: bool = True  #: validate an ONNX file before a runtime reads it

    def create_candidate(self) -> Candidate[Any]:
        """Load the model in this process."""
        return create_candidate(
            self.model,
            self.image_size,
            self.batch_size,
            runtime=self.runtime,
            provider=self.provider,
            threads=self.threads,
            trust_engine=self.trust_engine,
            validate=self.validate,
        )

    def candidate_spec(self) -> CandidateSpec:
        """Return how a child process loads the model. Raises UsageError for a network without a source."""
        source = self.network_source
        if not isinstance(self.model, Path) and source is None:
            raise UsageError(
                f"{self.name}: found a network in memory, expected a name or a file for LoadGen's scenarios."
            )
        arguments = {
            "file": str(self.model.absolute()) if isinstance(self.model, Path) else None,
            "function": None if source is None else source.function,
            "arguments": {} if source is None else source.arguments,
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "runtime": self.runtime,
            "provider": self.provider,
            "threads": self.threads,
            "trust_engine": self.trust_engine,
            "validate": self.validate,
        }
        return CandidateSpec("profiles.latency.cases:recreate_candidate", arguments)


@dataclass(frozen=True)
class ScenarioFailure:
    """A LoadGen scenario that could not be run."""

    case: BenchmarkCase
    scenario: str
    message: str


@dataclass(frozen=True)
class CaseTimings:
    """Latencies of benchmark cases on one machine."""

    interleaved: InterleavedTimings[BenchmarkCase] | None  #: None if no interleaved timing was requested
    scenarios: list[tuple[BenchmarkCase, Latency]]  #: results of LoadGen
    machine: dict[str, Any]  #: as from `describe_machine`
    failures: list[ScenarioFailure] = field(default_factory=list)
    sha256: Mapping[BenchmarkCase, str] = field(default_factory=dict)  #: of files that were sent to another machine

    @property
    def latencies(self) -> list[tuple[BenchmarkCase, Latency]]:
        """All latencies: interleaved ones, then LoadGen's."""
        return [*([] if self.interleaved is None else self.interleaved.latencies.items()), *self.scenarios]

    def require_any(self) -> CaseTimings:
        """Return this. Raises CompressError if nothing was measured."""
        if self.failures and not self.latencies:
            raise CompressError(" ".join(failure.message for failure in self.failures))
        return self


def benchmark(
    runners: Mapping[str, Runner],
    *,
    batch_size: int = 1,
    image_size: tuple[int, int] | None = None,
    duration_s: float = 1.0,
) -> dict[str, Latency]:
    """Time loaded models interleaved, on random images in host memory.

    Args:
        runners: Name -> runner, as from `exporters.load`.
        batch_size: Images per call.
        image_size: (height, width) for models that accept any size.
        duration_s: Seconds of counted calls per model.

    Returns:
        The latency of each model, by name.

    Raises:
        UsageError: A model does not take this batch or image size, or none is given.

    Example:
        >>> import torch, exporters
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> latencies = benchmark({"net": exporters.load(network)}, image_size=(8, 8), duration_s=0.01)
        >>> latencies["net"].latency_ms_p50 > 0
        True
    """
    candidates = {
        name: candidate_from_runner(runner, random_images(runner, batch_size, image_size, name=name))
        for name, runner in runners.items()
    }
    return benchmark_interleaved(candidates, duration_s=duration_s).latencies


def benchmark_cases(
    cases: Sequence[BenchmarkCase],
    *,
    duration_s: float | None,
    scenarios: Sequence[ScenarioSettings] = (),
    load_before: float | None = None,
    precision: str | None = None,
    progress: Progress = lambda _: None,
) -> CaseTimings:
    """Time cases on this machine.

    Args:
        cases: Models to time.
        duration_s: Seconds of interleaved timing per case; None: no interleaved timing.
        scenarios: LoadGen scenarios to run, one case after the other.
        load_before: Load average of the machine before any of our work.
        precision: Precision in which every case must really run; None: any.
        progress: Called with status lines.

    Returns:
        Latencies and failed scenarios.

    Raises:
        CompressError: A model cannot be loaded, or nothing could be measured.
    """
    interleaved = None
    if duration_s is not None:
        with preserve_threads():
            candidates = {case: case.create_candidate() for case in cases}
            for case, candidate in candidates.items():
                if precision not in (None, candidate.precision):
                    raise CompressError(f"{case.name}: found precision {candidate.precision}, expected {precision}.")
            progress(f"Timing {len(cases)} cases interleaved, about {len(cases) * (duration_s + 0.5):.0f} s …")
            interleaved = benchmark_interleaved(candidates, duration_s=duration_s)
    results: list[tuple[BenchmarkCase, Latency]] = []
    failures: list[ScenarioFailure] = []
    for case, settings in select_scenarios(cases, scenarios):
        what = f"{case.name} in {case.runtime or 'its runtime'}, batch {case.batch_size}"
        progress(f"{what}: {settings.scenario}, {describe_duration(settings)} …")
        try:
            results.append((case, run_scenario(case.candidate_spec(), settings, load_before=load_before)))
        except ScenarioError as error:
            failures.append(ScenarioFailure(case, settings.scenario, f"{what}: {error}"))
    return CaseTimings(interleaved, results, describe_machine(), failures).require_any()


def select_scenarios(
    cases: Sequence[BenchmarkCase], scenarios: Sequence[ScenarioSettings]
) -> Iterator[tuple[BenchmarkCase, ScenarioSettings]]:
    """Yield each scenario with each case that it fits: SingleStream is for one image."""
    for settings in scenarios:
        for case in cases:
            if settings.scenario != "SingleStream" or case.batch_size == 1:
                yield case, settings


def describe_duration(settings: ScenarioSettings) -> str:
    return "10 minutes or more" if settings.mlperf else f"about {settings.duration_s:g} s"


def create_candidate(
    model: nn.Module | Path,
    image_size: tuple[int, int] | None,
    batch_size: int,
    *,
    runtime: Runtime | None = None,
    provider: Provider | None = None,
    threads: int | None = None,
    trust_engine: bool = False,
    validate: bool = True,
) -> Candidate[Any]:
    """Load a network or an exported file and call it once, on random images in host memory.

    Args:
        model: Network, or exported file.
        image_size: (height, width) for models that accept any size.
        batch_size: Images per call.
        runtime: Runtime; None: PyTorch for a network, the default runtime for a file.
        provider: Device or execution provider; None: the runtime's default.
        threads: CPU threads; None: one per core.
        trust_engine: Accept an engine that contains code.
        validate: Validate an ONNX file before a runtime reads it; needs the package onnx.

    Returns:
        The candidate with its loading time, first call and peak memory.

    Raises:
        UsageError: The model does not take this batch or image size.
        RunnerError: The model cannot be run.
    """
    preload_library(model, runtime)
    is_file = isinstance(model, Path)
    loaded = load_and_first_call(
        lambda: (exporters.load if validate else runtimes.load)(
            model,
            runtime=runtime,
            provider=provider,
            threads=usable_cores() if threads is None else threads,
            trust_engine=trust_engine,
        ),
        lambda runner: random_images(runner, batch_size, image_size, name=str(model) if is_file else "network"),
        peak=select_memory_meter(model, provider),
    )
    return candidate_from_runner(
        loaded.call,
        loaded.example,
        load_ms=loaded.load_ms if is_file else None,  # a network is loaded already
        first_call_ms=loaded.first_call_ms,
        peak_bytes=loaded.peak_bytes,
    )


def candidate_from_runner(runner: Runner, images: Any, **measurements: Any) -> Candidate[Any]:
    """Create a candidate that calls a loaded model."""
    return Candidate(
        runner,
        images,
        len(images),
        runtime=runner.runtime,
        device=runner.provider,
        precision=runner.precision,
        threads=runner.threads,
        gpu_stages=find_gpu_stages(runner),
        gpu=runner.gpu_uuid,
        **measurements,
    )


def recreate_candidate(
    *,
    file: str | None,
    function: str | None,
    arguments: Mapping[str, Any],
    image_size: Sequence[int] | None,
    batch_size: int,
    runtime: Runtime | None,
    provider: Provider | None,
    threads: int | None,
    trust_engine: bool,
    validate: bool,
) -> Candidate[Any]:
    """Create a candidate from JSON values, in a child process."""
    if file is not None:
        model: Any = Path(file)
    else:
        module, _, name = str(function).partition(":")
        model = getattr(importlib.import_module(module), name)(**arguments)
    size = None if image_size is None else (int(image_size[0]), int(image_size[1]))
    return create_candidate(
        model,
        size,
        batch_size,
        runtime=runtime,
        provider=provider,
        threads=threads,
        trust_engine=trust_engine,
        validate=validate,
    )


def random_images(runner: Runner, batch_size: int, image_size: tuple[int, int] | None, *, name: str) -> Any:
    """Return random images for a model. Raises UsageError if it does not take the batch or image size."""
    smallest, largest = runner.batch_range
    if not smallest <= batch_size <= (largest or batch_size):
        expected = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
        raise UsageError(f"{name}: found batch size {batch_size}, expected {expected}; change --batch-size.")
    size = runner.input_size or image_size
    if size is None:
        raise UsageError(f"{name}: found no image size in the file, expected one; add --image-size HxW.")
    if image_size not in (None, size):
        raise UsageError(f"{name}: found image size {format_size(image_size)}, expected {format_size(size)}.")
    images = np.random.default_rng(0).random((batch_size, runner.channels, *size), dtype=np.float32)
    return to_uint8_images(images) if runner.expects_uint8 else images


def format_size(size: Sequence[int] | None) -> str:
    return "any" if size is None else "x".join(map(str, size))


def preload_library(model: nn.Module | Path, runtime: Runtime | None) -> None:
    """Load a runtime's library before the clock starts, because it would count for the first file only."""
    if not isinstance(model, Path):
        return
    if runtime == "openvino" or model.suffix.lower() == ".xml":
        from exporters.runtimes.openvino import import_openvino, shared_core

        shared_core(import_openvino())
    elif runtime in TENSORRT_RUNTIMES:
        from exporters.tensorrt.libraries import import_library

        import_library(runtime)
    elif model.suffix.lower() != ".engine":
        from exporters.packages import import_package

        import_package("onnxruntime", "ONNX Runtime", "onnxruntime")


def select_memory_meter(model: nn.Module | Path, provider: Provider | None) -> Callable[[Callable[[], object]], Any]:
    """Return a function that measures the peak memory of a call; for files on a GPU nothing measures it."""
    if not isinstance(model, Path):
        import torch

        from profiles.latency.tensor_memory import peak_memory_with_weights

        is_available = provider in (None, "cpu") or (provider == "cuda" and torch.cuda.is_available())
        return partial(peak_memory_with_weights, module=model, device=provider or "cpu") if is_available else call_only
    is_on_gpu = is_nvidia_gpu(provider or "cpu") or model.suffix.lower() == ".engine"
    return call_only if is_on_gpu else peak_resident_memory


def call_only(call: Callable[[], object]) -> None:
    """Run a call without measuring memory."""
    call()


def find_gpu_stages(runner: Runner) -> GpuStages | None:
    """Return a call in three stages for CUDA events; None on a CPU, and for ONNX Runtime, which copies internally."""
    steps: Any = runner
    if runner.provider == "cuda" and runner.runtime in ("torch", "torch-compile"):
        import torch

        event = partial(torch.cuda.Event, enable_timing=True)
        forward = torch.inference_mode()(steps.forward)
        return GpuStages(lambda images: torch.as_tensor(images).to("cuda"), forward, lambda y: y.float().cpu(), event)
    if runner.runtime in TENSORRT_RUNTIMES:
        return GpuStages(steps.copy_in, lambda _: steps.compute(), lambda _: steps.copy_out(), steps.create_event)
    return None


@contextlib.contextmanager
def preserve_threads() -> Iterator[None]:
    """Restore PyTorch's number of threads, which runners change; nothing happens if torch is not imported."""
    torch = sys.modules.get("torch")
    threads = None if torch is None else torch.get_num_threads()
    try:
        yield
    finally:
        if torch is not None and threads is not None:
            torch.set_num_threads(threads)
