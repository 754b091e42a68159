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
    from torch import Tensor

    from compress.cli.opening import Opened
    from exporters.runtime import Provider
    from profiles.latency import Candidate, Latency

RUNTIMES = ("torch", "onnxruntime")
#: load a core above which other work on the machine is worth a word
BUSY = 0.2


def parse_sizes(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    """`1,8` -> [1, 8]."""
    parts = value.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"found {value!r}, expected batch sizes such as 1 or 1,8")
    return list(dict.fromkeys(int(part) for part in parts))


def parse_runtimes(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    names = [part.strip() for part in value.split(",")]
    for name in names:
        if name not in RUNTIMES:
            raise click.BadParameter(f"found {name!r}, expected some of {','.join(RUNTIMES)}{nearest(name, RUNTIMES)}")
    return list(dict.fromkeys(names))


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@click.option(
    "--runtimes", default=",".join(RUNTIMES), show_default=True, callback=parse_runtimes, help="Separated by commas."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to run.")
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
    runtimes: list[str],
    device: Provider,
    threads: int | None,
    batch_size: list[int],
    duration: float,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Time MODELs (folders, checkpoints, .onnx files, or names of architectures) in PyTorch and ONNX Runtime, in turns.

    Images in the host's memory to logits in the host's memory, float32. A network's ONNX file is made for the occasion.

    \b
    Example:
      compress bench embedded/fashion_wrn16_2 wrn16_1 --batch-size 1,8
    """
    from compress.cli.measuring import threads_kept
    from compress.cli.opening import open_model
    from profiles.latency import measure_alternated
    from profiles.machine import cores, describe

    opened = [open_model(model, untrained=True, **wishes) for model in models]
    with tempfile.TemporaryDirectory() as folder:
        named: dict[tuple[int, str, int], Candidate[Tensor]] = {}
        for i, one in enumerate(opened):
            for runtime in runtimes:
                for size in batch_size:
                    made = candidate_of(one, runtime, size, device, threads, Path(folder) / f"{i}.onnx")
                    if made is not None:
                        named[i, runtime, size] = made
        if not named:
            raise UsageError(f"{', '.join(models)}: an ONNX file does not run in torch; use --runtimes onnxruntime.")
        say(f"Timing {len(named)} in turns, about {len(named) * (duration + 0.5):.0f} s …")
        with threads_kept():
            timed = measure_alternated(named, duration_s=duration)
    rows = [{"model": models[i], **asdict(latency)} for (i, _, _), latency in timed.items()]
    warn_of_load(list(timed.values()), cores())
    text = describe_rows([(opened[i].name, latency) for (i, _, _), latency in timed.items()])
    emit({"results": rows, "machine": describe()}, as_json=as_json, text=text)


def candidate_of(
    opened: Opened, runtime: str, size: int, device: Provider, threads: int | None, draft: Path
) -> Candidate[Tensor] | None:
    """What to time for a model in a runtime; None for an .onnx file in PyTorch. A network is exported to `draft`."""
    from compress.cli.measuring import candidate, export_quickly

    if runtime == "torch":
        model = opened.module
    elif opened.onnx is not None:
        model = opened.onnx
    else:
        model = draft if draft.exists() else export_quickly(opened, draft)
    return None if model is None else candidate(model, opened.card, size, provider=device, threads=threads)


def warn_of_load(timed: list[Latency], cores: int) -> None:
    before = timed[0].load_before
    if before is not None and before > BUSY * cores:
        say(f"The machine was busy (load {before:.1f} on {cores} cores): compare within this table, not with others.")


def describe_rows(timed: list[tuple[str, Latency]]) -> str:
    header = ["model", "runtime", "device", "threads", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "runs"]
    rows = [
        [
            name,
            one.runtime,
            one.device,
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
