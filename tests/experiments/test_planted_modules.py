"""Python files in the working directory do not run, unless the user names them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compress.experiments.runner import run_compress
from compress.plugins import child_command, child_path

#: modules that children import early, late and perhaps
PLANTED = ("click", "compress", "ctypes", "json", "numpy", "ray", "runpy", "signal", "torch", "yaml")
COMMAND = Path(sys.executable).with_name("compress")
COMPARE = (
    "compare", "--teacher", "embedded/fashion_wrn16_2", "--student", "wrn16_1", "--methods", "kd", "--steps", "1",
    "--seeds", "2", "--batch-size", "8", "--device", "cpu", "--set", "data.views=1",
)  # fmt: skip
DISTILL = (
    "distill", "--teacher", "embedded/fashion_wrn16_2", "--student", "wrn16_1", "--method", "kd", "--steps", "1",
    "--batch-size", "8", "--device", "cpu", "--devices", "2", "--set", "data.views=1",
)  # fmt: skip


@pytest.fixture
def planted(tmp_path, monkeypatch) -> Path:
    """A working directory full of modules that write down their names."""
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(f"open('ran-{name}', 'w').close()\nraise SystemExit(77)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names_that_ran(directory: Path) -> list[str]:
    return [path.name for path in directory.glob("ran-*")]


def test_child_of_an_experiment_ignores_working_directory(planted: Path):
    assert run_compress(["--version"], lambda _: None) == (0, "")
    assert names_that_ran(planted) == []


def test_child_of_a_training_ignores_working_directory(planted: Path, monkeypatch):
    monkeypatch.syspath_prepend(str(planted))
    run = subprocess.run(child_command("compress.units"), capture_output=True, text=True)
    assert (run.returncode, run.stderr, names_that_ran(planted)) == (0, "", [])


def test_search_path_of_a_child_has_no_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/elsewhere"])
    assert child_path() == ["/elsewhere"]
    package = Path(sys.modules["compress"].__path__[0]).parent
    monkeypatch.chdir(package)
    monkeypatch.setattr(sys, "path", [str(package), "/elsewhere"])
    assert child_path() == ["/elsewhere", str(package)]


def test_module_on_command_line_ignores_planted_modules(planted: Path):
    (planted / "compress.py").unlink()  # this one is Python's own choice
    (planted / "runpy.py").unlink()
    run = subprocess.run([sys.executable, "-m", "compress", "--version"], capture_output=True, text=True)
    assert (run.returncode, run.stderr, names_that_ran(planted)) == (0, "", [])


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(*COMPARE, "--workers", "2"), (*COMPARE, "--workers", "1"), DISTILL])
def test_commands_ignore_planted_modules(planted: Path, photos: Path, clothes: Path, tmp_path, arguments):
    data = ["--ood", str(photos), "--val", str(clothes), "--out", str(tmp_path / "out")]
    run = subprocess.run([str(COMMAND), *arguments, *data], capture_output=True, text=True)
    assert (run.returncode, names_that_ran(planted)) == (0, []), run.stderr
