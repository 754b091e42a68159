"""From a recipe, arguments and dotted overrides to a checked config."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.config import Document
    from compress.engine.method import Method
    from compress.training.setup import TrainConfig

#: argument -> key of the recipe
KEYS = {
    "student": "student.model",
    "classes": "task.classes",
    "image_size": "task.image_size",
    "resize": "task.resize",
    "task": "task.name",
    "threshold": "task.threshold",
    "unlabeled": "data.unlabeled",
    "labeled": "data.labeled",
    "validation": "data.validation",
    "label_order": "data.label_order",
    "unlabeled_subset": "data.subset",
    "grayscale": "task.grayscale",
    "data_root": "data.root",
    "method": "method.name",
    "patch_size": "method.patch_size",
    "steps": "training.steps",
    "epochs": "training.epochs",
    "time_limit": "training.time_limit",
    "batch_size": "training.batch_size",
    "precision": "training.precision",
    "device": "training.device",
    "seed": "training.seed",
}
#: argument -> key of the first teacher
TEACHER_KEYS = {"teacher": "model", "arch": "architecture"} | {
    name: name for name in ("mean", "std", "class_names", "ema", "output", "allow_bad_teacher", "trust_pickle")
}
LENGTHS = ("steps", "epochs", "time_limit")


def resolve_config(
    recipe: str | Path | None = None, settings: Mapping[str, Any] | Sequence[str] = (), *, allow_code: bool = False,
    progress: Callable[[str], None] = lambda _: None, **arguments: Any,
) -> tuple[TrainConfig, Method]:  # fmt: skip
    """Return the checked config and its method; without a length, the default number of steps is announced.

    With `allow_code`, the recipe may name code of the user. A recipe may trust pickles if `trust_pickle` is given.
    """
    from compress.training.setup import DEFAULT_STEPS, load_config

    document = build_document(recipe, settings, **arguments)
    if all(document.get(f"training.{length}") is None for length in LENGTHS):
        progress(f"Assumed: {DEFAULT_STEPS} steps (no length given). If wrong: --steps, --epochs or --time-limit.")
        document = document.merge({"training": {"steps": DEFAULT_STEPS}}, source="")
    return load_config(document, allow_code=allow_code, trust_pickle=bool(arguments.get("trust_pickle")))


def build_document(
    recipe: str | Path | None = None, settings: Mapping[str, Any] | Sequence[str] = (), **arguments: Any
) -> Document:
    """Return the settings of a recipe, arguments over it and `settings` over both, not yet checked.

    Arguments that are None or False keep the value of the recipe.
    """
    from compress import config

    unknown = arguments.keys() - {*KEYS, *TEACHER_KEYS}
    if unknown:
        raise TypeError(f"unexpected arguments: {', '.join(sorted(unknown))}")
    empty = config.document_from_mapping({}, source="")
    document = empty if recipe is None else config.load_yaml(find_recipe(recipe))
    given = {KEYS[name]: value for name, value in arguments.items() if name in KEYS and value is not None}
    if any(f"training.{length}" in given for length in LENGTHS):
        given = {**{f"training.{length}": None for length in LENGTHS}, **given}
    document = document.merge(nest_keys(given), source="")
    teacher = {key: arguments[name] for name, key in TEACHER_KEYS.items() if is_given(arguments.get(name))}
    if teacher:
        document = document.merge({"teachers": {"0": teacher} if document.get("teachers") else [teacher]}, source="")
    if isinstance(settings, Mapping):
        return document.merge(nest_keys(settings), source="settings")
    return document.merge(config.parse_overrides(settings, known=list_setting_paths()), source="--set")


def is_given(value: object) -> bool:
    """Whether an argument for the teacher is neither None nor False, the value of a flag that was not set."""
    return value is not None and value is not False


def list_setting_paths() -> list[str]:
    """Return the dotted path of every setting, those of all methods included."""
    from compress import config
    from compress.methods import METHODS
    from compress.training.setup import TrainConfig

    of_methods = [f"method.{name}" for kind in METHODS.values() for name in config.setting_types(kind)]
    return list(dict.fromkeys([*config.setting_paths(TrainConfig), *of_methods]))


def find_recipe(recipe: str | Path) -> Path:
    """Return `recipe` as a path, or the path of the shipped recipe with this name."""
    shipped = Path(__file__).parent.parent / "recipes" / f"{recipe}.yaml"
    return shipped if not os.path.exists(recipe) and os.path.exists(shipped) else Path(recipe)


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
