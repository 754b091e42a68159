"""Validation of settings into dataclasses by pydantic, with errors as `file:line: key: found X, expected Y`."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
import unicodedata
from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar, Union

import pydantic

from compress.config.yaml import (
    Document,
    Keys,
    document_from_mapping,
    format_message,
    get_nested,
    join_path,
    split_path,
    to_plain,
)
from compress.errors import UsageError, suggest_nearest

T = TypeVar("T")
MAX_ERRORS = 8
#: limits of all settings: items of a list, bits of a whole number, and characters of a text, as of a path
MAX_ITEMS, MAX_BITS, MAX_TEXT = 1000, 63, 4096
#: kinds of characters that no text holds: control characters, and bytes that are not UTF-8
UNPRINTABLE = ("Cc", "Cs")
#: JSON's words in pydantic's messages -> YAML's
WORDS = {"object": "mapping", "array": "list", "string": "text", "a valid ": "a ", "an mapping": "a mapping"}


def validate(
    cls: type[T], document: Document | Mapping[str, Any], *, path: str = "", ignore: Collection[str] = ()
) -> T:
    """Create the dataclass `cls` from a section of a document, strictly.

    Args:
        cls: a dataclass; its field types and `annotated_types` limits are checked.
        document: the settings.
        path: dotted path of the section; empty for the whole document.
        ignore: keys of the section that belong to someone else.

    Raises:
        UsageError: one line per wrong setting, with its location, the expectation and the nearest valid key.
    """
    if not isinstance(document, Document):
        document = document_from_mapping(document, "")
    top = split_path(path)
    data = get_nested(document.data, top)
    if data is None:
        data = {}
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key not in ignore}
    # In a tuple: pydantic takes no configuration for a dataclass itself, but hands it down to one.
    alias: Any = types.GenericAlias(tuple, (cls,))
    adapter = pydantic.TypeAdapter(alias, config=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False))
    check_values(data, top, document)
    try:
        # Strict JSON does not convert between numbers and text, but lists become tuples and text becomes paths.
        return adapter.validate_json(json.dumps([data]), strict=True)[0]
    except pydantic.ValidationError as error:
        messages = _describe_errors(cls, data, error, top, document)
        raise UsageError("\n".join(messages[:MAX_ERRORS])) from error


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise UsageError if an argument that is no setting is out of its range."""
    if not low <= value <= high:
        raise UsageError(f"{name}: found {value}, expected {low} to {high}.")


def check_values(value: Any, keys: Keys, document: Document) -> None:
    """Raise UsageError for a value that no setting can have, whatever its type: huge, or not printable."""
    message = ""
    if isinstance(value, str) and any(unicodedata.category(letter) in UNPRINTABLE for letter in value):
        message = f"found {_format_value(value)}, expected text without control characters."
    elif isinstance(value, str) and len(value) > MAX_TEXT:
        message = f"found {len(value)} characters, expected at most {MAX_TEXT}."
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        message = f"found a whole number of {value.bit_length()} bits, expected at most {MAX_BITS}."
    elif isinstance(value, list) and len(value) > MAX_ITEMS:
        message = f"found {len(value)} items, expected at most {MAX_ITEMS}."
    if message:
        raise UsageError(format_message(document.locate(keys), join_path(keys), message))
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        check_values(key, keys, document)
        check_values(item, (*keys, key), document)


def _keys_in_data(data: Any, location: Keys) -> Keys:
    """Return the part of an error's location that is in the data; pydantic adds names of union members."""
    keys: Keys = ()
    for key in location:
        section = get_nested(data, keys)
        if (isinstance(section, dict) and key in section) or (isinstance(section, list) and isinstance(key, int)):
            keys = (*keys, key)
    return keys


def _describe_errors(
    cls: type, data: Any, failure: pydantic.ValidationError, top: Keys, document: Document
) -> list[str]:
    messages: dict[Keys, str] = {}
    expected: dict[Keys, list[str]] = {}
    choices: dict[Keys, list[str]] = {}
    for problem in failure.errors():
        kind, name = problem["type"], problem["loc"][-1]
        keys = _keys_in_data(data, problem["loc"][1:])
        if kind in ("unexpected_keyword_argument", "extra_forbidden"):
            owner = _dataclass_at(cls, keys[:-1])
            known = list(setting_types(owner)) if owner else []
            hint = suggest_nearest(str(name), known) or (f"; known are {', '.join(known)}." if known else ".")
            messages.setdefault((*top, *keys), f"no such setting{hint}")
        elif kind in ("missing", "missing_argument"):
            messages.setdefault((*top, *keys, name), "missing.")
        elif kind in ("value_error", "assertion_error"):
            messages.setdefault((*top, *keys), problem["msg"].partition(", ")[2] or problem["msg"])
        else:
            choices.setdefault(keys, []).extend(
                re.findall("'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))
            )
            expected.setdefault(keys, []).append(_plain_words(problem["msg"].removeprefix("Input should be ")))
    for keys, kinds in expected.items():
        value = get_nested(data, keys)
        close = suggest_nearest(value, choices.get(keys, [])) if isinstance(value, str) else ""
        found = f"found {_format_value(value)}, expected {' or '.join(dict.fromkeys(kinds))}"
        messages.setdefault((*top, *keys), found + (close or "."))
    return [format_message(document.locate(keys), join_path(keys), text) for keys, text in messages.items()]


def _plain_words(text: str) -> str:
    for word, plain in WORDS.items():
        text = text.replace(word, plain)
    return text


def _format_value(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _types_at(cls: Any, keys: Keys) -> list[Any]:
    """Return the types that the setting at `keys` can have."""
    hints = [cls]
    for key in keys:
        below = []
        for member in (member for hint in hints for member in union_members(hint)):
            arguments = typing.get_args(member)
            if dataclasses.is_dataclass(member):
                below += [hint for name, hint in setting_types(member).items() if name == key]
            elif typing.get_origin(member) in (list, tuple, dict):
                below.append(arguments[-1] if typing.get_origin(member) is dict else arguments[0])
        hints = below
    return [member for hint in hints for member in union_members(hint)]


def _dataclass_at(cls: type, keys: Keys) -> Any:
    return next((member for member in _types_at(cls, keys) if dataclasses.is_dataclass(member)), None)


def setting_paths(cls: Any, prefix: str = "") -> list[str]:
    """List the dotted paths of all settings of a dataclass, each section before its contents."""
    paths = []
    for name, hint in setting_types(cls).items():
        paths.append(prefix + name)
        for section in filter(dataclasses.is_dataclass, union_members(hint)):
            paths += setting_paths(section, f"{prefix}{name}.")
    return paths


def setting_types(cls: Any) -> dict[str, Any]:
    """Return the init fields of a dataclass with their types."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {one.name: hints[one.name] for one in dataclasses.fields(cls) if one.init}


def union_members(hint: Any) -> list[Any]:
    """Return the types of a union without annotations, or the type itself."""
    if typing.get_origin(hint) is Annotated:
        return union_members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [inner for member in typing.get_args(hint) for inner in union_members(member)]
    return [hint]


def add_defaults(cls: Any, section: Any) -> Any:
    """Return a section of plain values with the defaults of the settings that it lacks, not validated."""
    if isinstance(section, list):
        return [add_defaults(cls, item) for item in section]
    if not isinstance(section, dict):
        return section
    complete = dict(section)
    for one in dataclasses.fields(cls):
        if one.init and one.name in section:
            for kind in filter(dataclasses.is_dataclass, _item_types(setting_types(cls)[one.name])):
                complete[one.name] = add_defaults(kind, section[one.name])
        elif one.init and one.default is not dataclasses.MISSING:
            complete[one.name] = to_plain(one.default)
        elif one.init and one.default_factory is not dataclasses.MISSING:
            complete[one.name] = to_plain(one.default_factory())
    return complete


def _item_types(hint: Any) -> list[Any]:
    """Return the members of a union, and the types of the items of those that are lists."""
    members = union_members(hint)
    return [*members, *(item for one in members if typing.get_origin(one) is list for item in typing.get_args(one))]


def setting(default: Any = dataclasses.MISSING, description: str = "", *, factory: Any = dataclasses.MISSING) -> Any:
    """Declare a field of a settings dataclass with its help.

    Args:
        default: value of a setting that is not given; without one (and without `factory`) the setting is required.
        description: help of the setting, one sentence.
        factory: function without arguments that creates the default.

    Example:
        >>> @dataclasses.dataclass
        ... class Optimizer:
        ...     lr: float = setting(0.1, "Learning rate.")
        >>> field_descriptions(Optimizer)
        {'lr': 'Learning rate.'}
    """
    metadata = {"description": description}  # pydantic copies it into the JSON schema
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def field_descriptions(cls: Any) -> dict[str, str]:
    """Return the help of each setting of a dataclass."""
    return {one.name: one.metadata.get("description", "") for one in dataclasses.fields(cls) if one.init}


def json_schema(cls: Any) -> dict[str, Any]:
    """Return the JSON schema of a settings dataclass, for editors."""
    return pydantic.TypeAdapter(cls).json_schema()
