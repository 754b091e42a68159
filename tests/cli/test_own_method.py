"""The code and the command of docs/your-own-method.md run as printed."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from invoking import read_error, read_result, run

PAGE = Path(__file__).parents[2] / "docs" / "your-own-method.md"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A working directory that contains the page's file."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "attention.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield code
    sys.modules.pop("attention", None)


def command() -> list[str]:
    (text,) = re.findall(r"^    (compress distill(?:.*\\\n)*.*)$", PAGE.read_text(), flags=re.MULTILINE)
    return shlex.split(text.replace("\\\n", " "))[1:]


def test_method_example_is_short(written):
    inside = written.partition("class AttentionTransfer:")[2]
    assert len([line for line in inside.splitlines() if line.strip()]) <= 30


@pytest.mark.slow
def test_method_example_trains_student(written, tmp_path):
    short = [{"20": "2"}.get(word, word) for word in command()]
    assert read_result(run(*short, "--json"))["steps"] == 2
    assert (tmp_path / "runs" / "attention" / "best" / "model.safetensors").exists()
    recipe = (tmp_path / "runs" / "attention" / "recipe.yaml").read_text()
    assert "attention:AttentionTransfer" in recipe
    assert "attention: 500" in recipe


def test_method_example_settings_are_listed(written):
    found = read_result(run("methods", "attention:AttentionTransfer", "--json"))
    assert {one["name"]: bool(one["description"]) for one in found["settings"]} == {"attention": True, "lr": True}


def test_invalid_method_class_is_refused(written, tmp_path):
    (tmp_path / "other.py").write_text("class Nothing:\n    def step(self): ...\n")
    assert "setup" in read_error(run("methods", "other:Nothing"), 2)
    for name in ("other:Missing", "absent:Missing"):
        assert name in read_error(run("methods", name), 2)
