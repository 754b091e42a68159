"""Latency of models on this machine or another one; the implementation of `compress.benchmark`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import CompressError, UsageError
from compress.measure import append_measurement, export_for_timing
from compress.predictor import Predictor, load_predictor, predictor_from_runner, spec_name
from compress.targets import (
    BUDGET_PERCENTILES,
    DEFAULT_PERCENTILE,
    WITHOUT_LATENCY,
    Target,
    load_target,
    validate_versions,
)
from compress.units import SECONDS, parse_quantity
from profiles.latency.benchmark import Latency

if TYPE_CHECKING:
    from compress.models.model_input import ModelInput
    from exporters.runtimes import Provider, Runtime
    from profiles.latency.cases import BenchmarkCase, CaseTimings
    from profiles.latency.scenarios import ScenarioSettings

Progress = Callable[[str], None]
#: runtimes of a network; all but torch run a temporary ONNX file
NETWORK_RUNTIMES = ("torch", "torch-compile", "onnxruntime", "openvino")
DEFAULT_RUNTIMES = ("torch", "onnxruntime")
QUICK, QUICK_SECONDS = "quick", 3.0
#: scenario -> LoadGen's name
SCENARIOS = {
    "single-stream": "SingleStream", "multi-stream": "MultiStream", "offline": "Offline", "server": "Server",
}  # fmt: skip
#: arguments that a target may set -> its field
TARGET_FIELDS = {
    "runtimes": "runtime", "provider": "provider", "threads": "threads", "batch_sizes": "batch_size",
    "duration": "duration", "scenarios": "scenario",
}  # fmt: skip


@dataclass(frozen=True)
class BenchmarkRow(Latency):
    """Latency of a model in a runtime at a batch size."""

    model: str = ""  #: as given
    name: str = ""  #: name in tables
    sha256: str | None = None  #: of the file that was measured on another machine
    latency_budget_ms: float | None = None  #: budget of the target
    budget_percentile: str | None = None  #: percentile that is compared with the budget: "p90" or "p99"
    within_budget: bool | None = None  #: whether that percentile is within the budget
    budget_summary: str = ""  #: the comparison in one line


@dataclass(frozen=True)
class LatencyRatioRow:
    """Latency of one row relative to another of the same batch size."""

    result: int  #: index in `results`
    against: int  #: index in `results`
    p50: float  #: median over the rounds of the ratio of medians
    low: float  #: smallest ratio of a round
    high: float  #: largest ratio of a round
    rounds: int  #: rounds of both


@dataclass(frozen=True)
class BenchmarkResult:
    """Latencies of models, interleaved, and their ratios."""

    results: list[BenchmarkRow]  #: one row per model, runtime, batch size and scenario
    inputs: dict[str, ModelInput]  #: model, as given -> how it reads images, and where these facts come from
    ratios: list[LatencyRatioRow]  #: each quick row relative to the ones before it
    failed: list[str]  #: scenarios of LoadGen that failed
    machine: dict[str, Any]  #: machine that was measured, as in `compress doctor`

    def raise_failures(self, *, check_budget: bool = False) -> None:
        """Raise CompressError if a scenario failed or, with `check_budget`, if a row exceeds its budget."""
        if self.failed:
            raise CompressError(" ".join(self.failed))
        if not check_budget:
            return
        checked = [row for row in self.results if row.within_budget is not None]
        if not checked:
            raise CompressError("--check: found no latency to compare with the budget.")
        exceeded = [row.budget_summary for row in checked if not row.within_budget]
        if exceeded:
            raise CompressError("; ".join(exceeded) + ".")


def benchmark(
    models: Any, *, target: str | None, require_budget: bool, mlperf: bool, target_qps: float | None,
    latency_bound_ms: float | None, record: Path | None, progress: Progress, runtimes: Any, provider: Any,
    threads: int | None, batch_sizes: Any, duration: float | None, scenarios: Any, **overrides: Any,
) -> BenchmarkResult:  # fmt: skip
    """Time models; see `compress.benchmark`."""
    from profiles.latency.cases import benchmark_cases
    from profiles.latency.machine import system_load

    chosen = None if target is None else load_target(target)
    if require_budget and (chosen is None or chosen.latency_budget_ms is None):
        raise UsageError("--check: needs a latency budget; give a --target FILE.yaml with latency_budget_ms.")
    validate_versions(chosen)
    given = {"runtimes": runtimes, "provider": provider, "threads": threads, "batch_sizes": batch_sizes,
             "duration": duration, "scenarios": scenarios}  # fmt: skip
    given = {**fill_from_target(chosen), **{key: value for key, value in given.items() if value is not None}}
    sizes, names = given.get("batch_sizes", (1,)), given.get("scenarios", (QUICK,))
    settings = scenario_settings(names, given.get("duration"), sizes, target_qps, latency_bound_ms, mlperf=mlperf)
    seconds = given.get("duration", QUICK_SECONDS) if QUICK in names else None
    load_before, address = system_load(), None if chosen is None else chosen.address
    specs = [models] if isinstance(models, str | Path) or not isinstance(models, Sequence) else list(models)
    load = load_remote_predictor if address else load_local_predictor
    predictors = [load(spec, progress, overrides) for spec in specs]
    selected = select_runtimes(predictors, given, progress, is_remote=address is not None)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cases = create_cases(predictors, specs, selected, sizes, Path(folder), given, overrides)
        if address is None:
            timings = benchmark_cases(
                list(cases), duration_s=seconds, scenarios=settings, load_before=load_before, progress=progress
            )
        else:
            from profiles.latency.remote import benchmark_remote

            timings = benchmark_remote(
                address, list(cases), duration_s=seconds, scenarios=settings,
                precision=chosen and chosen.precision, versions=chosen.versions if chosen else {}, progress=progress,
            )  # fmt: skip
    if address and given.get("provider") in (None, "cpu"):
        warn_of_saturation(predictors, timings.machine, progress)
    result = create_result(timings, cases, predictors, specs, chosen)
    validate_precision(chosen, result.results)
    warn_of_load(result.results, progress)
    if record is not None:
        record_latencies(record, timings, cases, predictors, trust_engine=bool(overrides.get("trust_pickle")))
    return result


def fill_from_target(target: Target | None) -> dict[str, Any]:
    """Return the arguments that a target sets."""
    if target is None:
        return {}
    values = {argument: getattr(target, field) for argument, field in TARGET_FIELDS.items()}
    if target.duration is not None:
        values["duration"] = parse_quantity(target.duration, SECONDS)
    for argument in ("runtimes", "scenarios"):
        values[argument] = None if values[argument] is None else (values[argument],)
    return {argument: value for argument, value in values.items() if value is not None}


def scenario_settings(
    names: Sequence[str], duration: float | None, sizes: Sequence[int], target_qps: float | None,
    latency_bound_ms: float | None, *, mlperf: bool,
) -> list[ScenarioSettings]:  # fmt: skip
    """Return the settings of LoadGen's scenarios. Raises UsageError for options without effect."""
    from profiles.latency.scenarios import DURATION_S, ScenarioSettings

    for option, is_given, needed in (
        ("--mlperf", mlperf, set(SCENARIOS)),
        ("--target-qps", target_qps is not None, {"server"}),
        ("--latency-bound", latency_bound_ms is not None, {"server"}),
    ):
        if is_given and not needed & set(names):
            expected = " or ".join(sorted(needed))
            raise UsageError(f"{option}: found --scenario {','.join(names)}, expected {expected}.")
    if "single-stream" in names and 1 not in sizes:
        raise UsageError("--scenario single-stream: found no batch size 1; give --batch-size 1 among others.")
    return [
        ScenarioSettings(SCENARIOS[name], duration or DURATION_S, mlperf, target_qps, latency_bound_ms)  # pyright: ignore[reportArgumentType]
        for name in names
        if name != QUICK
    ]


def load_local_predictor(spec: Any, progress: Progress, overrides: dict[str, Any]) -> Predictor:
    return load_predictor(spec, untrained=True, progress=progress, **overrides)


def load_remote_predictor(spec: Any, progress: Progress, overrides: dict[str, Any]) -> Predictor:
    """Load a model for another machine; an exported file is described without running it here."""
    from compress.models.overrides import ModelOverrides
    from exporters.model_info import read_model_info

    path = Path(spec).expanduser() if isinstance(spec, str | Path) else Path()
    if path.suffix.lower() not in (".onnx", ".engine"):
        return load_local_predictor(spec, progress, overrides)
    arguments = {key: value for key, value in overrides.items() if key != "arch"}
    model_overrides = ModelOverrides(architecture=overrides.get("arch"), **arguments)
    info: Any = read_model_info(path, trust_engine=model_overrides.trust_pickle)
    predictor = predictor_from_runner(info, str(spec), path, model_overrides)
    progress(predictor.input.summary)
    return predictor


def possible_runtimes(predictor: Predictor, *, is_remote: bool) -> tuple[Runtime, ...]:
    """Return the runtimes of a model. An engine runs in one runtime only, whatever its name says."""
    from exporters.runtimes import SUFFIXES

    if predictor.file is None:
        return SUFFIXES[".onnx"] if is_remote else NETWORK_RUNTIMES
    suffix = predictor.file.suffix.lower()
    return (predictor.runtime,) if suffix == ".engine" else SUFFIXES[suffix]


def default_runtimes(predictor: Predictor, provider: Provider | None, *, is_remote: bool) -> list[Runtime]:
    if is_remote:
        return [possible_runtimes(predictor, is_remote=True)[0]]
    if predictor.file is not None:
        return [predictor.runtime]
    return ["onnxruntime"] if provider in ("tensorrt", "openvino") else list(DEFAULT_RUNTIMES)


def select_runtimes(
    predictors: Sequence[Predictor], given: dict[str, Any], progress: Progress, *, is_remote: bool
) -> list[list[Runtime]]:
    """Return the runtimes of each model. Raises UsageError if no model runs in the requested ones."""
    requested, provider = given.get("runtimes"), given.get("provider")
    selected, skipped = [], []
    for predictor in predictors:
        possible = possible_runtimes(predictor, is_remote=is_remote)
        if requested is None:
            selected.append(default_runtimes(predictor, provider, is_remote=is_remote))
            continue
        selected.append([name for name in requested if name in possible])
        if missing := [name for name in requested if name not in possible]:
            where = " on another machine" if is_remote else ""
            skipped.append(
                f"{predictor.spec}: cannot run in {', '.join(missing)}{where}; expected some of {', '.join(possible)}"
            )
    if not any(selected):
        raise UsageError(f"{'; '.join(skipped)}.")
    for text in skipped:
        progress(f"{text}.")
    return selected


def create_cases(
    predictors: Sequence[Predictor], specs: Sequence[Any], selected: Sequence[Sequence[Runtime]],
    sizes: Sequence[int], folder: Path, given: dict[str, Any], overrides: dict[str, Any],
) -> dict[BenchmarkCase, int]:  # fmt: skip
    """Return every case with the index of its model; networks are exported to `folder` for file runtimes."""
    from profiles.latency.cases import BenchmarkCase, NetworkSource

    cases: dict[BenchmarkCase, int] = {}
    for index, (predictor, runtimes) in enumerate(zip(predictors, selected, strict=True)):
        for runtime in runtimes:
            source = None
            if predictor.file is not None:
                model: Any = predictor.file.absolute()
            elif runtime in ("torch", "torch-compile"):
                model = predictor.network
                if isinstance(specs[index], str | Path):
                    source = NetworkSource(
                        "compress.benchmarking:load_network", {"spec": str(specs[index]), **overrides}
                    )
            else:
                model = folder / f"{index}.onnx"
                model = model if model.exists() else export_for_timing(predictor, model)
            for size in sizes:
                case = BenchmarkCase(
                    predictor.name, model, predictor.card.image_size, size, runtime, given.get("provider"),
                    given.get("threads"), trust_engine=bool(overrides.get("trust_pickle")),
                    network_source=source,
                )  # fmt: skip
                cases[case] = index
    return cases


def load_network(spec: str, **overrides: Any) -> Any:
    """Load a network in a child process; the arguments come from JSON."""
    size = overrides.get("image_size")
    overrides["image_size"] = None if size is None else tuple(size)
    return load_predictor(spec, untrained=True, **overrides).network


def create_result(
    timings: CaseTimings, cases: dict[BenchmarkCase, int], predictors: Sequence[Predictor], specs: Sequence[Any],
    target: Target | None,
) -> BenchmarkResult:  # fmt: skip
    """Return rows and ratios of all measurements."""
    rows = []
    names = unique_names([predictors[cases[case]] for case, _ in timings.latencies])
    for (case, latency), name in zip(timings.latencies, names, strict=True):
        rows.append(
            BenchmarkRow(
                **vars(latency), model=spec_name(specs[cases[case]]), name=name, sha256=timings.sha256.get(case),
                **compare_with_budget(target, name, latency),
            )
        )  # fmt: skip
    inputs = {predictor.spec: predictor.input for predictor in predictors}
    return BenchmarkResult(
        rows, inputs, compute_ratios(timings), [failure.message for failure in timings.failures], timings.machine
    )


def unique_names(predictors: Sequence[Predictor]) -> list[str]:
    """Return short names; two models with the same short name get their full spec."""
    specs: dict[str, set[str]] = {}
    for predictor in predictors:
        specs.setdefault(predictor.name, set()).add(predictor.spec)
    return [one.name if len(specs[one.name]) == 1 else one.spec for one in predictors]


def compute_ratios(timings: CaseTimings) -> list[LatencyRatioRow]:
    """Return the ratio of each quick row to each row before it with the same batch size."""
    from profiles.latency.benchmark import pairwise_ratios

    if timings.interleaved is None:
        return []
    cases = list(timings.interleaved.round_medians)
    ratios = pairwise_ratios({i: timings.interleaved.round_medians[case] for i, case in enumerate(cases)})
    return [
        LatencyRatioRow(ours, theirs, **asdict(ratio))
        for (ours, theirs), ratio in ratios.items()
        if cases[ours].batch_size == cases[theirs].batch_size
    ]


def compare_with_budget(target: Target | None, name: str, latency: Latency) -> dict[str, Any]:
    """Return the budget fields of a row; nothing without a budget, and for Offline, which has no latency."""
    if target is None or target.latency_budget_ms is None or latency.scenario == WITHOUT_LATENCY:
        return {}
    percentile = BUDGET_PERCENTILES.get(latency.scenario, DEFAULT_PERCENTILE)
    value, budget = getattr(latency, f"latency_ms_{percentile}"), target.latency_budget_ms
    verb = "is within" if value <= budget else "exceeds"
    row = f"{name}, {latency.runtime}, batch {latency.batch_size}"
    return {
        "latency_budget_ms": budget, "budget_percentile": percentile, "within_budget": value <= budget,
        "budget_summary": f"{row}: {percentile} {value:.3f} ms {verb} the budget of {target.name}, {budget:g} ms",
    }  # fmt: skip


def validate_precision(target: Target | None, rows: Sequence[BenchmarkRow]) -> None:
    """Raise CompressError if a model ran in another precision than the target requires."""
    for row in rows:
        if target is not None and target.precision not in (None, row.precision):
            raise CompressError(
                f"{row.name}: found precision {row.precision} in {row.runtime}, expected {target.precision} "
                f"(target {target.name})."
            )


def warn_of_saturation(predictors: Sequence[Predictor], machine: dict[str, Any], progress: Progress) -> None:
    """Report int8 files whose sums can saturate on the processor of another machine."""
    from exporters.cpu import adds_in_32_bits
    from exporters.onnx_validation import read_model
    from exporters.quantization.saturation import find_saturation

    if adds_in_32_bits(machine["system"].split()[-1], machine["instructions"]):
        return
    for predictor in predictors:
        if predictor.file is not None and predictor.file.suffix.lower() == ".onnx":
            warning = find_saturation(read_model(predictor.file), predictor.file)
            if warning is not None:
                progress(f"Warning: {warning}")


def warn_of_load(rows: Sequence[BenchmarkRow], progress: Progress) -> None:
    """Report other work on the machine in one line."""
    warnings = [row.load_warning for row in rows if row.load_warning]
    if warnings:
        count = "" if len(rows) == 1 else f" ({len(warnings)} of {len(rows)} rows.)"
        progress(f"{warnings[0]}{count} Compare rows of this table only.")


def record_latencies(
    record_dir: Path, timings: CaseTimings, cases: dict[BenchmarkCase, int], predictors: Sequence[Predictor], *,
    trust_engine: bool,
) -> None:  # fmt: skip
    """Add the latencies of each model to the records, with the machine that was measured."""
    from exporters.model_info import read_model_info

    machine = {key: value for key, value in timings.machine.items() if key != "versions"}
    versions = timings.machine.get("versions", {})
    for index, predictor in enumerate(predictors):
        latencies = [latency for case, latency in timings.latencies if cases[case] == index]
        if not latencies:
            continue
        size = None
        if predictor.file is not None:
            is_xml = predictor.file.suffix.lower() == ".xml"
            info = None if is_xml else read_model_info(predictor.file, trust_engine=trust_engine)
            companions = (predictor.file.with_suffix(".bin"),) if info is None else info.companion_files
            size = sum(file.stat().st_size for file in (predictor.file, *companions))
        append_measurement(
            record_dir, predictor, latencies=latencies, size_bytes=size, machine=machine, versions=versions
        )
