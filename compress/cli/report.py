"""`compress report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress import api
from compress.cli import options, tables
from compress.cli.output import emit, print_status


@click.command()
@click.argument("run_dirs", metavar="DIR...", nargs=-1, required=True, type=options.PATH)
@click.option("--out", "output_dir", type=options.PATH,
              help="Directory of the report.  [default: DIR if there is one, else report]")  # fmt: skip
@click.option("--title", help="Title of the report.")
@options.limit_options
@options.common_options
def report(run_dirs: tuple[Path, ...], as_json: bool, **settings: Any) -> None:
    """Combine the runs in DIR... into one report: report.html (a single file), report.md, report.csv and report.json.

    A DIR contains the records of `compress distill`, `train`, `demo`, `sweep` or of --record, or directories with such
    records. Runs that differ only in the seed count as one model. Images in the runs become part of the report. With
    limits the report recommends a model within them.

    \b
    Example:
      compress report runs/demo --max-latency 2 --title "Students from photographs"
    """
    emit(api.report(run_dirs, **settings, progress=print_status), as_json, tables.report_result)
