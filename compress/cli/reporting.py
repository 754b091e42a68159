"""The report of what lies in folders: their records, and the pictures that their runs drew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli.output import say

if TYPE_CHECKING:
    from profiles.advice import Budget

#: pictures of one kind that are shown of a run, from its beginning to its end
MOST_TIMES = 4
#: grids that methods draw
SHOWN = ("mosaics", "synthetic")


def make_report(
    folder: Path, folders: Sequence[Path], *, title: str | None = None, most: dict[str, Any] | None = None,
    notes: Sequence[str] = (), commands: Sequence[str] = (),
) -> tuple[dict[str, Path], int]:  # fmt: skip
    """The report of all runs in `folders` into `folder`: its files, and how many models are in it.

    `most`: what the options `compress.cli.report.limits` say. Raises RecordError.
    """
    from profiles import overlays
    from profiles.joining import join, runs_in
    from profiles.report import TITLE, write_report

    joined = join(folders)
    places = [place for given in folders for place in runs_in(given) if place.is_dir()]
    pictures, unreadable = overlays.collect(with_inner_runs(places), folder)
    task = joined.records[-1].task if joined.records else ""
    for caption, file in [*joined.pictures.items(), *drawn(places, task).items()]:
        if file.resolve() not in {path.resolve() for path in pictures.values()}:
            pictures[caption] = file.resolve()
    say(f"writing the report into {folder}")
    paths = write_report(
        folder, joined.records, title=title or TITLE, pictures=pictures, notes=[*notes, *unreadable],
        commands=commands, budget=budget_of(most or {}),
    )  # fmt: skip
    return paths, len(joined.models)


def budget_of(most: dict[str, Any]) -> Budget:
    """The limits as the report has them."""
    from profiles.advice import Budget

    size = most.get("max_size")
    return Budget(
        most.get("max_latency"), most.get("max_gflop"), None if size is None else size / 1e6, most.get("max_energy")
    )


def drawn(places: Sequence[Path], task: str) -> dict[str, Path]:
    """The pictures that lie in runs: caption -> file. Of the best one also those from its way."""
    from profiles import overlays

    found = {}
    for place in places:
        for file in sorted([*place.glob("*.png"), *place.glob("*/mosaics.png")]):
            if file.name != overlays.PICTURE:
                shown = file.relative_to(place)
                found[grid_caption(shown if len(places) == 1 else Path(place.name) / shown, task)] = file
    told = [place for place in places if any(place.glob("pictures/*")) or any(place.glob("*/pictures/*"))]
    return found | (over_time(max(told, key=best_score), named=len(places) > 1) if told else {})


def best_score(place: Path) -> float:
    """The best first metric of the runs in a folder."""
    from profiles.record import read_records

    return max((next(iter(record.metrics.values()), 0.0) for record in read_records(place)), default=0.0)


def over_time(place: Path, *, named: bool) -> dict[str, Path]:
    """Pictures that runs drew of themselves on their way, evenly chosen: caption -> file; with the folder's name."""
    kinds: dict[str, list[Path]] = {}
    for file in sorted([*place.glob("pictures/*-*.png"), *place.glob("*/pictures/*-*.png")]):
        of = file.parent.parent.relative_to(place) / file.stem.rpartition("-")[0]
        kinds.setdefault(str(of), []).append(file)
    found = {}
    for kind, files in kinds.items():
        last = len(files) - 1
        for i in dict.fromkeys(round(i * last / (MOST_TIMES - 1)) for i in range(MOST_TIMES)):
            step = int(files[i].stem.rpartition("-")[2])
            found[f"{place.name + ': ' if named else ''}{kind} after {step} steps"] = files[i]
    return found


def grid_caption(picture: Path, task: str) -> str:
    """What a grid that a run showed of itself is."""
    if picture.stem == "pool":
        return f"{picture.with_suffix('')}: images made for each class, a class a row"
    if picture.stem not in SHOWN:
        return picture.stem if picture.parent == Path() else f"{picture.stem} ({picture.parent})"
    what = "with their predicted classes" if task == "segmentation" else "by predicted class"
    beside = ", beside out-of-domain images" if picture.stem == "mosaics" else ""
    return f"{picture.with_suffix('')} {what}{beside}"


def with_inner_runs(places: list[Path]) -> list[Path]:
    """The folders, and those within them that hold runs of their own, as a demo's does."""
    from profiles.overlays import ARRAYS

    found = [inner for place in places for inner in (place, *sorted(f.parent for f in place.glob(f"*/{ARRAYS}")))]
    return list(dict.fromkeys(found))
