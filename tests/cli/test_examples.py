"""The examples in the help run as printed, and the help imports little."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from invoking import run

from compress.cli import COMMANDS

#: commands with examples that take more than a few seconds
SLOW = (
    "distill",
    "compare",
    "synthesize",
    "eval",
    "inspect",
    "sweep",
    "train",
    "bench",
    "demo",
    "export",
    "compress distill",
)


def examples(*command: str) -> list[list[str]]:
    """Return the arguments of every example in the help of a command."""
    text = run(*command, "--help").stdout
    found = re.search(r"Examples?:\n", text)
    assert found, f"{command}: no example"
    block = text[found.end() :].split("\n\n")[0].replace("\\\n", " ")
    lines = [line.strip() for line in block.splitlines() if line.strip()]
    assert lines
    assert all(line.startswith("compress ") for line in lines), lines
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.parametrize("command", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in COMMANDS])
def test_help_example_runs(command, tmp_path, monkeypatch, first_run) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(first_run[0], tmp_path / "runs" / "demo")  # for `compress report`
    for arguments in examples(command):
        assert arguments[0] == command
        result = run(*arguments)
        assert result.exit_code == 0, f"{arguments}: {result.stderr}"
        assert result.stdout.strip()


def test_main_example_is_distill() -> None:
    assert examples() == examples("distill")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help(command) -> None:
    text = run(command, "--help").stdout
    assert "--json" in text
    assert "--debug" in text
    options = text.partition("Options:\n")[2]
    starts = re.split(r"^  (?=-)", options, flags=re.M)[1:]
    for option in starts:
        assert len(option.split()) > 2, f"{command}: {option.strip()} has no help"


def test_help_imports_no_heavy_package() -> None:
    script = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from compress.cli import COMMANDS, main\n"
        "for command in ([], *([name] for name in COMMANDS)):\n"
        "    result = CliRunner().invoke(main, [*command, '--help'])\n"
        "    assert result.exit_code == 0, result.output\n"
        "    heavy = {'torch', 'torchvision', 'timm', 'onnx', 'onnxruntime', 'matplotlib', 'pydantic', 'numpy'}\n"
        "    assert not heavy & set(sys.modules), (command, heavy & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
