"""The examples in the docstrings of the public API run as printed."""

from __future__ import annotations

import inspect
import re
import textwrap

import pytest

import compress
from compress import api
from compress.cli import COMMANDS

#: examples that train or time something
SLOW = ("benchmark", "compare", "distill", "evaluate", "export", "run_demo", "sweep", "synthesize", "train")
VERBS = [
    name
    for name in dir(compress)
    if name[0] != "_" and inspect.isfunction(getattr(compress, name)) and hasattr(api, name)
]


def read_example(name: str) -> str:
    text = inspect.getdoc(getattr(api, name)) or ""
    match = re.search(r"^Example:\n((?:    .*\n?|\n)+)", text, flags=re.M)
    assert match, f"{name}: no example"
    return textwrap.dedent(match[1])


@pytest.mark.parametrize("name", [pytest.param(v, marks=[pytest.mark.slow] if v in SLOW else []) for v in VERBS])
def test_docstring_example_runs(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(read_example(name), f"example of {name}", "exec"), {})


def test_every_command_has_a_verb() -> None:
    verbs = {"eval": "evaluate", "bench": "benchmark", "demo": "run_demo", "schema": "get_schema"}
    verbs |= {name: f"list_{name}" for name in ("methods", "models", "datasets")}
    assert {verbs.get(command, command) for command in COMMANDS} <= set(VERBS)


def test_import_compress_is_lazy() -> None:
    import subprocess
    import sys

    script = "import sys, compress; print([n for n in ('torch', 'numpy', 'click', 'pydantic') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
