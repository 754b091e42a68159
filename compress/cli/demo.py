"""`compress demo`."""

from __future__ import annotations

from typing import Any

import click

from compress import api
from compress.cli import options, tables
from compress.cli.output import command_line, emit, print_status


@click.command()
@click.option("--task", type=click.Choice(["classification", "segmentation"]), default="classification",
              show_default=True, help="Task of the models.")  # fmt: skip
@click.option("--out", "output_dir", type=options.PATH,
              help="Directory of the demo.  [default: runs/demo or runs/demo-segmentation]")  # fmt: skip
@click.option("--time-limit", type=options.DURATION, metavar="240s",
              help="Training time of each student.  [default: by recipe]")  # fmt: skip
@click.option("--quick", is_flag=True, help="Train each student for 20 seconds: checks the workflow, not the quality.")
@click.option("--seed", type=options.SEED, default=0, show_default=True, help="Random seed.")
@options.common_options
def demo(as_json: bool, **settings: Any) -> None:
    """Distill an embedded teacher from photographs with MosaicKD and with plain KD, and write a report.

    \b
    Example:
      compress demo --quick --out runs/quick
    """
    emit(api.run_demo(**settings, command=command_line(), progress=print_status), as_json, tables.demo_result)
