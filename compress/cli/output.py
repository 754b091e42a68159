"""What every command shares: `--json`, `--debug`, results on standard output, talk on standard error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def common(function: Command) -> Command:
    """Add `--json` (passed on as `as_json`) and `--debug` (read by the outermost frame)."""
    function = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of a failure.")(
        function
    )
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")(function)


def emit(result: Mapping[str, Any], *, as_json: bool, text: str | None = None) -> None:
    """Print `result` as one JSON object, or `text` (default: one `key: value` a line) for people."""
    if as_json:
        from profiles.plain import finite

        click.echo(json.dumps(finite(result)))
    else:
        click.echo(text if text is not None else "\n".join(f"{key}: {value}" for key, value in result.items()))


def say(message: str) -> None:
    """One line of talk, on standard error."""
    click.echo(message, err=True)


def table(rows: list[list[str]], header: list[str]) -> str:
    """Rows of text under a header, aligned for a terminal of any width (numbers to the right)."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    right = [all(is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(row: list[str]) -> str:
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *(line(row) for row in rows)])


def is_number(text: str) -> bool:
    return bool(text) and (text[0].isdigit() or text in ("-", "–"))


def parse_size(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`HxW` or one number for a square -> (height, width)."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", value.strip().lower())
    if found is None or int(found[1]) == 0 or found[2] == "0":
        raise click.BadParameter(f"found {value!r}, expected HxW in pixels, for example 32x32")
    return int(found[1]), int(found[2] or found[1])
