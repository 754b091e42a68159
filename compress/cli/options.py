"""Click parameter types and the options that several commands share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from compress.errors import suggest_nearest
from compress.units import (
    BYTES,
    MAX_CLASSES,
    MAX_COUNT,
    MAX_SEED,
    MILLISECONDS,
    SECONDS,
    Unit,
    parse_quantity,
)

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]


class Quantity(click.ParamType):
    """A number > 0 with an optional unit, such as `90s`, `15ms` or `2GiB`."""

    def __init__(self, name: str, unit: Unit, *, is_whole: bool = False) -> None:
        self.name, self.unit, self.is_whole = name, unit, is_whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | int:
        if not isinstance(value, str):
            return value
        try:
            number = parse_quantity(value, self.unit)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return round(number) if self.is_whole else number


class Number(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"found {value!r}, expected a finite number", param, ctx)
        return number


class Size(click.ParamType):
    """`HxW` or one number for a square -> (height, width) in pixels. With `dynamic`, that word is allowed too."""

    name = "size"

    def __init__(self, *, dynamic: bool = False) -> None:
        self.dynamic = dynamic

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or (self.dynamic and value == "dynamic"):
            return value
        match = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", value.strip().lower())
        if match is None:
            self.fail(f"found {value!r}, expected HxW in pixels, for example 32x32", param, ctx)
        return int(match[1]), int(match[2] or match[1])


class CommaList(click.ParamType):
    """`a,b` -> ("a", "b"), without duplicates; each part is one of `choices` or `aliases`, or converted by `item`."""

    name = "list"

    def __init__(
        self, choices: Sequence[str] = (), item: click.ParamType | None = None, aliases: Mapping[str, str] | None = None
    ) -> None:
        self.choices, self.item, self.aliases = tuple(choices), item, aliases or {}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if not isinstance(value, str):
            return tuple(value)
        parts = [self.aliases.get(part.strip(), part.strip()) for part in value.split(",") if part.strip()]
        if not parts:
            self.fail(f"found {value!r}, expected values separated by commas", param, ctx)
        for part in parts:
            if self.choices and part not in self.choices:
                expected = f"expected some of {', '.join(self.choices)}"
                self.fail(f"found {part!r}, {expected}{suggest_nearest(part, self.choices)}", param, ctx)
        converted = [self.item.convert(part, param, ctx) for part in parts] if self.item else parts
        return tuple(dict.fromkeys(converted))


class Numbers(click.ParamType):
    """`a,b,c` -> (a, b, c), finite numbers."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if not isinstance(value, str):
            return tuple(value)
        return tuple(Number().convert(part, param, ctx) for part in value.split(","))


class ClassNames(click.ParamType):
    """A text file with a name per line, or `a,b,c` -> ["a", "b", "c"]."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if not isinstance(value, str):
            return list(value)
        path = Path(value).expanduser()
        if path.is_file():
            try:
                names = path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                self.fail(f"{value}: cannot be read ({error})", param, ctx)
        elif "," in value:
            names = value.split(",")
        else:
            self.fail(
                f"{value}: found no such file, expected one with a name per line, or names and commas", param, ctx
            )
        names = [name.strip() for name in names]
        while names and not names[-1]:
            names.pop()
        for number, name in enumerate(names, 1):
            if not name or name in names[: number - 1]:
                problem = "found no name" if not name else f"found {name!r} again"
                self.fail(f"{value}: name {number}: {problem}, expected another name for every class", param, ctx)
        return names


class NameOrIndex(click.ParamType):
    """A name, or an index from 0 on as a number."""

    name = "name or index"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        return int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,4}", value) else value


class MinOptMax(click.ParamType):
    """`V` or `MIN:OPT:MAX` -> three values of `item`, in ascending order."""

    name = "range"

    def __init__(self, item: click.ParamType) -> None:
        self.item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, Any, Any]:
        if not isinstance(value, str):
            return value
        parts = value.split(":")
        if len(parts) not in (1, 3):
            self.fail(f"found {value!r}, expected one value or MIN:OPT:MAX, such as 1:8:64", param, ctx)
        low, best, high = [self.item.convert(part, param, ctx) for part in (parts * 3 if len(parts) == 1 else parts)]
        if isinstance(low, int) and not low <= best <= high:
            self.fail(f"found {value!r}, expected ascending values, such as 1:8:64", param, ctx)
        return low, best, high


class AutoOr(click.ParamType):
    """A value of another type, or `auto`."""

    name = "value or auto"

    def __init__(self, item: click.ParamType) -> None:
        self.item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else self.item.convert(value, param, ctx)


class PatchSize(click.ParamType):
    """A number of pixels, or `auto`."""

    name = "patch size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto" or isinstance(value, int):
            return value
        if not re.fullmatch(r"[1-9]\d{0,5}", value):
            self.fail(f"found {value!r}, expected a number of pixels such as 8, or auto", param, ctx)
        return int(value)


DURATION = Quantity("duration", SECONDS)
LATENCY = Quantity("latency", MILLISECONDS)
SIZE_IN_BYTES = Quantity("bytes", BYTES, is_whole=True)
COUNT = click.IntRange(min=1, max=MAX_COUNT)
SEED = click.IntRange(min=0, max=MAX_SEED)
CLASSES = click.IntRange(min=1, max=MAX_CLASSES)
POSITIVE = Number(min=0, min_open=True)
PATH = click.Path(path_type=Path)


def add_options(*options: Decorator) -> Callable[[Command], Command]:
    """Return a decorator that adds options in the order of the help text."""

    def add(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return add


data_root = click.option("--data-root", type=PATH, help="Directory of data sets that are known by name.")
label_order = click.option(
    "--label-order", type=click.Choice(["number", "text"]),
    help="Order of numbered class folders in the training of a model without class names: 2, 10 or 10, 2.",
)  # fmt: skip
validation = click.option(
    "--val", "--validation", "validation", metavar="DATA", help="Labeled images to measure on; never trained on."
)
time_limit = click.option("--time-limit", type=DURATION, metavar="10m", help="Training time: 90s, 10m, 1.5h.")
device = click.option("--device", metavar="auto|cpu|cuda", help="Device to train on.  [default: auto]")
precision = click.option(
    "--precision", type=click.Choice(["auto", "32", "bf16", "16"]), help="Precision of training.  [default: auto]"
)
overrides = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting, for example method.local=0.5."
)

#: permission for names in files; those on the command line need none
allow_code = click.option("--allow-code", is_flag=True, help="Import code that a recipe names as package.module:name.")

#: how and where a training computes
compute_options = add_options(
    precision,
    device,
    click.option(
        "--devices", type=COUNT, default=1, show_default=True, help="Number of processes, one per device (torchrun)."
    ),
    click.option(
        "--restarts", type=click.IntRange(min=0), default=0, show_default=True, help="Restarts after a process fails."
    ),
    click.option("--seed", type=SEED, help="Random seed.  [default: 0]"),
    click.option("--recipe", type=PATH, help="YAML file of settings, or a shipped recipe; options override it."),
    overrides,
    allow_code,
    click.option("--resume/--fresh", default=None, help="Require a run to resume, or replace it.  [default: resume]"),
)

batch_size = click.option(
    "--batch-size",
    type=AutoOr(COUNT),
    metavar="N|auto",
    help="Images per step, all processes together; auto: in parts that fit into memory.  [default: by method]",
)

#: what `distill` and `train` share
training_options = add_options(
    click.option("--student", metavar="NAME", help="Architecture to train; see `compress models`."),
    validation,
    label_order,
    data_root,
    click.option("--out", "output_dir", type=PATH, help="Run directory.  [default: runs/METHOD-STUDENT]"),
    click.option("--steps", type=COUNT, help="Number of training steps.  [default: 10000]"),
    click.option("--epochs", type=POSITIVE, help="Number of epochs (instead of --steps)."),
    click.option("--time-limit", type=DURATION, metavar="10m", help="Training time (instead of --steps): 90s, 1.5h."),
    batch_size,
    click.option("--export", type=click.Choice(["onnx"]), help="Export the best model as a verified file."),
    compute_options,
    click.option("--dry-run", is_flag=True, help="Check all settings, estimate the cost, and exit."),
)


#: names of tasks; compress.models.card has them too, which imports torch
TASKS = ("classification", "multilabel_classification", "segmentation", "binary_segmentation")
#: what the logits of a model mean
task_options = add_options(
    click.option(
        "--task", type=click.Choice(TASKS), metavar="TASK",
        help="What the outputs mean: multilabel_classification or binary_segmentation, if each is a decision of its "
        "own (sigmoid), classification or segmentation, if one class is right.  [default: by the model or the labels]",
    ),
    click.option(
        "--threshold", type=Number(min=0, max=1, min_open=True, max_open=True), metavar="P",
        help="Probability above which a label or a pixel is positive, for models with a sigmoid.  [default: 0.5]",
    ),
)  # fmt: skip


def model_options(*, dynamic: bool = False) -> Callable[[Command], Command]:
    """Options for what a model's file does not contain; `dynamic` allows `--image-size dynamic`."""
    return add_options(
        click.option(
            "--arch", "--teacher-arch", "arch", metavar="NAME", help="Architecture of an unrecognized state dict."
        ),
        click.option("--classes", type=CLASSES, help="Number of classes; must match the model's."),
        click.option(
            "--image-size", "--input-size", "image_size", type=Size(dynamic=dynamic),
            metavar="HxW|dynamic" if dynamic else "HxW", help="Input size in pixels.",
        ),
        click.option("--resize", type=COUNT, metavar="N", help="Short side in pixels before the center crop."),
        click.option("--mean", type=Numbers(), metavar="R,G,B", help="Normalization mean of values in [0, 1]."),
        click.option("--std", type=Numbers(), metavar="R,G,B", help="Normalization standard deviation, the same."),
        click.option(
            "--grayscale", is_flag=True, default=None, help="The model reads one channel, made from RGB images."
        ),
        click.option(
            "--class-names", type=ClassNames(), metavar="FILE|A,B,…",
            help="Names of the classes in the order of the model's outputs: a file with one per line, or a list.",
        ),
        task_options,
        click.option("--output", type=NameOrIndex(), metavar="NAME|INDEX",
                     help="Output with the logits, of a model with several."),
        click.option("--ema", is_flag=True, help="Load the averaged weights of a file that contains both."),
        click.option(
            "--trust-pickle", "--trust-engine", "trust_pickle", is_flag=True,
            help="Load a full pickle, TorchScript file or version-compatible engine. They can run any code.",
        ),
    )  # fmt: skip


allow_bad_teacher = click.option(
    "--allow-bad-teacher", is_flag=True, help="Train even if the teacher's score on --val is near chance."
)

#: which teacher, and what its file does not contain
teacher_options = add_options(
    click.option("--teacher", metavar="MODEL", help="Trained model: a directory, checkpoint, program or name."),
    model_options(),
)

record_option = click.option(
    "--record", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Add the measurement to DIR/records.jsonl, for `compress report`.",
)  # fmt: skip

#: limits of the recommended model
limit_options = add_options(
    click.option("--max-latency", type=POSITIVE, metavar="MS",
                 help="Maximum median latency of the recommended model, in ms per batch."),
    click.option("--max-gflop", type=POSITIVE, metavar="GFLOP",
                 help="Maximum GFLOP per image of the recommended model."),
    click.option("--max-size", type=SIZE_IN_BYTES, metavar="1MB",
                 help="Maximum file size of the recommended model."),
    click.option("--max-energy", type=POSITIVE, metavar="MJ",
                 help="Maximum energy per image of the recommended model, in mJ."),
)  # fmt: skip

#: `--json`, passed on as `as_json`, and `--debug`, which LazyGroup reads
common_options = add_options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object to standard output."),
    click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
)

#: how many runs at a time, and on which machines
worker_options = add_options(
    click.option("--workers", type=COUNT, help="Number of runs at a time.  [default: 1; on a cluster as many as fit]"),
    click.option("--on", metavar="auto|HOST:PORT", help="Ray cluster to run on.  [default: this machine]"),
)
