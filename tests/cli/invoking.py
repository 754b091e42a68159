"""Call the command line in this process and read its output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from compress.cli import main

TEACHER = "embedded/fashion_wrn16_2"
#: two steps of a MosaicKD that take about a second
TINY = (
    "--steps", "2", "--batch-size", "8", "--precision", "32", "--device", "cpu",
    "--set", "method.width_G=8", "--set", "method.width_D=8", "--set", "data.views=1",
)  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in arguments])


def distill(
    *arguments: object, teacher: object = TEACHER, ood: object, out: object, student: str = "wrn16_1"
) -> Result:
    return run("distill", "--teacher", teacher, "--ood", ood, "--student", student, "--out", out, *TINY, *arguments)


def read_result(result: Result) -> dict[str, Any]:
    """Return the one JSON object that a successful command printed."""
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


def read_error(result: Result, code: int) -> str:
    """Return the sentence of a failed command: one line, no traceback, nothing on standard output."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: "), result.stderr
    assert "internal error" not in last
    return last.removeprefix("Error: ")


def list_files(directory: Path) -> set[str]:
    """Return every file below `directory` by its path in it."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
