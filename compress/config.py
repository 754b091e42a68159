"""YAML and `--set` -> plain dataclasses. Every error names its place, the setting, and the nearest valid one.

The YAML is version 1.2's core: `1e-3` is a number, `no` and `2024-01-01` are text. Nothing in a file can run code, and
anchors are refused (a few lines of them can unfold to gigabytes).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import annotated_types
import pydantic
import yaml
from pydantic.fields import FieldInfo

from compress.errors import UsageError, nearest

T = TypeVar("T")
Keys = tuple[str | int, ...]
MAX_BYTES = 1_000_000  #: of a recipe; a larger file is something else

FLOAT = r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
SCALARS = {  # tag -> (pattern, first characters)
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (FLOAT, list("-+.0123456789")),
}


class Loader(yaml.SafeLoader):
    """Nodes of YAML 1.2's core schema, without anchors."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="anchors are not supported; write the value out", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """Writes what Loader reads back."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_pattern, _first) in SCALARS.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(re.sub(r"\.(?=[iInN])", "", node.value)))
Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=not any(isinstance(item, dict | list) for item in items)
    ),
)


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


def read_yaml(path: Path) -> Document:
    """The mapping in a YAML file. Raises UsageError, with the line, for anything that is not one."""
    path = Path(path)
    try:
        content = path.read_bytes()[: MAX_BYTES + 1]
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path}: larger than {MAX_BYTES} bytes; expected a recipe.")
    try:
        return parse(content.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: not UTF-8 text; expected a YAML file.") from error


def parse(text: str, where: str = "") -> Document:
    """The mapping in a YAML text that came from `where`."""
    loader = None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            found = "nothing" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else repr(node.value)
            raise UsageError(f"{where}: found {found}, expected a mapping of `key: value` lines.")
        places: dict[Keys, str] = {}
        texts: dict[Keys, str] = {}
        data = _value(loader, node, (), where, places, texts)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{where}{line}: not valid YAML ({error.problem or error.context}).") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UsageError(f"{where}:{line}: not valid YAML (a control character).") from error
    except RecursionError as error:
        raise UsageError(f"{where}: nested too deep for a recipe.") from error
    finally:
        if loader is not None:
            loader.dispose()
    places[()] = where
    return Document(data, where, places, texts)


def _value(
    loader: Loader, node: yaml.Node, keys: Keys, where: str, places: dict[Keys, str], texts: dict[Keys, str]
) -> Any:
    places[keys] = f"{where}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*keys, i), where, places, texts) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        texts[keys] = node.value
        try:
            return loader.construct_object(node)
        except ValueError as error:
            raise UsageError(f"{places[keys]}: {dotted(keys)}: not a number that can be read.") from error
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UsageError(f"{where}:{line}: a key must be a word, not a list or mapping.")
        key = key_node.value
        if key in data:
            first = places[(*keys, key)].rpartition(":")[2]
            raise UsageError(f"{where}:{line}: {dotted((*keys, key))}: given twice, first in line {first}; remove one.")
        data[key] = _value(loader, value_node, (*keys, key), where, places, texts)
        places[(*keys, key)] = f"{where}:{line}"
    return data


def parse_set(items: Sequence[str], known: Iterable[str] = ()) -> dict[str, Any]:
    """`["method.local=0.5", "pace.steps=10"]` -> nested mappings; a value is a YAML scalar, list or mapping.

    `known` are the dotted paths there are, for the suggestion where a path lacks its section. The last of two wins.
    """
    known = list(known)
    result: dict[str, Any] = {}
    for item in items:
        path, equals, text = item.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            raise UsageError(f"--set {item}: expected section.setting=value, for example pace.steps=1000.")
        value = parse(f"value: {text.strip()}" if "\n" not in text else f"value:\n{text}", f"--set {item}").data[
            "value"
        ]
        if len(keys) == 1 and keys[0] not in known and not isinstance(value, dict | list):
            full = [name for name in known if name.rpartition(".")[2] == keys[0]]
            hint = f"; did you mean {' or '.join(map(repr, full))}?" if full else nearest(keys[0], known)
            raise UsageError(f"--set {item}: expected the full path, section.setting=value{hint or '.'}")
        for key in reversed(keys[1:]):
            value = {key: value}
        result = Document(result).merge({keys[0]: value}).data
    return result


def paths(cls: type, prefix: str = "") -> list[str]:
    """The dotted paths of all settings of a dataclass, sections before what is in them."""
    found = []
    for name, hint in settings(cls).items():
        found.append(prefix + name)
        for section in members(hint):
            found += paths(section, f"{prefix}{name}.") if dataclasses.is_dataclass(section) else []
    return found


def validate(
    cls: type[T], document: Document | Mapping[str, Any], *, path: str = "", ignore: Collection[str] = ()
) -> T:
    """The dataclass `cls` made from the mapping at `path` (dotted; "" is the whole), strictly.

    Keys in `ignore` are left out: they belong to someone else. A number written where text is expected (`precision: 32`)
    is taken as it was written. Raises one UsageError that has a line for every wrong setting.
    """
    if not isinstance(document, Document):
        document = from_mapping(document, "")
    top = split(path)
    data = dig(document.data, top, {})
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key not in ignore}
    adapter = pydantic.TypeAdapter(tuple[cls], config=pydantic.ConfigDict(extra="forbid"))
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
    """An error's location without the names of union members, the type expected there, and the last dataclass on the way."""
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


def dump(value: Any) -> str:
    """A dataclass or mapping as YAML that reads back equal: paths as text, tuples as lists, floats exact."""
    return yaml.dump(plain(value), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000)


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


def field_help(cls: type) -> dict[str, str]:
    """The `#:` comment of each field of a dataclass, read from its source: behind the field, or above it."""
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
        if (isinstance(data, dict) and key in data) or (
            isinstance(data, list) and isinstance(key, int) and 0 <= key < len(data)
        ):
            data = data[key]
        else:
            return default
    return data
