"""`compress sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress import api
from compress.cli import options, tables
from compress.cli.output import command_line, emit, print_status


@click.command()
@click.argument("recipe", required=False, type=options.PATH)
@options.teacher_options
@options.allow_bad_teacher
@click.option("--ood", "--unlabeled", "unlabeled", metavar="DATA", help="Unlabeled images, for methods that use them.")
@options.validation
@options.data_root
@click.option("--students", type=options.CommaList(), metavar="NAME[,NAME…]", help="Student architectures.")
@click.option("--methods", type=options.CommaList(), metavar="NAME[,NAME…]", help="Methods of the recipe.")
@click.option("--format", "formats", type=options.CommaList(), metavar="NAME[,…]",
              help="File formats: onnx, openvino, tensorrt, tensorrt-rtx.")  # fmt: skip
@click.option("--precision", "precisions", type=options.CommaList(), metavar="NAME[,…]",
              help="File precisions: fp32, fp16, bf16, int8.")  # fmt: skip
@click.option("--calibration", metavar="DATA|synthetic", help="Images for int8.  [default: from each run]")
@click.option("--seeds", type=options.COUNT, help="Runs per student and method.")
@options.time_limit
@click.option("--steps", type=options.COUNT, help="Training steps of each run (instead of --time-limit).")
@options.device
@click.option("--set", "settings", multiple=True, metavar="METHOD.KEY=VALUE",
              help="A setting of one method (mosaic.bn=10) or of all runs (data.views=1).")  # fmt: skip
@click.option("--prune", type=click.Choice(["none", "median", "asha"]), help="Stop runs that are worse than others.")
@options.limit_options
@options.allow_code
@options.worker_options
@click.option("--out", "output_dir", type=options.PATH, default=Path("runs/sweep"), show_default=True,
              help="Directory of the sweep; one run is STUDENT-METHOD-SEED.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the planned cells, skipped ones and the total time.")
@options.common_options
def sweep(recipe: Path | None, dry_run: bool, as_json: bool, **settings: Any) -> int:
    """Train every student with every method of RECIPE, export and measure every file, and report the trade-off.

    RECIPE is a file or the name of a shipped one. After an interruption the same command continues; finished cells are
    not repeated.

    \b
    Example:
      compress sweep sweep-fashion --steps 2 --students wrn16_1 --methods kd --precision fp32 --out runs/sweep
    """
    if dry_run:
        emit(api.plan_sweep(recipe, **settings, progress=print_status), as_json, tables.sweep_plan)
        return 0
    result = api.sweep(recipe, **settings, command=command_line(), progress=print_status)
    emit(result, as_json, tables.sweep_result)
    return 1 if result.failed else 0
