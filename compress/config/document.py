"""A mapping of settings that remembers where each of them was written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import UsageError

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A mapping of settings, and where each of them was written."""

    data: dict[str, Any]
    where: str = ""
    places: dict[Keys, str] = field(default_factory=dict)  #: path of a value -> "recipe.yaml:7" or "--set"
    texts: dict[Keys, str] = field(default_factory=dict)  #: path of a scalar -> what was written for it

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path, or `default`."""
        return dig(self.data, split(path), default)

    def place(self, keys: Keys) -> str:
        """Where the value at `keys` was written, or the nearest thing around it."""
        for end in range(len(keys), -1, -1):
            if keys[:end] in self.places:
                return self.places[keys[:end]]
        return self.where

    def error(self, path: str, message: str) -> UsageError:
        """A UsageError about the setting at a dotted path."""
        return UsageError(sentence(self.place(split(path)), path, message))

    def merge(self, overrides: Mapping[str, Any] | Document, where: str = "--set") -> Document:
        """This document with `overrides` on top: mappings are joined key by key, everything else is replaced."""
        above = overrides if isinstance(overrides, Document) else from_mapping(overrides, where)
        places, texts = dict(self.places), dict(self.texts)
        data = _join(self.data, above.data, (), above, places, texts)
        return Document(data, self.where, places, texts)


def _join(
    below: Any, above: Any, keys: Keys, document: Document, places: dict[Keys, str], texts: dict[Keys, str]
) -> Any:
    if isinstance(below, list) and isinstance(above, dict) and above and all(str(key).isdigit() for key in above):
        below = dict(enumerate(below))
        above = {int(key): value for key, value in above.items()}
        if max(above) > max(below, default=-1) + len(above):
            raise document.error(dotted((*keys, max(above))), f"found number {max(above)} of a list of {len(below)}")
        return [value for _, value in sorted(_join(below, above, keys, document, places, texts).items())]
    if isinstance(below, dict) and isinstance(above, dict):
        joined = dict(below)
        for key, value in above.items():
            joined[key] = _join(below.get(key), value, (*keys, key), document, places, texts)
        return joined
    for table in (places, texts):
        for old in [old for old in table if old[: len(keys)] == keys]:
            del table[old]
    places |= {new: place for new, place in document.places.items() if new[: len(keys)] == keys}
    texts |= {new: text for new, text in document.texts.items() if new[: len(keys)] == keys}
    places.setdefault(keys, document.place(keys))
    return above


def from_mapping(mapping: Mapping[str, Any], where: str = "--set") -> Document:
    """A document of values that did not come from a file."""
    return Document(plain(mapping), where, {(): where})


def plain(value: Any) -> Any:
    """`value` as mappings, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value) if one.init}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be written as a setting")


def sentence(place: str, path: str, message: str) -> str:
    return ": ".join(part for part in (place, path, message) if part)


def shown(value: Any) -> str:
    """A value as the user would write it, cut short."""
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def split(path: str) -> Keys:
    return tuple(int(key) if key.isdigit() else key for key in path.split(".")) if path else ()


def dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


def dig(data: Any, keys: Keys, default: Any) -> Any:
    """What is at `keys` in nested mappings and lists, or `default`."""
    for key in keys:
        known: Any = dict(enumerate(data)) if isinstance(data, list) else data
        if not isinstance(known, dict) or key not in known:
            return default
        data = known[key]
    return data
