"""Settings -> a plain dataclass, strictly; pydantic checks, and its complaints are put in the user's words."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

import pydantic

from compress.config.document import Document, Keys, dig, dotted, from_mapping, sentence, shown, split
from compress.config.fields import expected, members, settings
from compress.errors import UsageError, nearest

T = TypeVar("T")


def validate(
    cls: type[T], document: Document | Mapping[str, Any], *, path: str = "", ignore: Collection[str] = ()
) -> T:
    """The dataclass `cls` made from the mapping at `path` (dotted; "" is the whole), strictly.

    Keys in `ignore` are left out: they belong to someone else. A number where text is expected (`precision: 32`) is
    taken as it was written. Raises one UsageError that has a line for every wrong setting.
    """
    if not isinstance(document, Document):
        document = from_mapping(document, "")
    top = split(path)
    data = dig(document.data, top, None)
    if data is None:
        data = {}
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key not in ignore}
    # In a tuple, because pydantic takes no configuration for a dataclass itself, but hands it down to one.
    one: Any = types.GenericAlias(tuple, (cls,))
    adapter = pydantic.TypeAdapter(one, config=pydantic.ConfigDict(extra="forbid"))
    try:
        return _check(adapter, data)
    except pydantic.ValidationError as error:
        wrong = error
    as_text = _as_written(data, wrong, top, document)
    if as_text is not None:
        try:
            return _check(adapter, as_text)
        except pydantic.ValidationError as error:
            wrong = error
    lines = {line: None for problem in wrong.errors() for line in [_complaint(cls, data, problem, top, document)]}
    raise UsageError("\n".join(list(lines)[:8])) from wrong


def _check(adapter: pydantic.TypeAdapter[Any], data: Any) -> Any:
    # JSON's strict mode: no guessing between numbers and text, but lists make tuples and text makes paths.
    return adapter.validate_json(json.dumps([data]), strict=True)[0]


def _as_written(data: Any, wrong: pydantic.ValidationError, top: Keys, document: Document) -> Any:
    """`data` with numbers and truth values as text where text was expected, or None where there are none."""
    changed, copy = False, json.loads(json.dumps(data))
    for problem in wrong.errors():
        if problem["type"] not in ("string_type", "literal_error", "path_type"):
            continue
        keys = _real_keys(data, problem["loc"][1:])
        value = dig(data, keys, None)
        if keys and isinstance(value, bool | int | float):
            text = document.texts.get((*top, *keys), json.dumps(value))
            dig(copy, keys[:-1], None)[keys[-1]] = text
            changed = True
    return copy if changed else None


def _real_keys(data: Any, loc: Keys) -> Keys:
    """The part of an error's location that is in the data: pydantic adds names of union members."""
    keys: list[str | int] = []
    for key in loc:
        inside = dig(data, tuple(keys), None)
        if (isinstance(inside, dict) and key in inside) or (isinstance(inside, list) and isinstance(key, int)):
            keys.append(key)
    return tuple(keys)


def _complaint(cls: type, data: Any, problem: Any, top: Keys, document: Document) -> str:
    keys, hint, owner = _follow(cls, problem["loc"][1:])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        name = str(problem["loc"][-1])
        here = (*top, *keys, name)
        siblings = list(settings(owner)) if owner else []
        of = f" of {owner.__name__}" if owner and len(here) > 1 else ""
        known = nearest(name, siblings) or (f"; known are {', '.join(siblings)}." if siblings else ".")
        return sentence(document.place(here), dotted(here), f"no such setting{of}{known}")
    here = (*top, *keys)
    place, name = document.place(here), dotted(here)
    if problem["type"] in ("missing", "missing_argument"):
        return sentence(place, name, f"missing; expected {expected(hint)}.")
    if problem["type"] in ("value_error", "assertion_error"):
        return sentence(place, name, problem["msg"].partition(", ")[2] or problem["msg"])
    value = dig(data, keys, None)
    choices = [c for member in members(hint) if typing.get_origin(member) is Literal for c in typing.get_args(member)]
    close = nearest(value, map(str, choices)) if isinstance(value, str) else ""
    return sentence(place, name, f"found {shown(value)}, expected {expected(hint)}{close or '.'}")


def _follow(cls: type, loc: Keys) -> tuple[Keys, Any, type | None]:
    """An error's location without the names of union members, the type expected there, the last dataclass before."""
    keys: list[str | int] = []
    hint: Any = cls
    owner: type | None = cls
    for key in loc:
        for member in members(hint):
            arguments = typing.get_args(member)
            if dataclasses.is_dataclass(member) and isinstance(member, type):
                owner = member
                if key in settings(member):
                    keys.append(key)
                    hint = settings(member)[str(key)]
                    break
            elif typing.get_origin(member) in (list, tuple) and isinstance(key, int):
                keys.append(key)
                hint = arguments[min(key, len(arguments) - 1)] if Ellipsis not in arguments else arguments[0]
                break
            elif typing.get_origin(member) is dict:
                keys.append(key)
                hint = arguments[1]
                break
    return tuple(keys), hint, owner
