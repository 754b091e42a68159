"""YAML recipes: values with the line they were written on, `--set` overrides, and a writer that reads back equal.

The schema is the core of YAML 1.2: `1e-3` is a number, `no` and `2024-01-01` are text. Tags and anchors are refused:
tags can run code, and a few lines of anchors can expand to gigabytes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from compress.errors import UsageError, suggest_nearest
from compress.files import require_regular_file

Keys = tuple[str | int, ...]
#: limits of a recipe: bytes, values and keys, and levels; PyYAML takes minutes for a million values
MAX_BYTES, MAX_NODES, MAX_DEPTH = 1_000_000, 10_000, 32

FLOAT = (
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
SCALARS = {  # tag -> (pattern, first characters)
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (FLOAT, list("-+.0123456789")),
}


class Loader(yaml.SafeLoader):
    """YAML 1.2 core schema without anchors and tags."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    nodes = depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        self.nodes += 1
        self.depth += 1
        problem = ""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            problem = "anchors and tags are not supported; write the value out"
        elif self.nodes > MAX_NODES:
            problem = f"found more than {MAX_NODES} values, expected a recipe"
        elif self.depth > MAX_DEPTH:
            problem = f"found more than {MAX_DEPTH} levels, expected a recipe"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Dumper(yaml.SafeDumper):
    """Writer of what Loader reads."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_pattern, _first) in SCALARS.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(re.sub(r"\.(?=[iInN])", "", node.value)))
Dumper.add_representer(
    str,  # PyYAML loses the rarer line breaks unless they are escaped
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    ),
)
Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=not any(isinstance(item, dict | list) for item in items)
    ),
)


@dataclass(frozen=True)
class Document:
    """A mapping of settings that remembers where each value was written."""

    data: dict[str, Any]
    source: str = ""  #: file, "--set", or empty
    locations: dict[Keys, str] = field(default_factory=dict)  #: "FILE:LINE" by path of the value

    def get(self, path: str, default: Any = None) -> Any:
        """Return the value at a dotted path, or `default`."""
        return get_nested(self.data, split_path(path), default)

    def locate(self, keys: Keys) -> str:
        """Return the location of the value at `keys`, or of the nearest section around it."""
        sections = (keys[:end] for end in range(len(keys), -1, -1))
        return next((self.locations[section] for section in sections if section in self.locations), self.source)

    def is_from_file(self, keys: Keys) -> bool:
        """Whether the value at `keys` was read from the file of this document, not given over it."""
        location = self.locate(keys)
        return bool(self.source) and (location == self.source or location.startswith(f"{self.source}:"))

    def error(self, path: str, message: str) -> UsageError:
        """Create a UsageError about the setting at a dotted path."""
        return UsageError(format_message(self.locate(split_path(path)), path, message))

    def merge(self, overrides: Mapping[str, Any] | Document, source: str = "--set") -> Document:
        """Return this document with `overrides` on top: mappings are merged by key, other values are replaced."""
        above = overrides if isinstance(overrides, Document) else document_from_mapping(overrides, source)
        locations = dict(self.locations)
        return Document(_merge(self.data, above.data, (), above, locations), self.source, locations)


def _merge(below: Any, above: Any, keys: Keys, document: Document, locations: dict[Keys, str]) -> Any:
    if isinstance(below, list) and isinstance(above, dict) and above and all(is_position(str(key)) for key in above):
        items = dict(enumerate(below))
        for key, value in sorted((int(key), value) for key, value in above.items()):
            if key > len(items):
                raise document.error(join_path((*keys, key)), f"found item {key} of a list of {len(items)}.")
            items[key] = _merge(items.get(key), value, (*keys, key), document, locations)
        return list(items.values())
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {k: _merge(below.get(k), value, (*keys, k), document, locations) for k, value in above.items()}
    for old in [old for old in locations if old[: len(keys)] == keys]:
        del locations[old]
    locations |= {new: location for new, location in document.locations.items() if new[: len(keys)] == keys}
    locations.setdefault(keys, document.locate(keys))
    return above


def document_from_mapping(mapping: Mapping[str, Any], source: str = "--set") -> Document:
    """Create a document of values that do not come from a file."""
    return Document(to_plain(mapping), source, {(): source})


def load_yaml(path: Path) -> Document:
    """Read the mapping in a YAML file.

    Raises:
        UsageError: the file cannot be read or is not a YAML mapping; the message names the line.
    """
    path = require_regular_file(Path(path))
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path}: larger than {MAX_BYTES} bytes; expected a recipe.")
    try:
        return parse_yaml(content.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: not UTF-8 text; expected a YAML file.") from error


def parse_yaml(text: str, source: str = "") -> Document:
    """Parse the mapping in a YAML text; `source` stands before each line number in errors."""
    locations: dict[Keys, str] = {}
    loader = None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            content = (
                "nothing" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else repr(node.value)
            )
            raise UsageError(f"{source}: found {content}, expected a mapping of `key: value` lines.")
        data = _construct(loader, node, (), source, locations)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{source}{line}: not valid YAML ({error.problem or error.context}).") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UsageError(f"{source}:{line}: not valid YAML (a control character).") from error
    finally:
        if loader is not None:
            loader.dispose()
    return Document(data, source, locations | {(): source})


def _construct(loader: Loader, node: yaml.Node, keys: Keys, source: str, locations: dict[Keys, str]) -> Any:
    location = f"{source}:{node.start_mark.line + 1}" if source else ""
    locations[keys] = location
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*keys, i), source, locations) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        try:
            return loader.construct_object(node)
        except ValueError as error:
            raise UsageError(f"{location}: {join_path(keys)}: not a readable number.") from error
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UsageError(f"{source}:{line}: found a list or mapping as a key, expected a word.")
        key = key_node.value
        if key in data:
            first = locations[(*keys, key)].rpartition(":")[2]
            raise UsageError(f"{source}:{line}: {join_path((*keys, key))}: given twice, first in line {first}.")
        data[key] = _construct(loader, value_node, (*keys, key), source, locations)
        locations[(*keys, key)] = f"{source}:{line}" if source else ""
    return data


def parse_overrides(items: Sequence[str], known: Iterable[str] = ()) -> dict[str, Any]:
    """Parse `--set` items: `["method.local=0.5"]` becomes `{"method": {"local": 0.5}}`.

    Args:
        items: `section.setting=value`, the value a YAML scalar, list or mapping. The last of two wins.
        known: dotted paths of all settings, for the suggestion when a path lacks its section.
    """
    known = list(known)
    result = Document({})
    for item in items:
        path, equals, text = item.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            raise UsageError(f"--set {item}: expected section.setting=value, for example training.steps=1000.")
        try:
            value = parse_yaml(f"value: {text.strip()}").data["value"]
        except UsageError as error:
            raise UsageError(f"--set {item}: the value is not valid YAML; put it in quotes.") from error
        if len(keys) == 1 and keys[0] not in known and not isinstance(value, dict | list):
            full = [name for name in known if name.rpartition(".")[2] == keys[0]]
            hint = f"; did you mean {' or '.join(map(repr, full))}?" if full else suggest_nearest(keys[0], known)
            raise UsageError(f"--set {item}: expected the full path, section.setting=value{hint or '.'}")
        for key in reversed(keys[1:]):
            value = {key: value}
        result = result.merge({keys[0]: value})
    return result.data


def dump_yaml(value: Any) -> str:
    """Format a dataclass or mapping as YAML that reads back equal: paths as text, tuples as lists, floats exact."""
    return yaml.dump(to_plain(value), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def to_plain(value: Any) -> Any:
    """Convert dataclasses, mappings, sequences and paths to dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: to_plain(getattr(value, one.name)) for one in dataclasses.fields(value) if one.init}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"found a {type(value).__name__}, expected a value that YAML can hold")


def format_message(location: str, path: str, message: str) -> str:
    return ": ".join(part for part in (location, path, message) if part)


def split_path(path: str) -> Keys:
    return tuple(int(key) if is_position(key) else key for key in path.split(".")) if path else ()


def is_position(key: str) -> bool:
    """Whether a key is a position in a list, rather than a name."""
    return key.isascii() and key.isdecimal() and len(key) <= len(str(MAX_NODES))


def join_path(keys: Keys) -> str:
    return ".".join(map(str, keys))


def get_nested(data: Any, keys: Keys, default: Any = None) -> Any:
    """Return the value at `keys` in nested mappings and lists, or `default`."""
    for key in keys:
        items: Any = dict(enumerate(data)) if isinstance(data, list) else data
        if not isinstance(items, dict) or key not in items:
            return default
        data = items[key]
    return data
