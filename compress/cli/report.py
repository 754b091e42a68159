"""`compress report`: several runs in one report."""

from __future__ import annotations

from pathlib import Path

import click

from compress.cli.output import common, emit


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to write. [default: DIR if there is one, else report]"
)
@click.option("--title", help="The report's heading.")
@common
def report(folders: tuple[Path, ...], out: Path | None, title: str | None, as_json: bool) -> None:
    """Join the runs in DIR... into one report: report.html (a single file), report.md and report.json.

    A DIR is a folder in which `compress distill`, `compress train` or `compress demo` has left its record.json, or one
    that holds such folders. Pictures that lie in it become part of the report.

    \b
    Example:
      compress report runs/demo --title "Students from photographs"
    """
    import json

    from profiles import overlays
    from profiles.record import join, runs_in
    from profiles.report import TITLE, write_report

    folder = out or (only_folder(folders[0]) if len(folders) == 1 else Path("report"))
    records, known = join(folders)
    places = [place for given in folders for place in runs_in(given) if place.is_dir()]
    pictures, notes = overlays.collect(with_inner_runs(places), folder)
    pictures |= known
    for place in places:
        shown = {path.resolve() for path in pictures.values()}
        beside = [f for f in sorted(place.glob("*.png")) if f.resolve() not in shown and f.name != overlays.PICTURE]
        pictures |= {f"{file.stem} ({place.name})": file.resolve() for file in beside}
    paths = write_report(folder, records, title=title or TITLE, pictures=pictures, notes=notes)
    found = json.loads(paths["json"].read_text())
    kept = {key: found[key] for key in ("summary", "best", "metric", "pareto", "caveats")}
    result = {kind: str(path) for kind, path in paths.items()} | kept | {"models": len(records)}
    text = "\n".join([found["summary"], "", *(str(path) for path in reversed(paths.values()))])
    emit(result, as_json=as_json, text=text)


def with_inner_runs(places: list[Path]) -> list[Path]:
    """The folders, and those within them that hold runs of their own, as a demo's does."""
    from profiles.overlays import ARRAYS

    found = [inner for place in places for inner in (place, *sorted(f.parent for f in place.glob(f"*/{ARRAYS}")))]
    return list(dict.fromkeys(found))


def only_folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent
