"""Recipes of earlier releases, read with today's settings, so that an upgrade does not refuse a run.

A setting that is new has today's default there, which is what the earlier release did. A setting that is gone is left
out if it had no effect. A default that has changed is a difference: the user gives the old value to continue.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.config import Document, add_defaults, load_yaml
from compress.config.yaml import get_nested, split_path
from compress.methods import find_method
from compress.training.config import TrainConfig

#: setting that is gone -> its value without effect; "method.NAME" is a setting of any method
REMOVED: dict[str, Any] = {}
#: settings that may differ when a run is resumed: they do not change what is computed
RESUMABLE_KEYS = (
    "training.device", "training.keep_checkpoints", "training.log_every", "training.max_rollbacks",
    "training.save_every", "data.cache_dir", "data.root",
)  # fmt: skip


def drop_removed(document: Document) -> Document:
    """Leave out the settings of earlier releases that are gone and had no effect."""
    data = copy.deepcopy(document.data)
    for path, value in REMOVED.items():
        *parents, last = split_path(path)
        section = get_nested(data, tuple(parents))
        if isinstance(section, dict) and last in section and section[last] == value:
            del section[last]
    return replace(document, data=data)


def read_stored_recipe(path: Path, config: TrainConfig) -> dict[str, Any]:
    """Read the recipe of a run as this release would have written it; its method is that of `config`."""
    stored = add_defaults(TrainConfig, drop_removed(load_yaml(path)).data)
    if get_nested(stored, ("method", "name")) == config.method["name"]:
        stored["method"] = {**add_defaults(find_method(config.method["name"]), stored["method"])}
    return stored


def config_differences(new: Any, old: Any, path: str = "", *, same_content: Collection[str] = ()) -> list[str]:
    """List the settings that differ and change the result, as `training.steps: 10 there, 20 here`.

    Settings in `same_content` are paths whose content is compared instead; they may only be missing in both.
    """
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        keys = [*new, *(key for key in old if key not in new)]
        prefix = f"{path}." if path else ""
        return [
            text
            for key in keys
            for text in config_differences(new.get(key), old.get(key), f"{prefix}{key}", same_content=same_content)
        ]
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old) and path == "teachers":
        return config_differences(dict(enumerate(new)), dict(enumerate(old)), path, same_content=same_content)
    if new is not None and old is not None and path in same_content:
        return []
    return [] if new == old or path in RESUMABLE_KEYS else [f"{path}: {old!r} there, {new!r} here"]
