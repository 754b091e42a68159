"""The YAML of recipes: read with the place of every value, written so that it reads back equal.

It is version 1.2's core: `1e-3` is a number, `no` and `2024-01-01` are text. Nothing in a file can run code: tags
are refused, and so are anchors (a few lines of them can unfold to gigabytes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from compress.config.document import Document, Keys, dotted, plain
from compress.errors import UsageError, nearest

MAX_BYTES = 1_000_000  #: of a recipe; a larger file is something else

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
    """Nodes of YAML 1.2's core schema, without anchors."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            problem = "anchors and tags are not supported; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """Writes what Loader reads back."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_pattern, _first) in SCALARS.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(re.sub(r"\.(?=[iInN])", "", node.value)))
Dumper.add_representer(
    str,  # PyYAML loses the rarer ends of lines unless they are escaped
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
    places[keys] = _line(where, node)
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
        places[(*keys, key)] = _line(where, key_node)
    return data


def _line(where: str, node: yaml.Node) -> str:
    return f"{where}:{node.start_mark.line + 1}" if where else ""


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
        try:
            value = parse(f"value: {text.strip()}").data["value"]
        except UsageError as error:
            raise UsageError(f"--set {item}: the value is not valid YAML; put it in quotes.") from error
        if len(keys) == 1 and keys[0] not in known and not isinstance(value, dict | list):
            full = [name for name in known if name.rpartition(".")[2] == keys[0]]
            hint = f"; did you mean {' or '.join(map(repr, full))}?" if full else nearest(keys[0], known)
            raise UsageError(f"--set {item}: expected the full path, section.setting=value{hint or '.'}")
        for key in reversed(keys[1:]):
            value = {key: value}
        result = Document(result).merge({keys[0]: value}).data
    return result


def dump(value: Any) -> str:
    """A dataclass or mapping as YAML that reads back equal: paths as text, tuples as lists, floats exact."""
    return yaml.dump(plain(value), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000)
