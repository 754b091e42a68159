"""The options that `distill` and `train` share, and how options become a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compress.cli.output import say
from compress.units import BYTES, SECONDS, Unit, parse

if TYPE_CHECKING:
    from compress.config import Document
    from compress.engine.method import Method
    from compress.plan import Plan

Command = TypeVar("Command", bound=Callable[..., Any])


def duration(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """`90s`, `10m`, `1.5h` or plain seconds -> seconds."""
    return value if value is None else in_unit(value, SECONDS)


def byte_size(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """`2GiB`, `500kB`, `1.5MB` or plain bytes -> bytes."""
    return value if value is None else round(in_unit(value, BYTES))


def in_unit(value: str, unit: Unit) -> float:
    """The number. Raises click.BadParameter."""
    try:
        return parse(value, unit)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def patch_size(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    """A number of pixels, or `auto` as it is."""
    if value is None or value == "auto":
        return value
    if not value.isdecimal() or int(value) == 0:
        raise click.BadParameter(f"found {value!r}, expected a number of pixels such as 8, or auto")
    return int(value)


#: option -> the key of the recipe that it sets
KEYS = {
    "student": "student.model",
    "classes": "task.classes",
    "image_size": "task.image_size",
    "grey": "task.grey",
    "ood": "data.unlabelled",
    "data": "data.labelled",
    "val": "data.validation",
    "data_root": "data.root",
    "ood_subset": "data.subset",
    "method": "method.name",
    "patch_size": "method.patch",
    "steps": "pace.steps",
    "epochs": "pace.epochs",
    "time_limit": "pace.time_limit",
    "batch_size": "pace.batch_size",
    "precision": "pace.precision",
    "device": "pace.device",
    "seed": "pace.seed",
}


WHOLE = click.IntRange(min=1)
#: where and how repeatably a run computes, and its recipe
PLACE = (
    click.option("--precision", type=click.Choice(["auto", "32", "bf16", "16"]), help="[default: auto]"),
    click.option("--device", metavar="auto|cpu|cuda", help="[default: auto]"),
    click.option("--devices", type=WHOLE, default=1, help="Processes, each on a device, started by torchrun."),
    click.option("--seed", type=click.IntRange(min=0), help="Of everything random.  [default: 0]"),
    click.option("--recipe", type=click.Path(path_type=Path), help="YAML file of settings; options override it."),
    click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any setting, as method.local=0.5."),
    click.option("--resume/--fresh", default=None, help="Insist on going on, or begin anew.  [default: go on]"),
)


def training(function: Command) -> Command:
    """Add the options of a training run: its data, pace, folder and recipe."""
    options = [
        click.option("--student", metavar="NAME", help="Architecture of the student; see `compress models`."),
        click.option("--val", metavar="DATA", help="Labelled images to measure on; never trained on."),
        click.option("--data-root", type=click.Path(path_type=Path), help="Where data sets known by name lie."),
        click.option("--out", type=click.Path(path_type=Path), help="Its folder.  [default: runs/METHOD-STUDENT]"),
        click.option("--steps", type=WHOLE, help="Iterations."),
        click.option("--epochs", type=click.FloatRange(min=0, min_open=True), help="Passes over the images, instead."),
        click.option("--time-limit", callback=duration, metavar="10m", help="Time, instead: 90s, 10m, 1.5h."),
        click.option("--batch-size", type=WHOLE, help="Images a batch, over all processes.  [default: the method's]"),
        *PLACE,
        click.option("--dry-run", is_flag=True, help="Check everything, estimate cost, and stop."),
    ]  # fmt: skip
    return added(function, options)


TEACHER = [
    click.option("--teacher", metavar="MODEL", help="The trained model: a folder, a checkpoint, a program, or a name."),
    click.option("--teacher-arch", metavar="NAME", help="Architecture of a bare state dict that is not recognised."),
    click.option("--classes", type=click.IntRange(min=2), help="Class count, checked against the teacher's."),
    click.option("--trust-pickle", is_flag=True, help="Load a full pickle or TorchScript file. It can run any code."),
]


def teacher_options(function: Command) -> Command:
    """Add the options of a teacher."""
    return added(function, TEACHER)


def place_options(function: Command) -> Command:
    """Add the options of where a run computes, and of its recipe."""
    return added(function, PLACE)


def added(function: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        function = option(function)
    return function


def read_options(
    recipe: Path | None, sets: tuple[str, ...], options: Mapping[str, Any], *, teacher: Mapping[str, Any] | None = None
) -> tuple[Plan, Method]:
    """The checked plan of a recipe (a file, or the name of a shipped one), options over it, `--set` over both."""
    from compress.plan import DEFAULT_STEPS, read_plan

    document = read_document(recipe, sets, options, teacher=teacher)
    if all(document.get(f"pace.{ending}") is None for ending in ("steps", "epochs", "time_limit")):
        say(f"Assumed: {DEFAULT_STEPS} steps (no length given). If wrong: --steps, --epochs or --time-limit.")
        document = document.merge({"pace": {"steps": DEFAULT_STEPS}}, where="")
    return read_plan(document)


def read_document(
    recipe: Path | None, sets: tuple[str, ...], options: Mapping[str, Any], *, teacher: Mapping[str, Any] | None = None
) -> Document:
    """The settings of a recipe, options over it, `--set` over both, not checked yet.

    `teacher` holds settings of the first teacher; those that are None or False are left as the recipe has them.
    """
    from compress import config

    document = config.read_yaml(find_recipe(recipe)) if recipe is not None else config.from_mapping({}, where="")
    given = {KEYS[name]: value for name, value in options.items() if name in KEYS and value is not None}
    if any(ending in given for ending in ("pace.steps", "pace.epochs", "pace.time_limit")):
        given = {**{f"pace.{e}": None for e in ("steps", "epochs", "time_limit")}, **given}
    document = document.merge(nested(given), where="")
    first = {key: value for key, value in (teacher or {}).items() if value}
    if first:
        teachers = {"0": first} if document.get("teachers") else [first]
        document = document.merge({"teachers": teachers}, where="")
    return document.merge(config.parse_set(sets, known=setting_paths()), where="--set")


def setting_paths() -> list[str]:
    """The dotted paths of every setting there is, those of all methods among them."""
    from compress import config
    from compress.methods import METHODS
    from compress.plan import Plan

    own = [f"method.{name}" for kind in METHODS.values() for name in config.settings(kind)]
    return list(dict.fromkeys([*config.paths(Plan), *own]))


def find_recipe(recipe: Path) -> Path:
    """`recipe` as a file, or the recipe of that name that the package ships."""
    shipped = Path(__file__).parent.parent / "recipes" / f"{recipe}.yaml"
    return shipped if not recipe.exists() and shipped.exists() else recipe


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` -> `{"a": {"b": 1}}`."""
    result: dict[str, Any] = {}
    for path, value in flat.items():
        *above, last = path.split(".")
        inner = result
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = str(value) if isinstance(value, Path) else value
    return result
