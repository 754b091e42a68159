"""`compress bench`."""

from __future__ import annotations

from typing import Any

import click

from compress import api
from compress.cli import latency_tables, options
from compress.cli.output import emit, print_status

#: MLPerf's names of scenarios
LOADGEN_NAMES = {
    "SingleStream": "single-stream", "MultiStream": "multi-stream", "Offline": "offline", "Server": "server",
}  # fmt: skip


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@click.option("--runtimes", type=options.CommaList(api.RUNTIMES), metavar="R[,R…]",
              help=f"{', '.join(api.RUNTIMES)}.  [default: torch,onnxruntime; a file's own]")  # fmt: skip
@click.option("--provider", "--device", "provider", type=click.Choice(api.PROVIDERS),
              help="Device or ONNX Runtime provider.  [default: cpu; the GPU for an engine]")  # fmt: skip
@click.option("--threads", type=options.COUNT, help="CPU threads of each runtime.  [default: one per core]")
@click.option("--batch-size", "batch_sizes", type=options.CommaList(item=options.COUNT), metavar="N[,N…]",
              help="Images per call.  [default: 1]")  # fmt: skip
@click.option("--duration", type=options.DURATION, metavar="3s",
              help="Time per row.  [default: 3s; 10s for LoadGen's scenarios]")  # fmt: skip
@click.option("--scenario", "scenarios", type=options.CommaList(api.SCENARIOS, aliases=LOADGEN_NAMES), metavar="S[,S…]",
              help=f"quick, or MLPerf LoadGen's {', '.join(api.SCENARIOS[1:])}.  [default: quick]")  # fmt: skip
@click.option("--mlperf", is_flag=True, help="Run LoadGen's scenarios at submission length (10 minutes or more each).")
@click.option("--target-qps", type=options.POSITIVE,
              help="Images per second of the server scenario.  [default: half of the throughput]")  # fmt: skip
@click.option("--latency-bound", "latency_bound_ms", type=options.LATENCY, metavar="15ms",
              help="Latency bound of the server scenario.  [default: 15ms]")  # fmt: skip
@click.option("--target", metavar="ssh://HOST|NAME|FILE.yaml",
              help="Measure on another machine, or for a named target; see docs/targets.md.")  # fmt: skip
@click.option("--check", is_flag=True, help="Exit code 1 if a row exceeds the latency budget of the target.")
@options.model_options()
@options.record_option
@options.common_options
def bench(models: tuple[str, ...], check: bool, as_json: bool, **settings: Any) -> None:
    """Measure latency and throughput of MODELs (directories, checkpoints, exported files or architectures).

    Calls are interleaved, so that all models see the same system load. The time covers images in host memory to outputs
    in host memory. A temporary ONNX file is exported for networks that run in a file runtime.

    \b
    Example:
      compress bench embedded/fashion_wrn16_2 wrn16_1 --batch-size 1,8
    """
    result = api.benchmark(models, require_budget=check, **settings, progress=print_status)
    emit(result, as_json, latency_tables.benchmark)
    result.raise_failures(check_budget=check)
