"""The options that `distill` and `train` share, and how options become a plan."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compress.cli.output import print_status
from compress.errors import CompressError, UsageError
from compress.targets import Target, load_target
from compress.units import BYTES, SECONDS, Unit, parse_quantity

if TYPE_CHECKING:
    pass

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
        return parse_quantity(value, unit)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def patch_size(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    """A number of pixels, or `auto` as it is."""
    if value is None or value == "auto":
        return value
    if not value.isdecimal() or int(value) == 0:
        raise click.BadParameter(f"found {value!r}, expected a number of pixels such as 8, or auto")
    return int(value)




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


def resolve_config(recipe: Path | None, sets: tuple[str, ...], options: Mapping[str, Any], *, teacher: Any = None) -> Any:
    """The checked config (only until the commands are thin)."""
    from compress.training import recipes

    return recipes.resolve_config(recipe, sets, progress=print_status, **to_arguments(options, teacher))


def build_document(recipe: Path | None, sets: tuple[str, ...], options: Mapping[str, Any], *, teacher: Any = None) -> Any:
    from compress.training import recipes

    return recipes.build_document(recipe, sets, **to_arguments(options, teacher))


def to_arguments(options: Mapping[str, Any], teacher: Any) -> dict[str, Any]:
    names = {"model": "teacher", "arch": "teacher_arch", "architecture": "teacher_arch", "trust_pickle": "trust_pickle"}
    return {**options, **{names[key]: value for key, value in (teacher or {}).items()}}


def parse_size(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`HxW` or one number for a square -> (height, width)."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", value.strip().lower())
    if found is None or int(found[1]) == 0 or found[2] == "0":
        raise click.BadParameter(f"found {value!r}, expected HxW in pixels, for example 32x32")
    return int(found[1]), int(found[2] or found[1])


def options_with(sizes: Callable[..., Any], expected: str) -> Callable[[Command], Command]:
    arch = ("--teacher-arch", "--arch", "arch")
    size = ("--input-size", "--image-size", "image_size")
    options = [
        click.option(*arch, metavar="NAME", help="Of a bare state dict, if not recognised."),
        click.option("--classes", type=click.IntRange(min=2), help="Number of classes."),
        click.option(*size, callback=sizes, metavar=expected, help="In pixels."),
        click.option("--ema", is_flag=True, help="Take the averaged weights where the file has both."),
        click.option(
            "--trust-pickle",
            "--trust-engine",
            "trust_pickle",
            is_flag=True,
            help="Load a full pickle, TorchScript file or version-compatible engine. It can run any code.",
        ),
    ]

    def add(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def parse_size_or_dynamic(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    """`HxW` -> (height, width); "dynamic" stays."""
    return DYNAMIC if value == DYNAMIC else parse_size(context, option, value)


#: what --input-size may say to an export: any height and width
DYNAMIC = "dynamic"
#: Options for what a checkpoint may not say of itself, under the names that `open_model` takes.
model_options = options_with(parse_size, "HxW")
#: The same; `image_size` may be DYNAMIC.
export_options = options_with(parse_size_or_dynamic, "HxW|dynamic")


def record_option(function: Command) -> Command:
    """Add `--record`, passed on as `record`."""
    return click.option(
        "--record", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
        help="Add what is measured to DIR/records.jsonl, for `compress report`.",
    )(function)  # fmt: skip


def take_target(context: click.Context, _: click.Parameter, value: str | None) -> Target | None:
    """The target; what it says becomes the default of the options that say the same."""
    if value is None:
        return None
    target = load_target(value)
    said = {
        "runtimes": target.runtime,
        "provider": target.provider,
        "threads": target.threads,
        "batch_size": None if target.batch_size is None else ",".join(map(str, target.batch_size)),
        "duration": target.duration,
        "scenarios": target.scenario,
    }
    context.default_map = {**(context.default_map or {}), **{key: one for key, one in said.items() if one is not None}}
    return target


def target_options(function: Command) -> Command:
    """Add `--target` and `--check`."""
    check = click.option(
        "--check", is_flag=True, help="Exit code 1 if a row does not hold the target's latency budget."
    )
    where = click.option(
        "--target",
        callback=take_target,
        is_eager=True,
        metavar="ssh://HOST|NAME|FILE.yaml",
        help="Measure on another machine, or for a named target; see docs/targets.md.",
    )
    return where(check(function))


def common(function: Command) -> Command:
    """Add `--json` (passed on as `as_json`) and `--debug` (read by the outermost frame)."""
    function = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of a failure.")(
        function
    )
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")(function)


def emit(result: Mapping[str, Any], *, as_json: bool, text: str | None = None) -> None:
    """Print `result` as one JSON object, or `text` (default: one `key: value` a line) for people."""
    if as_json:
        from profiles.formatting import to_json_safe

        click.echo(json.dumps(to_json_safe(result)))
    else:
        click.echo(text if text is not None else "\n".join(f"{key}: {value}" for key, value in result.items()))




JUDGED_BY = {"MultiStream": "latency_ms_p99", "Server": "latency_ms_p99"}
USUALLY, WITHOUT_LATENCY = "latency_ms_p90", "Offline"


def refuse_other_versions(target: Target | None) -> None:
    """Raises CompressError where what is installed here is not what a target without a host says."""
    from profiles.latency.machine import package_versions as versions

    if target is None or target.host is not None:
        return
    found = versions()
    for package, version in target.versions.items():
        here = found.get(package)
        if here is None or not f"{here}.".startswith(f"{version}."):
            raise CompressError(f"{target.name}: found {package} {here or 'not installed'} here, expected {version}.")


def refuse_other_precision(target: Target | None, rows: list[tuple[str, Latency]]) -> None:
    """Raises CompressError where a model ran in another precision than its target says."""
    for name, latency in rows:
        if target is not None and target.precision not in (None, latency.precision):
            where = f"runs in {latency.precision} in {latency.runtime}"
            raise CompressError(f"{name}: {where}, expected {target.precision}, as the target {target.name} says.")


def judged(target: Target | None, latency: Latency) -> dict[str, Any]:
    """Whether a row holds the budget of its target, to be added to it; nothing without one, and of Offline."""
    if target is None or target.latency_budget_ms is None or latency.scenario == WITHOUT_LATENCY:
        return {}
    by = JUDGED_BY.get(latency.scenario, USUALLY)
    found, budget = getattr(latency, by), target.latency_budget_ms
    return {"latency_budget_ms": budget, "budget_percentile": by.rpartition("_")[2], "holds_budget": found <= budget}


def verdict(target: Target | None, named: list[tuple[str, Latency]]) -> list[str]:
    """A line for every row on the budget; none without one."""
    return [line for name, latency in named for line in verdict_of(target, name, latency)]


def verdict_of(target: Target | None, name: str, latency: Latency) -> list[str]:
    found = judged(target, latency)
    if not found or target is None:
        return []
    by, word = found["budget_percentile"], "holds" if found["holds_budget"] else "does NOT hold"
    value = getattr(latency, f"latency_ms_{by}")
    what = f"{name}, {latency.runtime}, batch {latency.batch_size}"
    return [f"{what}: {by} {value:.3f} ms {word} the {target.latency_budget_ms:g} ms of {target.name}"]


def refuse_check_without_budget(target: Target | None, *, check: bool) -> None:
    """Raises UsageError for `--check` with nothing to check against."""
    if check and (target is None or target.latency_budget_ms is None):
        raise UsageError("--check needs a latency budget: a --target FILE.yaml that says latency_budget_ms.")


def refuse_over_budget(target: Target | None, named: list[tuple[str, Latency]], *, check: bool) -> None:
    """Raises CompressError, with `check`, where a row does not hold the budget; to be called after printing."""
    lines = verdict(target, named)
    over = [line for line in lines if " NOT " in line]
    if check and not lines:
        raise CompressError("--check: nothing was timed that has a latency to hold against the budget.")
    if check and over:
        raise CompressError("; ".join(over) + ".")
