"""`compress compare`: several methods under one budget, in one table."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.options import duration
from compress.cli.output import common, emit, say, table
from compress.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from compress.cli.entrants import Field, Job
    from compress.models.card import Card
    from compress.models.network import Network
    from compress.plan import Plan
    from profiles.contest import Contest, Entry
    from profiles.record import Record

#: options of `distill` about the teacher
TEACHER = ("teacher", "teacher_arch", "trust_pickle")
#: what is compared, and what not, said in every table
RULES = (
    "Compared is the student at the end of each run. The best on the way was chosen on the images that it is measured "
    "on, and so it flatters, the more the more a run wavers.",
    "Time is that of training, evaluations and what a method finds out before its first step included; decoding images "
    "and starting the process are not.",
    "Images a second are steps times batch size over time; a step of some methods takes several batches.",
    "Memory is what training took above what the process held before; on a GPU all that was allocated.",
)


@click.command()
@click.option("--teacher", metavar="MODEL", required=True, help="The trained model, as for `compress distill`.")
@click.option("--teacher-arch", metavar="NAME", help="Architecture of a bare state dict, where it is not recognised.")
@click.option("--classes", type=click.IntRange(min=2), help="Class count, checked against the teacher's.")
@click.option("--trust-pickle", is_flag=True, help="Load a full pickle or TorchScript file. It can run any code.")
@click.option("--student", metavar="NAME", help="Architecture of every student.  [default: one that suits the images]")
@click.option("--ood", metavar="DATA", help="Unlabelled pictures, for the methods that learn from some.")
@click.option("--data", metavar="DATA", help="Labelled images, for the methods that need them: an upper yardstick.")
@click.option("--val", metavar="DATA", required=True, help="Labelled images to measure on; never trained on.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Where data sets known by name lie.")
@click.option("--methods", default="all", show_default=True, metavar="NAME[,NAME…]", help="See `compress methods`.")
@click.option("--time-limit", callback=duration, metavar="5m", help="Training time of each run: 90s, 10m, 1.5h.")
@click.option("--steps", type=click.IntRange(min=1), help="Iterations of each run, instead.")
@click.option("--same-steps", is_flag=True, help="Seeds after the first make its steps, however long they take.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each method.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images a batch.  [default: each method's own]")
@click.option("--precision", type=click.Choice(["auto", "32", "bf16", "16"]), help="[default: auto]")
@click.option("--device", metavar="auto|cpu|cuda", help="[default: auto]")
@click.option("--set", "sets", multiple=True, metavar="METHOD.KEY=VALUE", help="As mosaic.bn=10; data.views=1 for all.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/compare"),
    show_default=True,
    help="Run N of a method goes into METHOD-N in it.",
)
@click.option("--dry-run", is_flag=True, help="Say what would run, what cannot and why, and how long it takes.")
@common
def compare(
    methods: str, seeds: int, same_steps: bool, sets: tuple[str, ...], out: Path, dry_run: bool, as_json: bool,
    **options: Any,
) -> int:  # fmt: skip
    """Distil the same student by several methods, for the same time or steps, and put them into one table.

    The same command goes on after an interruption; what is finished is not made again.

    \b
    Example:
      compress compare --teacher embedded/fashion_wrn16_2 --student wrn16_1 --ood embedded/photos \\
          --val embedded/fashion --methods kd,mosaic --time-limit 5s --seeds 2 --batch-size 32 --out runs/compare
    """
    from compress.cli.entrants import Shared, choose, enter, route
    from compress.plan import default_student, load_teachers

    if (options["time_limit"] is None) == (options["steps"] is None):
        raise UsageError("expected one of --time-limit and --steps: the budget that every run has.")
    if same_steps and options["time_limit"] is None:
        raise UsageError(
            "--same-steps: with --steps all runs have the same anyway; leave it out, or give --time-limit."
        )
    chosen = choose(methods)
    sets, own = route(sets, chosen)
    teacher = {name: options.pop(name) for name in TEACHER}
    plan = Shared(options, teacher, sets).plan()
    (net, card), *_ = load_teachers(plan)
    options["student"] = options["student"] or default_student(card.task, card.image_size)
    field = enter(chosen, Shared(options, teacher, sets), own, range(seeds), out, net, card, follow=same_steps)
    if not field.entrants:
        raise UsageError(f"no method can run here: {'; '.join(f'{name}: {why}' for name, why in field.left_out)}.")
    look_at_data(plan)
    if dry_run:
        foretell(field, options, as_json=as_json)
        return 0
    return contend(field, plan, teacher_record(net, card, plan, out), out, as_json=as_json)


def look_at_data(plan: Plan) -> None:
    """Raises UsageError where data that was named is not there, before a run finds out."""
    from compress.data import open_images

    open_images(plan.data.validation or "", root=plan.data.root, split="val", labelled=True)
    for spec, labelled in ((plan.data.unlabelled, False), (plan.data.labelled, True)):
        if spec is not None:
            open_images(spec, root=plan.data.root, split="train", labelled=labelled)


def foretell(field: Field, options: dict[str, Any], *, as_json: bool) -> None:
    """Print what would run and for how long, and what cannot."""
    from compress.cli.results import clock
    from compress.rehearsal import estimate

    rows, methods, left_out = [], [], list(field.left_out)
    for entrant in field.entrants:
        left = sum(not job.finished for job in entrant.jobs)
        try:
            each = options["time_limit"] or (estimate(entrant.ready).seconds if left else 0.0)
        except UsageError as error:  # a method may look at the networks before it begins
            left_out.append((entrant.name, str(error)))
            continue
        methods.append({
            "method": entrant.key, "name": entrant.name, "learns_from": entrant.learns_from,
            "settings": entrant.settings, "runs": left, "finished": len(entrant.jobs) - left,
            "seconds_per_run": each, "seconds": left * each,
        })  # fmt: skip
        rows.append([entrant.name, str(left), clock(each), clock(left * each), ", ".join(entrant.learns_from)])
    seconds = sum(one["seconds"] for one in methods)
    runs = sum(one["runs"] for one in methods)
    lines = [table(rows, ["method", "runs", "each", "all", "learns from"]) if rows else "nothing can run here"]
    lines += ["", *(f"not compared: {name}: {why}" for name, why in left_out)] if left_out else []
    lines += ["", f"{runs} runs, {clock(seconds)} of training, without decoding images and starting processes"]
    result = {
        "methods": methods, "left_out": [{"name": name, "reason": why} for name, why in left_out], "runs": runs,
        "seconds": seconds,
    }  # fmt: skip
    emit(result, as_json=as_json, text="\n".join(lines))


def teacher_record(net: Network, card: Card, plan: Plan, out: Path) -> Record:
    """The teacher's score on the same images; measured once, and kept in a folder of its own."""
    from compress.engine.place import open_place
    from compress.engine.player import Frozen
    from compress.sources import cache_folder, scorer, validation_images
    from profiles.record import Record, append_records, holds_records, read_records

    folder, asked = out / "teacher", {"teacher": plan.teachers[0].model, "val": plan.data.validation}
    cached = validation_images(
        plan.data.validation or "", card, root=plan.data.root, folder=cache_folder(plan.data.cache),
        max_bad=plan.data.max_bad, say=say,
    )  # fmt: skip
    if holds_records(folder):
        known = read_records(folder)[-1]
        if known.run == asked:
            return known
    say(f"measuring the teacher on {len(cached)} images")
    place = open_place(plan.pace.device, "32")
    metrics = scorer(cached, card, place)(Frozen(net, place))
    net.cpu()
    record = Record(
        f"Teacher {card.architecture}", "teacher", architecture=card.architecture,
        task=card.task, image_size=card.image_size, metrics=metrics, run=asked,
    )  # fmt: skip
    append_records(folder, [record])
    return record


def contend(field: Field, plan: Plan, teacher: Record, out: Path, *, as_json: bool) -> int:
    """Make the runs and the table; the exit code: 1 where a run failed. Raises Interrupted after a signal."""
    from compress.cli.sequence import carry_out
    from profiles.standings import standings, write_contest

    failed, received = carry_out(field.jobs)
    contest = gather(field, plan, teacher, failed)
    paths, numbers = write_contest(out, contest)
    done = len(contest.records)
    if received:
        raise Interrupted(
            received,
            f"stopped by {signal.Signals(received).name}; {done} of {len(field.jobs)} runs are finished, in "
            f"{paths['html']}; the same command goes on.",
        )
    shown = standings(contest)
    lines = [table(shown.rows, shown.header) if shown else "no run has finished", "", numbers["summary"]]
    lines += [f"not compared: {name}: {why}" for name, why in contest.left_out]
    lines += [f"failed: {name}, seed {seed}: {words}" for name, seed, words in contest.failed]
    result = numbers | {"files": {kind: str(path) for kind, path in paths.items()}}
    emit(result, as_json=as_json, text="\n".join([*lines, str(paths["html"])]))
    return 1 if contest.failed else 0


def gather(field: Field, plan: Plan, teacher: Record, failed: list[tuple[Job, str]]) -> Contest:
    """What the runs have left in their folders, as one contest."""
    from profiles.contest import Contest, Entry
    from profiles.record import RecordError, read_records

    entries: list[Entry] = []
    broken = [(job.name, job.seed, words) for job, words in failed]
    for entrant in field.entrants:
        records: list[Record] = []
        for job in entrant.jobs:
            try:
                records += read_records(job.folder)[-1:] if job.finished else []
            except RecordError as error:
                broken.append((job.name, job.seed, str(error)))
        if records:
            entries.append(Entry(
                entrant.key, entrant.name, records, entrant.learns_from, entrant.settings,
                yardstick=not entrant.ready.teachers,
            ))  # fmt: skip
    spec, student = plan.teachers[0].model, field.entrants[0].ready.plan.student.model
    seen = f", unlabelled images {plan.data.unlabelled}" if plan.data.unlabelled else ""
    about = f"Every run: teacher {spec}, student {student}{seen}, measured on {plan.data.validation}."
    return Contest(
        f"{student} from {spec}: methods compared", entries, teacher, plan.pace.time_limit, plan.pace.steps,
        field.left_out, broken, [shlex.join(["compress", *sys.argv[1:]])], (about, *RULES),
    )  # fmt: skip
