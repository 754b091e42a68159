"""`compress bench`: latency and throughput of models, in turns, so that their ratios hold on a busy machine too."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.cases import Case, cases_of
from compress.cli.old_options import (
    Target,
    common,
    duration,
    emit,
    in_unit,
    judged,
    model_options,
    record_option,
    refuse_check_without_budget,
    refuse_other_precision,
    refuse_other_versions,
    refuse_over_budget,
    target_options,
    verdict,
)
from compress.cli.output import print_status
from compress.errors import CompressError, UsageError, suggest_nearest
from compress.measure import append_measurement
from compress.units import MILLISECONDS

if TYPE_CHECKING:
    from compress.cli.elsewhere import Found
    from compress.predictor import Predictor
    from exporters.runtimes import Provider, Runtime
    from profiles.latency.benchmark import InterleavedTimings, Latency
    from profiles.latency.scenarios import Scenario, ScenarioSettings

#: what a network can be timed in: PyTorch, and what runs an ONNX file that is made of it for the occasion
NETWORKS: tuple[Runtime, ...] = ("torch", "torch-compile", "onnxruntime", "openvino")
RUNTIMES: tuple[Runtime, ...] = (*NETWORKS, "tensorrt", "tensorrt-rtx")
#: of a network, unless more is asked for; an exported file runs in its own
USUAL: tuple[Runtime, ...] = ("torch", "onnxruntime")
#: ours, and MLPerf's by the names that LoadGen gives them
QUICK = "quick"
SCENARIOS: dict[str, Scenario] = {
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "offline": "Offline",
    "server": "Server",
}
#: seconds of a row, if none are asked for: trtexec's
QUICK_S = 3.0


def parse_sizes(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    """`1,8` -> [1, 8]."""
    parts = value.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"found {value!r}, expected batch sizes such as 1 or 1,8")
    return list(dict.fromkeys(int(part) for part in parts))


def parse_runtimes(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else chosen_of(value, RUNTIMES)


def parse_scenarios(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    """`quick,server` -> [quick, server]; LoadGen's own spelling goes too."""
    ours = {theirs: name for name, theirs in SCENARIOS.items()}
    names = [ours.get(part.strip(), part) for part in value.split(",")]
    return chosen_of(",".join(names), (QUICK, *SCENARIOS))


def chosen_of(value: str, known: tuple[str, ...]) -> list[str]:
    """`a,b` -> [a, b], each of them known."""
    names = [part.strip() for part in value.split(",")]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"found {name!r}, expected some of {','.join(known)}{suggest_nearest(name, known)}")
    return list(dict.fromkeys(names))


def parse_bound(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """`15ms`, `0.1s` or plain milliseconds -> milliseconds."""
    return value if value is None else in_unit(value, MILLISECONDS)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@click.option(
    "--runtimes",
    callback=parse_runtimes,
    metavar="R[,R…]",
    help=f"Of {', '.join(RUNTIMES)}.  [default: {','.join(USUAL)}; of an exported file its own]",
)
@click.option(
    "--provider",
    "--device",
    "provider",
    type=click.Choice(["cpu", "cuda", "tensorrt", "openvino"]),
    help="Where to run; the last two are ONNX Runtime's.  [default: the processor; of an engine the GPU]",
)
@click.option("--threads", type=click.IntRange(min=1), help="Of each runtime, on the CPU.  [default: one a core]")
@click.option(
    "--batch-size", default="1", show_default=True, callback=parse_sizes, metavar="N[,N…]", help="Images a call."
)
@click.option(
    "--duration", callback=duration, metavar="3s", help="Of each row.  [default: 3s; of LoadGen's scenarios 10s]"
)
@click.option(
    "--scenario",
    "scenarios",
    default=QUICK,
    show_default=True,
    callback=parse_scenarios,
    metavar="S[,S…]",
    help=f"Of {QUICK} (ours) and, played by MLPerf's LoadGen, {', '.join(SCENARIOS)}.",
)
@click.option("--mlperf", is_flag=True, help="LoadGen's scenarios as long as a submission: 10 minutes each, or more.")
@click.option(
    "--target-qps",
    type=click.FloatRange(min=0, min_open=True),
    help="Images a second that server asks for.  [default: half of what the model does]",
)
@click.option("--latency-bound", callback=parse_bound, metavar="15ms", help="Of server's answers.  [default: 15ms]")
@target_options
@model_options
@record_option
@common
def bench(
    models: tuple[str, ...],
    runtimes: list[Runtime] | None,
    provider: Provider | None,
    threads: int | None,
    batch_size: list[int],
    duration: float | None,
    scenarios: list[str],
    mlperf: bool,
    target_qps: float | None,
    latency_bound: float | None,
    target: Target | None,
    check: bool,
    record: Path | None,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Time MODELs (folders, checkpoints, exported files, or names of architectures), in turns.

    Images in the host's memory to the answer in the host's memory. A network's ONNX file is made for the occasion.

    \b
    Example:
      compress bench embedded/fashion_wrn16_2 wrn16_1 --batch-size 1,8
    """
    from compress.cli.elsewhere import open_to_send, runtimes_there, time_elsewhere
    from compress.cli.latencies import describe_rows, ratios_of, warn_of_others
    from compress.predictor import load_predictor
    from profiles.latency.machine import system_load

    refuse_check_without_budget(target, check=check)
    refuse_other_versions(target)
    rules = rules_of(scenarios, duration, batch_size, target_qps, latency_bound, mlperf=mlperf)
    before, away = system_load(), target if target is not None and target.host is not None else None
    opened = [open_to_send(one, **wishes) if away else load_predictor(one, untrained=True, **wishes) for one in models]
    chosen = runtimes_there(opened, runtimes) if away else runtimes_here(opened, runtimes, provider)
    seconds = (duration or QUICK_S) if QUICK in scenarios else None
    with tempfile.TemporaryDirectory() as folder:
        cases = cases_of(opened, chosen, batch_size, Path(folder), provider, threads, wishes)
        found = time_elsewhere(away, cases, seconds, rules) if away else time_here(cases, seconds, rules, before)
    if away and provider in (None, "cpu"):
        warn_of_saturation(opened, found.machine)
    rounds = found.rounds
    timed = [*([] if rounds is None else rounds.latencies.items()), *found.played]
    ratios = [] if rounds is None else ratios_of([(case.size, rounds.round_medians[case]) for case in rounds.round_medians])
    results = [
        {"model": models[case.index], **asdict(latency), **found.of(case), **judged(target, latency)}
        for case, latency in timed
    ]
    names = names_of([case.model for case, _ in timed])
    named = [(name, latency) for name, (_, latency) in zip(names, timed, strict=True)]
    refuse_other_precision(target, named)
    warn_of_others([latency for _, latency in timed])
    if record is not None:
        remember_all(record, timed, found, trusted=wishes["trust_pickle"])
    text = "\n".join([describe_rows(named, ratios), *verdict(target, named)])
    printed = {"results": results, "ratios": ratios, "failed": found.failed, "machine": found.machine}
    emit(printed, as_json=as_json, text=text)
    if found.failed:
        raise CompressError(" ".join(found.failed))
    refuse_over_budget(target, named, check=check)


def warn_of_saturation(opened: list[Predictor], machine: dict[str, Any]) -> None:
    """Print a line for each file whose int8 sums can saturate on the processor of another machine."""
    from exporters.cpu import adds_in_32_bits
    from exporters.quantization.saturation import find_saturation

    if adds_in_32_bits(machine["system"].split()[-1], machine["instructions"]):
        return
    for file in [one.file for one in opened if one.file is not None and one.file.suffix.lower() == ".onnx"]:
        if (warning := find_saturation(file)) is not None:
            print_status(f"Warning: {warning}")


def remember_all(folder: Path, timed: list[tuple[Case, Latency]], found: Found, *, trusted: bool) -> None:
    """Add each model's latencies to the records in `folder`, with the machine that they are of."""
    from compress.cli.elsewhere import beside

    machine = {key: value for key, value in found.machine.items() if key != "versions"}
    told = {"machine": machine, "versions": found.machine.get("versions", {})}
    for model in {case.index: case.model for case, _ in timed}.values():
        mine = [latency for case, latency in timed if case.model is model]
        files = [] if model.file is None else [model.file, *beside(model.file, trusted=trusted)]
        size = sum(file.stat().st_size for file in files) or None
        append_measurement(folder, model, latencies=mine, size_bytes=size, **told)


def names_of(models: list[Predictor]) -> list[str]:
    """What the table calls them: in short, and in full where two would be called the same."""
    specs = {model.name: {other.spec for other in models if other.name == model.name} for model in models}
    return [model.name if len(specs[model.name]) == 1 else model.spec for model in models]


def rules_of(
    scenarios: list[str],
    duration: float | None,
    sizes: list[int],
    target_qps: float | None,
    latency_bound: float | None,
    *,
    mlperf: bool,
) -> list[ScenarioSettings]:
    """How LoadGen plays those of the scenarios that are its own. Raises UsageError for what goes with none of them."""
    from profiles.latency.scenarios import DURATION_S, ScenarioSettings

    for option, given, needed in (
        ("--mlperf", mlperf, set(SCENARIOS)),
        ("--target-qps", target_qps is not None, {"server"}),
        ("--latency-bound", latency_bound is not None, {"server"}),
    ):
        if given and not needed & set(scenarios):
            raise UsageError(
                f"{option} goes with --scenario {' or '.join(sorted(needed))}, found {','.join(scenarios)}."
            )
    if "single-stream" in scenarios and 1 not in sizes:
        raise UsageError("--scenario single-stream asks for one image at a time; expected --batch-size 1 among others.")
    return [
        ScenarioSettings(SCENARIOS[name], duration or DURATION_S, mlperf, target_qps, latency_bound)
        for name in scenarios
        if name != QUICK
    ]


def time_here(cases: list[Case], seconds: float | None, rules: list[ScenarioSettings], before: float | None) -> Found:
    """All rows in turns, unless `seconds` of each is None, and by each of the rules.

    Raises CompressError if all of it fails.
    """
    from compress.cli.elsewhere import Found
    from profiles.latency.machine import describe_machine

    rounds = None if seconds is None else time_in_turns(cases, seconds)
    failed: list[str] = []
    played = [pair for rule in rules for pair in play_all(cases, rule, before, failed)]
    if failed and rounds is None and not played:
        raise CompressError(" ".join(failed))
    return Found(rounds, played, describe_machine(), failed)


def time_in_turns(cases: list[Case], seconds: float) -> InterleavedTimings[Case]:
    """Our own measurement, of all rows in turns."""
    from compress.measure import preserve_threads
    from profiles.latency.benchmark import benchmark_interleaved

    with preserve_threads():
        candidates = {case: case.candidate() for case in cases}
        print_status(f"Timing {len(cases)} in turns, about {len(cases) * (seconds + 0.5):.0f} s …")
        return benchmark_interleaved(candidates, duration_s=seconds)


def play_all(cases: list[Case], rules: ScenarioSettings, before: float | None, failed: list[str]) -> list[tuple[Case, Latency]]:
    """A scenario of MLPerf's, of one row after the other. `before`: load of the machine before any of our work.

    A row that fails is told in `failed`, and stops none of the others.
    """
    from profiles.latency.scenarios import ScenarioError, run_scenario

    found = []
    for case in cases:
        if rules.scenario == "SingleStream" and case.size != 1:
            continue  # one image at a time is what it means
        what = f"{case.model.name} in {case.runtime}, batch {case.size}"
        print_status(f"{what}: {rules.scenario}, {'10 minutes or more' if rules.mlperf else f'about {rules.duration_s:g} s'} …")
        try:
            found.append((case, run_scenario(case.opening(), rules, load_before=before)))
        except ScenarioError as error:
            failed.append(f"{what}: {error}")
    return found


def possible(opened: Predictor) -> tuple[Runtime, ...]:
    """What a model can be timed in. An engine is of one runtime, whatever its name says."""
    from exporters.runtimes import SUFFIXES

    if opened.file is None:
        return NETWORKS
    suffix = opened.file.suffix.lower()
    return (opened.runtime,) if suffix == ".engine" else SUFFIXES[suffix]


def chosen_runtimes(opened: Predictor, wanted: list[Runtime] | None, provider: Provider | None) -> list[Runtime]:
    """Those of the runtimes asked for in which a model can be timed; without any asked for the usual ones."""
    if wanted is not None:
        return [name for name in wanted if name in possible(opened)]
    if opened.file is not None:
        return [opened.runtime]
    return ["onnxruntime"] if provider in ("tensorrt", "openvino") else list(USUAL)


def runtimes_here(opened: list[Predictor], wanted: list[Runtime] | None, provider: Provider | None) -> list[list[Runtime]]:
    """For each model the runtimes in which it is timed. Raises UsageError if there is none."""
    chosen = [chosen_runtimes(one, wanted, provider) for one in opened]
    refuse_nothing(opened, chosen, wanted)
    return chosen


def refuse_nothing(opened: list[Predictor], chosen: list[list[Runtime]], wanted: list[Runtime] | None) -> None:
    """Say what is left out. Raises UsageError if that is everything."""
    missing = [
        f"{one.spec}: does not run in {', '.join(name for name in wanted or () if name not in kept)}; "
        f"it can be timed in {', '.join(possible(one))}"
        for one, kept in zip(opened, chosen, strict=True)
        if set(wanted or ()) - set(kept)
    ]
    if not any(chosen):
        raise UsageError(f"{'; '.join(missing)}.")
    for text in missing:
        print_status(f"{text}.")
