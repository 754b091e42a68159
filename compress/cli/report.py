"""`compress report`: any number of runs in one report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.old_options import byte_size, common, emit

LIMITS = [
    click.option("--max-latency", type=click.FloatRange(min=0, min_open=True), metavar="MS",
                 help="The model to ship takes at most so long: median of a batch, where most were timed."),
    click.option("--max-gflop", type=click.FloatRange(min=0, min_open=True), metavar="GFLOP",
                 help="And so much arithmetic an image."),
    click.option("--max-size", callback=byte_size, metavar="1MB", help="And a file of so many bytes."),
    click.option("--max-energy", type=click.FloatRange(min=0, min_open=True), metavar="MJ",
                 help="And so many millijoules an image."),
]  # fmt: skip


def limits(function: Any) -> Any:
    """Options for what the model that is advised may cost."""
    for option in reversed(LIMITS):
        function = option(function)
    return function


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to write. [default: DIR if there is one, else report]"
)
@click.option("--title", help="The report's heading.")
@limits
@common
def report(folders: tuple[Path, ...], out: Path | None, title: str | None, as_json: bool, **most: Any) -> None:
    """Join the runs in DIR... into one report: report.html (a single file), report.md, report.csv and report.json.

    A DIR is a folder with the records of `compress distill`, `train`, `demo`, `sweep` or of --record, or one that holds
    such folders. Runs that only a seed tells apart count as one model. Pictures that lie in them become part of the
    report. With limits the report says which model to ship within them.

    \b
    Example:
      compress report runs/demo --max-latency 2 --title "Students from photographs"
    """
    from dataclasses import asdict

    from profiles.report.build import TITLE, write_run_report
    from profiles.report.recommendation import Limits

    folder = out or (only_folder(folders[0]) if len(folders) == 1 else Path("report"))
    size_mb = None if most["max_size"] is None else most["max_size"] / 1e6
    limits = Limits(most["max_latency"], most["max_gflop"], size_mb, most["max_energy"])
    result = write_run_report(folder, folders, title=title or TITLE, limits=limits)
    text = "\n".join([result.summary, "", *(str(path) for path in reversed(result.files.values()))])
    emit(asdict(result), as_json=as_json, text=text)


def only_folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent
