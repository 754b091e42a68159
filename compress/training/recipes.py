"""From a recipe, arguments and dotted overrides to a checked config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.config import Document
    from compress.engine.method import Method
    from compress.plan import TrainConfig

#: option -> the key of the recipe that it sets
KEYS = {
    "student": "student.model",
    "classes": "task.classes",
    "image_size": "task.image_size",
    "grey": "task.grey",
    "ood": "data.unlabelled",
    "data": "data.labelled",
    "val": "data.validation",
    "unlabeled": "data.unlabelled",
    "labeled": "data.labelled",
    "validation": "data.validation",
    "unlabeled_subset": "data.subset",
    "grayscale": "task.grey",
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

#: argument -> key of the first teacher
TEACHER_KEYS = {"teacher": "model", "teacher_arch": "arch", "trust_pickle": "trust_pickle"}
LENGTHS = ("steps", "epochs", "time_limit")


def resolve_config(
    recipe: str | Path | None = None, settings: Mapping[str, Any] | Sequence[str] = (), *,
    progress: Callable[[str], None] = lambda _: None, **arguments: Any,
) -> tuple[TrainConfig, Method]:  # fmt: skip
    """Return the checked config and its method; without a length, the default number of steps is announced."""
    from compress.plan import DEFAULT_STEPS, load_config

    document = build_document(recipe, settings, **arguments)
    if all(document.get(f"pace.{length}") is None for length in LENGTHS):
        progress(f"Assumed: {DEFAULT_STEPS} steps (no length given). If wrong: --steps, --epochs or --time-limit.")
        document = document.merge({"pace": {"steps": DEFAULT_STEPS}}, where="")
    return load_config(document)


def build_document(
    recipe: str | Path | None = None, settings: Mapping[str, Any] | Sequence[str] = (), **arguments: Any
) -> Document:
    """Return the settings of a recipe, arguments over it and `settings` over both, not yet checked.

    Arguments that are None, and a teacher's that are false, keep the value of the recipe.
    """
    from compress import config

    empty = config.from_mapping({}, where="")
    document = empty if recipe is None else config.read_yaml(find_recipe(recipe))
    given = {KEYS[name]: value for name, value in arguments.items() if name in KEYS and value is not None}
    if any(f"pace.{length}" in given for length in LENGTHS):
        given = {**{f"pace.{length}": None for length in LENGTHS}, **given}
    document = document.merge(nest_keys(given), where="")
    teacher = {key: arguments[name] for name, key in TEACHER_KEYS.items() if arguments.get(name)}
    if teacher:
        document = document.merge({"teachers": {"0": teacher} if document.get("teachers") else [teacher]}, where="")
    if isinstance(settings, Mapping):
        return document.merge(nest_keys(settings), where="settings")
    return document.merge(config.parse_set(settings, known=list_setting_paths()), where="--set")


def list_setting_paths() -> list[str]:
    """Return the dotted path of every setting, those of all methods included."""
    from compress import config
    from compress.methods import METHODS
    from compress.plan import TrainConfig

    of_methods = [f"method.{name}" for kind in METHODS.values() for name in config.settings(kind)]
    return list(dict.fromkeys([*config.paths(TrainConfig), *of_methods]))


def find_recipe(recipe: str | Path) -> Path:
    """Return `recipe` as a path, or the path of the shipped recipe with this name."""
    shipped = Path(__file__).parent.parent / "recipes" / f"{recipe}.yaml"
    return shipped if not Path(recipe).exists() and shipped.exists() else Path(recipe)


def nest_keys(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `{"a.b": 1}` to `{"a": {"b": 1}}`."""
    result: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        inner = result
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = str(value) if isinstance(value, Path) else value
    return result
