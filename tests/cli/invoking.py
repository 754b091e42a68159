"""Calling the command line in this process, and reading what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from compress.cli import main

TEACHER = "embedded/fashion_wrn16_2"
#: two steps of a MosaicKD that fits into a second
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
    """The one JSON object on standard output of a command that went well."""
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def read_error(result: Result, code: int) -> str:
    """The one sentence of a command that failed; before it only talk of decoding, and of what folders are called."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    *talk, last = result.stderr.strip().splitlines()
    assert last.startswith("Error: "), result.stderr
    allowed = ("decoding ", "Assumed: ")
    assert all(line.startswith(allowed) or "not named as the model's classes" in line for line in talk), talk
    assert "internal error" not in last
    return last.removeprefix("Error: ")


def list_files(folder: Path) -> set[str]:
    """Every file below `folder`, by its path in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
