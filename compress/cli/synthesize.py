"""`compress synthesize`: images out of a trained model alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from compress.cli.distill import TEACHER
from compress.cli.old_options import build_document, common, emit, place_options, teacher_options
from compress.errors import UsageError

if TYPE_CHECKING:
    from compress.engine.pool import ImagePool
    from compress.engine.run import Run
    from compress.engine.synthesis import Synthesizer
    from compress.models.card import ModelCard
    from compress.plan import TrainingSetup

DEFAULT = "cmi"
#: what a student decides, or when it moves
STUDENTS = {"adv": 0.0, "moves": 1}


@click.command()
@teacher_options
@click.option("--method", metavar="NAME", help="deepinversion, cmi or fastdfkd.  [default: cmi]")
@click.option("--run", "source", type=click.Path(path_type=Path), help="Draw from a run's generator instead.")
@click.option("--count", type=click.IntRange(min=1), default=50000, show_default=True, help="How many images.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/METHOD-images]")
@place_options
@common
def synthesize(
    count: int, source: Path | None, as_json: bool, devices: int, out: Path | None, resume: bool | None, **options: Any
) -> None:
    """Make images out of a trained model alone: no data, no student, no distillation.

    They lie in the folder pool of the run, a folder a class, and pool.png shows some. A method's terms that ask a
    student are off. Stopped, the same command goes on. With --run they come from the generator that a run of
    `compress distill` trained (mosaic, dafl, zskt, dfad, dfq, fastdfkd).

    \b
    Example:
      compress synthesize --teacher embedded/fashion_wrn16_2 --method fastdfkd --count 40 \\
          --set method.images=20 --set method.width_G=16 --out runs/images
    """
    from compress.cli.running import train_in_dir
    from compress.engine.synthesis import SynthesisOnly

    if source is not None:
        result, text = drawn(source, count, out, options)
        emit(result, as_json=as_json, text=text)
        return
    ready, method = prepared(count, options)
    folder = out or Path("runs") / f"{ready.config.method['name']}-images"
    run = train_in_dir(replace(ready, method=SynthesisOnly(method, count)), folder, devices=devices, resume=resume)
    if run is not None:
        result, text = summary(run, ready, method, count)
        emit(result, as_json=as_json, text=text)


def drawn(source: Path, count: int, out: Path | None, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Draw from a run's generator. Raises UsageError for options that the run has decided."""
    import time

    from compress.cli.output import print_status
    from compress.generated import draw

    begin = time.monotonic()
    decided = {"teacher", "teacher_arch", "classes", "method", "recipe", "sets", "precision"}
    given = [name for name in sorted(decided) if options.get(name)]
    if given:
        raise UsageError(f"--run: {source} decides what --{given[0].replace('_', '-')} is for; leave one of them out.")
    folder = out or source.with_name(f"{source.name}-images")
    found = draw(source, count, folder, device=options["device"] or "auto", seed=options["seed"] or 0, say=print_status)
    made = folder, found.pool, found.method, found.teacher, found.card
    return described(*made, syntheses=found.batches, seconds=round(time.monotonic() - begin, 2), how="the generator of")


def prepared(count: int, options: dict[str, Any]) -> tuple[TrainingSetup, Synthesizer]:
    """The plan of making `count` images, checked. Raises UsageError for a method that keeps none."""
    from dataclasses import asdict

    from compress.engine.synthesis import is_synthesizer
    from compress.methods import METHODS, find_method
    from compress.plan import StudentConfig, load_config, prepare_training

    teacher = {key: options.pop(name) for name, key in TEACHER.items()}
    recipe, sets = options.pop("recipe"), options.pop("sets")
    for name in STUDENTS:
        if any(one.partition("=")[0].strip() == f"method.{name}" for one in sets):
            raise UsageError(f"--set method.{name}: here is no student whom it could be about; leave it out.")
    document = build_document(recipe, sets, {**options, "steps": 1}, teacher=teacher)
    name = str(document.get("method.name", DEFAULT))
    if not is_synthesizer(find_method(name)):
        able = [name for name, kind in METHODS.items() if is_synthesizer(kind)]
        raise UsageError(f"--method: found {name}, which keeps no images; expected one of {', '.join(able)}.")
    plan, method = load_config(document.merge({"method": {"name": name}}, where=""))
    method = cast("Any", method)
    for name, value in STUDENTS.items():
        setattr(method, name, value)
    plan.method |= asdict(method)
    plan.student, plan.data.validation = StudentConfig(), None
    plan.training = replace(
        plan.training, steps=math.ceil(count / method.images), batch_size=method.images, evaluate=None, save=None, ema=0.0
    )
    return prepare_training(plan, method), method


def summary(run: Run, ready: TrainingSetup, method: Synthesizer, count: int) -> tuple[dict[str, Any], str]:
    """What was made, for machines and for people. Raises UsageError where the folder's run was done with fewer."""
    found = described(
        run.run_dir, method.pool, ready.config.method["name"], ready.config.teachers[0].model, ready.card,
        syntheses=run.step, seconds=round(run.elapsed, 2), how="",
    )  # fmt: skip
    if found[0]["images"] < count:
        raise UsageError(
            f"{run.run_dir}: holds a run that is done, with {found[0]['images']} images, and {count} are asked for; "
            "choose another --out, or --fresh to replace it."
        )
    return found


def described(
    folder: Path, pool: ImagePool, method: str, teacher: str, card: ModelCard, *, syntheses: int, seconds: float, how: str
) -> tuple[dict[str, Any], str]:
    """The images that lie in a pool, for machines and for people."""
    from compress.cli.results import format_duration
    from compress.methods import display_name

    names = card.class_names or [str(c) for c in range(card.classes)]
    names = names if len(pool.classes) == len(names) else pool.classes
    found = [len(list((pool.folder / one).glob("*.png"))) for one in pool.classes]
    images, by = sum(found), f"by {how} {display_name(method)}" if how else f"by {display_name(method)} alone"
    result = {
        "run": str(folder), "pool": str(pool.folder), "sheet": str(folder / "pool.png"), "method": method,
        "teacher": teacher, "images": images, "classes": card.classes,
        "by_class": dict(zip(names, found, strict=True)), "syntheses": syntheses, "seconds": seconds,
    }  # fmt: skip
    lines = [
        f"images     {images} of {card.classes} classes, out of {teacher} {by} ({format_duration(seconds)})",
        f"folder     {pool.folder}",
        f"sheet      {result['sheet']}",
        f"next       compress distill --teacher {teacher} --method kd --ood {pool.folder}",
    ]
    return result, "\n".join(lines)
