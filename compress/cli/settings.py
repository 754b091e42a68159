"""A dataclass's settings with their help: the `#:` comments stand in the source, beside the fields they explain."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One hyper-parameter. `default` is None where it must be given."""

    name: str
    default: object
    help: str


def headline(kind: type) -> str:
    """The first line of the docstring of `kind`, or of its module."""
    text = (kind.__doc__ or "").strip()
    return text.splitlines()[0] if text else kind.__name__


def settings(kind: type) -> list[Setting]:
    """The fields of a dataclass in their order, each with the `#:` comment on its line or on the lines above it."""
    helps: dict[str, str] = {}
    for ancestor in reversed(kind.__mro__[:-1]):
        helps |= comments(ancestor)
    return [Setting(f.name, default(f), helps.get(f.name, "")) for f in dataclasses.fields(kind) if f.init]


def default(field: dataclasses.Field[object]) -> object:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def comments(kind: type) -> dict[str, str]:
    """Field -> the text of its `#:` comment."""
    lines = textwrap.dedent(inspect.getsource(kind)).splitlines()
    definition = ast.parse("\n".join(lines)).body[0]
    found: dict[str, str] = {}
    for statement in getattr(definition, "body", []):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = beside(lines, statement) or above(lines, statement)
    return found


def beside(lines: list[str], statement: ast.AnnAssign) -> str:
    last = lines[(statement.end_lineno or statement.lineno) - 1][statement.end_col_offset or 0 :]
    return last.partition("#:")[2].strip()


def above(lines: list[str], statement: ast.AnnAssign) -> str:
    taken: list[str] = []
    for line in reversed(lines[: statement.lineno - 1]):
        if not line.strip().startswith("#:"):
            break
        taken.insert(0, line.strip().removeprefix("#:").strip())
    return " ".join(taken)
