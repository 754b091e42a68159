"""What a dataclass of settings says of itself: names, types in words, help from its comments."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import annotated_types
from pydantic.fields import FieldInfo


def paths(cls: Any, prefix: str = "") -> list[str]:
    """The dotted paths of all settings of a dataclass, sections before what is in them."""
    found = []
    for name, hint in settings(cls).items():
        found.append(prefix + name)
        for section in members(hint):
            found += paths(section, f"{prefix}{name}.") if dataclasses.is_dataclass(section) else []
    return found


def settings(cls: Any) -> dict[str, Any]:
    """The fields of a dataclass that can be given, with their types."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {one.name: hints[one.name] for one in dataclasses.fields(cls) if one.init}


def members(hint: Any) -> list[Any]:
    """The types a union is made of, without annotations; one alone for anything else."""
    if typing.get_origin(hint) is Annotated:
        return members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [inner for member in typing.get_args(hint) for inner in members(member)]
    return [hint]


PLAIN_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    type(None): "null",
}
SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}


def expected(hint: Any) -> str:
    """A type in words: `a whole number > 0 or null`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        limits = [word for note in arguments[1:] for word in limit_words(note)]
        return " ".join([expected(arguments[0]), " and ".join(limits)]).strip()
    if origin in (Union, types.UnionType):
        return " or ".join(expected(member) for member in arguments)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} ({', '.join(map(expected, arguments))})"
    if origin in (list, tuple):
        return f"a list, each {expected(arguments[0])}"
    if origin is dict or hint is dict:
        return "a mapping"
    if dataclasses.is_dataclass(hint):
        return f"a mapping with {', '.join(settings(hint))}"
    return PLAIN_WORDS.get(hint) or getattr(hint, "__name__", str(hint))


def limit_words(note: Any) -> list[str]:
    if isinstance(note, FieldInfo):
        return [word for inner in note.metadata for word in limit_words(inner)]
    if isinstance(note, annotated_types.GroupedMetadata):
        return [word for inner in note for word in limit_words(inner)]
    words = [f"{sign} {getattr(note, name)}" for name, sign in SIGNS.items() if getattr(note, name, None) is not None]
    for name, word in (("min_length", "at least"), ("max_length", "at most")):
        words += [f"{word} {getattr(note, name)} long"] if getattr(note, name, None) is not None else []
    return words


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
        >>> field_help(Optimizer)
        {'lr': 'Learning rate.'}
    """
    metadata = {"description": description}  # pydantic copies it into the JSON schema
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def field_help(cls: type) -> dict[str, str]:
    """Return the help of each setting: its description, or its `#:` comment."""
    described = {one.name: one.metadata.get("description", "") for one in dataclasses.fields(cls) if one.init}
    return comments_of(cls) | {name: text for name, text in described.items() if text}


def comments_of(cls: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if dataclasses.is_dataclass(one):
            found |= _comments(one)
    return {name: found[name] for name in settings(cls) if name in found}


def _comments(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.ClassDef)
    notes: dict[int, tuple[bool, str]] = {}  # line -> (stands alone, text)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.string.startswith("#:"):
            notes[token.start[0]] = (not token.line[: token.start[1]].strip(), token.string[2:].strip())
    found = {}
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        lines = [notes[node.end_lineno][1]] if node.end_lineno in notes else []
        above = node.lineno - 1
        while not lines[1:] and above in notes and notes[above][0]:
            lines.insert(0, notes[above][1])
            above -= 1
        if lines:
            found[node.target.id] = " ".join(lines)
    return found
