"""`compress bench`: latency and throughput of models, in turns, so that their ratios hold on a busy machine too."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.opening import model_options
from compress.cli.options import duration
from compress.cli.output import common, emit, say, table
from compress.errors import UsageError, nearest

if TYPE_CHECKING:
    from compress.cli.opening import Opened
    from exporters.runtime import Provider, Runtime
    from profiles.latency import Candidate, Latency

#: what a network can be timed in: PyTorch, and what runs an ONNX file that is made of it for the occasion
NETWORKS: tuple[Runtime, ...] = ("torch", "torch-compile", "onnxruntime", "openvino")
RUNTIMES: tuple[Runtime, ...] = (*NETWORKS, "tensorrt", "tensorrt-rtx")
#: of a network, unless more is asked for; an exported file runs in its own
USUAL: tuple[Runtime, ...] = ("torch", "onnxruntime")
#: load a core above which other work on the machine is worth a word
BUSY = 0.2


def parse_sizes(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    """`1,8` -> [1, 8]."""
    parts = value.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"found {value!r}, expected batch sizes such as 1 or 1,8")
    return list(dict.fromkeys(int(part) for part in parts))


def parse_runtimes(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    if value is None:
        return None
    names = [part.strip() for part in value.split(",")]
    for name in names:
        if name not in RUNTIMES:
            raise click.BadParameter(f"found {name!r}, expected some of {','.join(RUNTIMES)}{nearest(name, RUNTIMES)}")
    return list(dict.fromkeys(names))


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
    "--duration",
    default="1s",
    show_default=True,
    callback=duration,
    metavar="3s",
    help="Of each row.",
)
@model_options
@common
def bench(
    models: tuple[str, ...],
    runtimes: list[Runtime] | None,
    provider: Provider | None,
    threads: int | None,
    batch_size: list[int],
    duration: float,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Time MODELs (folders, checkpoints, exported files, or names of architectures), in turns.

    Images in the host's memory to the answer in the host's memory. A network's ONNX file is made for the occasion.

    \b
    Example:
      compress bench embedded/fashion_wrn16_2 wrn16_1 --batch-size 1,8
    """
    from compress.cli.measuring import threads_kept
    from compress.cli.opening import open_model
    from profiles.latency import measure_alternated
    from profiles.machine import cores, describe

    opened = [open_model(model, untrained=True, **wishes) for model in models]
    chosen = [chosen_runtimes(one, runtimes, provider) for one in opened]
    refuse_nothing(opened, chosen, runtimes)
    with tempfile.TemporaryDirectory() as folder:
        named: dict[tuple[int, str, int], Candidate[Any]] = {}
        for i, one in enumerate(opened):
            for runtime in chosen[i]:
                for size in batch_size:
                    draft = Path(folder) / f"{i}.onnx"
                    named[i, runtime, size] = candidate_of(
                        one, runtime, size, provider, threads, draft, trusted=wishes["trust_pickle"]
                    )
        say(f"Timing {len(named)} in turns, about {len(named) * (duration + 0.5):.0f} s …")
        with threads_kept():
            timed = measure_alternated(named, duration_s=duration)
    rows = [{"model": models[i], **asdict(latency)} for (i, _, _), latency in timed.items()]
    warn_of_load(list(timed.values()), cores())
    text = describe_rows([(opened[i].name, latency) for (i, _, _), latency in timed.items()])
    emit({"results": rows, "machine": describe()}, as_json=as_json, text=text)


def possible(opened: Opened) -> tuple[Runtime, ...]:
    """What a model can be timed in. An engine is of one runtime, whatever its name says."""
    from exporters.runtime import SUFFIXES

    if opened.file is None:
        return NETWORKS
    suffix = opened.file.suffix.lower()
    return (opened.runtime,) if suffix == ".engine" else SUFFIXES[suffix]


def chosen_runtimes(opened: Opened, wanted: list[Runtime] | None, provider: Provider | None) -> list[Runtime]:
    """Those of the runtimes asked for in which a model can be timed; without any asked for the usual ones."""
    if wanted is not None:
        return [name for name in wanted if name in possible(opened)]
    if opened.file is not None:
        return [opened.runtime]
    return ["onnxruntime"] if provider in ("tensorrt", "openvino") else list(USUAL)


def refuse_nothing(opened: list[Opened], chosen: list[list[Runtime]], wanted: list[Runtime] | None) -> None:
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
        say(f"{text}.")


def candidate_of(
    opened: Opened,
    runtime: Runtime,
    size: int,
    provider: Provider | None,
    threads: int | None,
    draft: Path,
    *,
    trusted: bool,
) -> Candidate[Any]:
    """What to time for a model in a runtime. A network is exported to `draft` for those of files."""
    from compress.cli.measuring import candidate, export_quickly

    if opened.file is not None:
        model = opened.file
    elif runtime in ("torch", "torch-compile"):
        model = opened.network
    else:
        model = draft if draft.exists() else export_quickly(opened, draft)
    return candidate(model, opened.card, size, runtime=runtime, provider=provider, threads=threads, trusted=trusted)


def warn_of_load(timed: list[Latency], cores: int) -> None:
    before = timed[0].load_before
    if before is not None and before > BUSY * cores:
        say(f"The machine was busy (load {before:.1f} on {cores} cores): compare within this table, not with others.")


def describe_rows(timed: list[tuple[str, Latency]]) -> str:
    header = ["model", "runtime", "device", "precision", "threads", "batch"]
    header += ["p50 ms", "p90 ms", "p99 ms", "images/s", "runs"]
    rows = [
        [
            name,
            one.runtime,
            one.device,
            one.precision,
            str(one.threads or "-"),
            str(one.batch_size),
            f"{one.latency_ms_p50:.3f}",
            f"{one.latency_ms_p90:.3f}",
            f"{one.latency_ms_p99:.3f}",
            f"{one.throughput_ips:.1f}",
            str(one.runs),
        ]
        for name, one in timed
    ]
    return table(rows, header)
