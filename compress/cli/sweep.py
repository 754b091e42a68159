"""`compress sweep`: students × methods × precisions × seeds under one budget, and the trade-off between them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.options import duration
from compress.cli.output import common, emit, table
from compress.cli.report import limits
from compress.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from compress.cli.cells import Cell, Hand
    from compress.cli.scheduling import Turn
    from compress.cli.swept import Sweep

#: in the folder of a sweep: what those who work on it share; the part that is the teacher's
SHARED, TEACHER = ".sweep", "teacher"


@click.command()
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("--teacher", metavar="MODEL", help="The trained model, as for `compress distill`.")
@click.option("--ood", metavar="DATA", help="Unlabelled pictures, for the methods that learn from some.")
@click.option("--val", metavar="DATA", help="Labelled images to measure on; never trained on.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Where data sets known by name lie.")
@click.option("--students", metavar="NAME[,NAME…]", help="Architectures; see `compress models`.")
@click.option("--methods", metavar="NAME[,NAME…]", help="See `compress methods`; settings as the recipe has them.")
@click.option("--format", "formats", metavar="NAME[,…]", help="Of the files: onnx, openvino, tensorrt, tensorrt-rtx.")
@click.option("--precision", "precisions", metavar="NAME[,…]", help="Of the files: fp32, fp16, bf16, int8.")
@click.option("--calibration", metavar="DATA|synthetic", help="Images for int8.  [default: those of each run]")
@click.option("--seeds", type=click.IntRange(min=1), help="Runs of each student by each method.")
@click.option("--time-limit", callback=duration, metavar="5m", help="Training time of each run: 90s, 10m, 1.5h.")
@click.option("--steps", type=click.IntRange(min=1), help="Iterations of each run, instead.")
@click.option("--device", metavar="auto|cpu|cuda", help="Where the runs are trained.")
@click.option("--set", "sets", multiple=True, metavar="METHOD.KEY=VALUE", help="As mosaic.bn=10; data.views=1 for all.")
@click.option("--prune", type=click.Choice(["none", "median", "asha"]), help="Stop runs that do worse than others.")
@limits
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time, here.")
@click.option("--join", is_flag=True, help="Only help: take what waits, and leave times and report to the others.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/sweep"),
    show_default=True,
    help="Its folder; a run goes into STUDENT-METHOD-SEED in it.",
)
@click.option("--dry-run", is_flag=True, help="Say what would run and for how long, what cannot and why; and stop.")
@common
def sweep(
    recipe: Path | None, workers: int, join: bool, out: Path, dry_run: bool, as_json: bool, **options: Any
) -> int:
    """Teach every student by every method of RECIPE, write and measure every file, and report the trade-off.

    RECIPE is a file, or the name of a shipped one. The same command goes on after an interruption; what is finished is
    not made again. Given on several machines with one --out on a shared folder, they share the work.

    \b
    Example:
      compress sweep sweep-fashion --steps 2 --students wrn16_1 --methods kd --precision fp32 --out runs/sweep
    """
    from compress.cli.layout import lay_out, read, write_recipe
    from compress.cli.swept import report, time_all

    plan = read(recipe, out, options)
    whole = lay_out(plan, out)
    if dry_run:
        foretell(whole, workers, as_json=as_json)
        return 0
    write_recipe(plan, out)
    failures = carry_out(whole, workers, join=join)
    if join:
        said(whole, failures, {}, as_json=as_json)
        return 1 if failures else 0
    if not whole.timed:
        alone(whole, lambda: time_all(whole))
    said(whole, failures, report(whole, failures), as_json=as_json)
    return 1 if failures else 0


def carry_out(whole: Sweep, workers: int, *, join: bool) -> dict[str, str]:
    """Train and measure all that is not done; what failed, and why. Raises Interrupted after a signal."""
    from compress.cli.presence import Presence
    from compress.cli.scheduling import Board, Part
    from compress.cli.workers import hands, train, work

    parts = [Part(TEACHER, TEACHER, lambda: whole.teacher.done)]
    parts += [Part(cell.name, f"student {cell.student}", partial(is_done, cell)) for cell in whole.cells]
    cells = {cell.name: cell for cell in whole.cells}

    def do(turn: Turn, hand: Hand) -> None:
        if turn.part.name == TEACHER:
            whole.teacher.make(hand)
            turn.finish(None)
        else:
            train(cells[turn.part.name], turn, hand)

    presence = Presence(whole.out / SHARED / "present")
    with presence.shown():
        board = Board(whole.out / SHARED, parts, presence, whole.plan.prune)
        board.refill(anew=True)
        received = work(board, do, hands(workers, whole.plan.budget.device), join=join)
        failures = board.failures()
    if received:
        done = sum(cell.done for cell in whole.cells)
        raise Interrupted(
            received,
            f"stopped by {signal.Signals(received).name}; {done} of {len(whole.cells)} cells are done, in {whole.out}; "
            "the same command goes on.",
        )
    return failures


def is_done(cell: Cell) -> bool:
    return cell.done


def alone(whole: Sweep, act: Callable[[], None]) -> None:
    """Time the files, unless another process does: then wait until it has."""
    import time

    from compress.cli.presence import Presence
    from compress.cli.scheduling import Board, Part
    from compress.cli.workers import POLL_S

    presence = Presence(whole.out / SHARED / "present")
    with presence.shown():
        board = Board(whole.out / SHARED, [Part("times", "times", lambda: whole.timed)], presence)
        board.refill(anew=True)
        while not whole.timed:
            turn = board.take()
            if turn is None:
                board.bury()
                board.refill()
                time.sleep(POLL_S)
                continue
            try:
                act()
            except BaseException:
                turn.leave()
                raise
            turn.finish(None)


def foretell(whole: Sweep, workers: int, *, as_json: bool) -> None:
    """Print every cell with the time that its training will take, and what cannot run."""
    from compress.cli.results import clock
    from compress.rehearsal import estimate

    each: dict[tuple[str, str], float] = {}
    left_out = list(whole.left_out)
    for student, entrant in whole.entrants:
        if all(job.finished for job in entrant.jobs):
            continue
        try:
            limit = whole.plan.budget.time_limit
            each[student, entrant.key] = limit or estimate(entrant.ready).seconds
        except UsageError as error:  # a method may look at the networks before it begins
            left_out.append((student, entrant.name, str(error)))
    cells = []
    for cell in whole.cells:
        state = "stopped" if cell.pruned else "finished" if cell.job.finished else "waiting"
        if state != "waiting" or (cell.student, cell.method) in each:
            seconds = each[cell.student, cell.method] if state == "waiting" else 0.0
            cells.append({
                "cell": cell.name, "student": cell.student, "method": cell.method, "name": cell.job.name,
                "seed": cell.job.seed, "folder": str(cell.job.folder), "state": state, "seconds": seconds,
                "files": [f"{format} {precision}" for format, precision in cell.model.wanted],
            })  # fmt: skip
    waiting = [cell for cell in cells if cell["state"] == "waiting"]
    seconds, files = sum(cell["seconds"] for cell in waiting), sum(len(cell["files"]) for cell in cells)
    result = {
        "cells": cells, "left_out": told_of(left_out), "trainings": len(waiting), "artefacts": files,
        "seconds": seconds, "workers": workers,
    }  # fmt: skip
    rows = [
        [cell["cell"], cell["student"], cell["name"], str(cell["seed"]), cell["state"], clock(cell["seconds"])]
        for cell in cells
    ]
    lines = [table(rows, ["cell", "student", "method", "seed", "state", "training"])]
    lines += ["", *(f"not run: {student} by {name}: {why}" for student, name, why in left_out)] if left_out else []
    lines += ["", f"{len(waiting)} trainings, {files} files of {len(cells)} cells; {clock(seconds)} of training by "
              f"{workers} at a time, without decoding images, starting processes and measuring"]  # fmt: skip
    emit(result, as_json=as_json, text="\n".join(lines))


def told_of(left_out: list[tuple[str, str, str]]) -> list[dict[str, str]]:
    return [{"student": student, "name": name, "reason": why} for student, name, why in left_out]


def said(whole: Sweep, failures: dict[str, str], paths: dict[str, Path], *, as_json: bool) -> None:
    """Print what came of every cell, which model to ship, and where the report is."""
    from compress.cli.cells import facts
    from compress.cli.results import clock

    def state(cell: Cell) -> str:
        if cell.pruned is not None:
            return "stopped"
        return "finished" if cell.done else "failed" if cell.name in failures else "open"

    cells = [facts(cell, state=state(cell), error=failures.get(cell.name)) for cell in whole.cells]
    found = json.loads(paths["json"].read_text()) if paths else {}
    result = {
        "sweep": str(whole.out), "cells": cells, "left_out": told_of(whole.left_out), "failed": failures,
        "summary": found.get("summary"), "best": found.get("best"), "metric": found.get("metric"),
        "caveats": found.get("caveats", []), "report": {kind: str(path) for kind, path in paths.items()},
    }  # fmt: skip
    rows = [
        [
            cell["student"], cell["name"], str(cell["seed"]), cell["state"],
            "-" if cell["score"] is None else f"{cell['score']:.1%}",
            "-" if cell["steps"] is None else str(cell["steps"]),
            "-" if cell["seconds"] is None else clock(cell["seconds"]),
            *(shown(cell, pair) for pair in whole.plan.files),
        ]
        for cell in cells
    ]  # fmt: skip
    header = ["student", "method", "seed", "state", "score", "steps", "training"]
    lines = [table(rows, [*header, *(" ".join(pair) for pair in whole.plan.files)]), ""]
    lines += [f"not run: {student} by {name}: {why}" for student, name, why in whole.left_out]
    lines += [f"failed: {name}: {words}" for name, words in failures.items()]
    if paths:
        lines += [found["summary"], "", str(paths["html"])]
    emit(result, as_json=as_json, text="\n".join(lines))


def shown(cell: dict[str, Any], pair: tuple[str, str]) -> str:
    """What a table says of one file: its score, or that there is none."""
    for one in cell["files"]:
        if (one["format"], one["precision"]) == pair:
            return next((f"{score:.1%}" for score in one["metrics"].values()), "not run")
    return "left out" if any((one["format"], one["precision"]) == pair for one in cell["left_out"]) else "-"
