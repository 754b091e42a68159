"""What names, errors and progress contain cannot change the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from invoking import run
from rich.console import Console

from compress.cli import tables
from compress.cli.output import emit, print_error, print_status
from compress.engine.logging import ProgressDisplay
from profiles.records import Record, append_records

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202eb\u200bc\udcff[link=x]d[/link]\tn"


def is_harmless(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


def test_messages_are_harmless(capsys: pytest.CaptureFixture[str]):
    print_status(HOSTILE)
    print_error(HOSTILE, 1)
    emit({"x": HOSTILE}, False, lambda result: result["x"])
    emit({"x": HOSTILE}, False, lambda result: tables.format_pairs([(HOSTILE, HOSTILE + "\n")]))
    emit({"x": HOSTILE}, False, lambda result: tables.format_table([[HOSTILE + "\n"]], [HOSTILE]))
    out, err = capsys.readouterr()
    assert is_harmless(out)
    assert is_harmless(err)
    assert len(out.splitlines()) == 5, "a cell has one line"
    assert "[link=x]" in err, "text is no markup"


def test_json_is_valid(capsys: pytest.CaptureFixture[str]):
    emit({HOSTILE: HOSTILE}, True, str)
    out = capsys.readouterr().out
    assert is_harmless(out)
    assert json.loads(out) == {HOSTILE: HOSTILE}


@pytest.mark.parametrize(
    "arguments",
    [["inspect", HOSTILE], ["eval", HOSTILE, "--data", HOSTILE], ["report", HOSTILE], [HOSTILE],
     ["bench", "--" + HOSTILE],
     ["methods", HOSTILE], ["distill", "--recipe", HOSTILE], ["profile", "wrn16_1", "--input-size", HOSTILE]],
    ids=lambda arguments: arguments[0][:8],
)  # fmt: skip
@pytest.mark.parametrize("debug", [False, True])
def test_errors_are_harmless(arguments: list[str], debug: bool):
    result = run(*arguments, *(["--debug"] if debug and arguments != [HOSTILE] else []))
    assert result.exit_code in (1, 2)
    assert is_harmless(result.stdout)
    assert is_harmless(result.stderr)
    assert "internal error" not in result.stderr


def test_report_of_hostile_names_is_harmless(tmp_path: Path):
    name = HOSTILE.replace("\udcff", "")
    append_records(tmp_path, [Record(name, method=name, metrics={"accuracy": 0.5}, images={name: name})])
    result = run("report", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "owned" in result.stdout
    assert is_harmless(result.stdout + result.stderr)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_is_harmless(is_terminal: bool, capsys: pytest.CaptureFixture[str]):
    display = ProgressDisplay(HOSTILE)
    shown = io.StringIO()
    display.console = Console(file=shown, force_terminal=is_terminal, color_system=None, width=200)
    display.live = is_terminal
    with display:
        display.update(1.0, 3, HOSTILE)
        display.print_line(HOSTILE)
    text = shown.getvalue() + capsys.readouterr().err
    assert "owned" in text
    for sequence in ("\x1b]0;", "\x9b", "\u202e", "\x1b]8;"):
        assert sequence not in text
