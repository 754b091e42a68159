"""`compress compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress import api
from compress.cli import options, tables
from compress.cli.output import command_line, emit, print_status


@click.command()
@options.teacher_options
@options.allow_bad_teacher
@click.option("--student", metavar="NAME", help="Architecture of every student.  [default: by image size]")
@click.option("--ood", "--unlabeled", "unlabeled", metavar="DATA", help="Unlabeled images, for methods that use them.")
@click.option("--data", "--labeled", "labeled", metavar="DATA", help="Labeled images, for the supervised upper bound.")
@click.option("--val", "--validation", "validation", metavar="DATA", required=True,
              help="Labeled images to measure on; never trained on.")  # fmt: skip
@options.label_order
@options.data_root
@click.option("--methods", default="all", show_default=True, metavar="NAME[,NAME…]", help="See `compress methods`.")
@options.time_limit
@click.option("--steps", type=options.COUNT, help="Training steps of each run (instead of --time-limit).")
@click.option("--same-steps", is_flag=True, help="Give later seeds the step count of the first one.")
@click.option("--seeds", type=options.COUNT, default=3, show_default=True, help="Runs per method.")
@options.batch_size
@options.precision
@options.device
@click.option("--set", "settings", multiple=True, metavar="METHOD.KEY=VALUE",
              help="A setting of one method (mosaic.bn=10) or of all runs (data.views=1).")  # fmt: skip
@click.option("--out", "output_dir", type=options.PATH, default=Path("runs/compare"), show_default=True,
              help="Directory of the runs; run N of a method is METHOD-N.")  # fmt: skip
@options.worker_options
@click.option("--dry-run", is_flag=True, help="Print the planned runs, skipped methods and the total time.")
@options.common_options
def compare(dry_run: bool, as_json: bool, **settings: Any) -> int:
    """Distill the same student with several methods, for the same time or steps, and compare them in one table.

    After an interruption the same command continues; finished runs are not repeated.

    \b
    Example:
      compress compare --teacher embedded/fashion_wrn16_2 --student wrn16_1 --ood embedded/photos \\
          --val embedded/fashion --methods kd,mosaic --time-limit 5s --seeds 2 --batch-size 32 --out runs/compare
    """
    if dry_run:
        emit(api.plan_comparison(**settings, progress=print_status), as_json, tables.comparison_plan)
        return 0
    result = api.compare(**settings, command=command_line(), progress=print_status)
    emit(result, as_json, tables.comparison)
    return 1 if result.failed else 0
