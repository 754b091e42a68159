"""From a recipe and options to all cells of a sweep: what would run, and why others cannot; nothing is spent yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli.calibrating import SYNTHETIC
from compress.errors import UsageError

if TYPE_CHECKING:
    from compress.cli.cells import Cell, Model
    from compress.cli.swept import Sweep
    from compress.config import Document
    from compress.sweep import SweepPlan

#: option -> key of the recipe
KEYS = {
    "teacher": "teacher", "ood": "ood", "val": "val", "data_root": "data_root", "calibration": "calibration",
    "seeds": "seeds", "steps": "budget.steps", "time_limit": "budget.time_limit", "device": "budget.device",
    "prune": "prune.kind", "max_latency": "limits.max_latency", "max_gflop": "limits.max_gflop",
    "max_size": "limits.max_size", "max_energy": "limits.max_energy",
}  # fmt: skip
#: options that are lists: names separated by commas
LISTS = ("students", "methods", "formats", "precisions")
#: in the folder of a sweep: its plan
RECIPE = "sweep.yaml"


def read(recipe: Path | None, out: Path, options: dict[str, Any]) -> SweepPlan:
    """The plan: the recipe (or that of a sweep which is in `out`), options over it. Raises UsageError."""
    from compress import config
    from compress.cli.options import find_recipe, nested
    from compress.sweep import read_sweep

    if recipe is None and (out / RECIPE).exists():
        recipe = out / RECIPE
    document = config.read_yaml(find_recipe(recipe)) if recipe is not None else config.from_mapping({}, where="")
    given = {KEYS[name]: value for name, value in options.items() if name in KEYS and value is not None}
    if any(name in given for name in ("budget.steps", "budget.time_limit")):
        given = {"budget.steps": None, "budget.time_limit": None, **given}
    document = document.merge(nested(given), where="")
    for name in LISTS:
        if options[name] is not None:
            document = replaced(document, name, [one.strip() for one in options[name].split(",")])
    if options["sets"]:
        document = document.merge({"set": [*(document.get("set") or []), *options["sets"]]}, where="--set")
    return read_sweep(document)


def replaced(document: Document, name: str, chosen: list[str]) -> Document:
    """The document with only the `chosen` in the list `name`; methods keep the settings that the recipe has of them."""
    before = document.get(name)
    known = before if isinstance(before, dict) else {}
    value = {one: known.get(one) or {} for one in chosen} if name == "methods" else chosen
    return document.merge({name: None}, where="").merge({name: value}, where=f"--{name.removesuffix('s')}")


def lay_out(plan: SweepPlan, out: Path) -> Sweep:
    """Every cell, and why others cannot run; nothing is spent yet. Raises UsageError where the request is wrong."""
    from compress.cli.cells import Cell, Model, Teacher
    from compress.cli.compare import look_at_data
    from compress.cli.entrants import Shared, choose, enter, route
    from compress.cli.swept import Sweep
    from compress.plan import load_teachers

    chosen = choose(",".join(plan.settings))
    given = [(name, key, value) for name, found in plan.settings.items() for key, value in found.items()]
    sets, own = route([*(f"{name}.{key}={json.dumps(value)}" for name, key, value in given), *plan.set], chosen)
    teacher = {"teacher": plan.teacher, "teacher_arch": plan.teacher_arch, "trust_pickle": plan.trust_pickle}
    shared = Shared(shared_options(plan), teacher, sets)
    (net, card), *_ = load_teachers(shared.plan())
    look_at_data(shared.plan())
    cells: list[Cell] = []
    entrants, left_out = [], []
    for student in plan.students:
        told = Shared({**shared.options, "student": student}, teacher, sets)
        before = f"{student.replace('/', '-').replace(':', '-')}-"
        field = enter(chosen, told, own, plan.chosen_seeds, out, net, card, before=before)
        left_out += [(student, name, why) for name, why in field.left_out]
        entrants += [(student, entrant) for entrant in field.entrants]
        for entrant in field.entrants:
            images = calibration(plan, entrant.ready.method)
            cells += [
                Cell(student, entrant.key, job, Model(
                    job.folder, (str(job.folder / "best"),), tuple(plan.files), images, plan
                ))
                for job in entrant.jobs
            ]  # fmt: skip
    if not cells:
        reasons = "; ".join(f"{student} by {name}: {why}" for student, name, why in left_out)
        raise UsageError(f"nothing can run here: {reasons}.")
    order = plan.chosen_seeds  # seed by seed, so that an early stop leaves something of each
    cells.sort(key=lambda cell: order.index(cell.job.seed))
    return Sweep(plan, out, Teacher(teacher_model(plan, out, net), net, card), cells, entrants, left_out)


def shared_options(plan: SweepPlan) -> dict[str, Any]:
    """What every run is told, as options of `distill`; its student is not among them."""
    budget = plan.budget
    return {
        "classes": plan.classes, "ood": plan.ood, "data": plan.data, "val": plan.val, "data_root": plan.data_root,
        "time_limit": budget.time_limit, "steps": budget.steps, "batch_size": budget.batch_size,
        "precision": budget.precision, "device": budget.device,
    }  # fmt: skip


def teacher_model(plan: SweepPlan, out: Path, net: Any) -> Model:
    """The teacher, whose files are made in fp32: what the students' are compared with."""
    from compress.cli.cells import Model
    from compress.models.blackbox import is_black_box

    words = [plan.teacher, *(["--teacher-arch", plan.teacher_arch] if plan.teacher_arch else [])]
    words += ["--classes", str(plan.classes)] if plan.classes else []
    words += ["--trust-pickle"] if plan.trust_pickle else []
    wanted = () if is_black_box(net) else tuple((format, "fp32") for format in dict.fromkeys(plan.formats))
    return Model(out / "teacher", tuple(words), wanted, None, plan)


def calibration(plan: SweepPlan, method: Any) -> str | None:
    """Images for the int8 files of a method's students; None where there are no such files.

    Raises UsageError where there are no images.
    """
    from compress.engine.synthesis import synthesizes

    if "int8" not in plan.precisions:
        return None
    if plan.calibration != SYNTHETIC or synthesizes(method) or hasattr(method, "z_dim"):
        return plan.calibration
    given = plan.ood or plan.data
    if given is None:
        raise UsageError(
            f"precisions: int8 needs images to calibrate on, and method {type(method).__name__} makes none; give "
            "--calibration DATA."
        )
    return given


def write_recipe(plan: SweepPlan, out: Path) -> None:
    """Write down the whole plan, so that `compress sweep --out OUT` goes on with it."""
    from compress import config
    from compress.files import write_text

    write_text(out / RECIPE, config.dump(plan))
