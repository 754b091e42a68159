"""`compress sweep` as real processes: signals, a kill, and two that share one folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from invoking import TEACHER

from compress import config

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path, photos, clothes) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(config.dump({
        "teacher": TEACHER, "ood": str(photos), "val": str(clothes), "students": ["wrn16_1"], "methods": ["kd"],
        "budget": {"steps": 60, "batch_size": 8, "precision": "32", "device": "cpu"},
        "set": ["data.views=1", "pace.log=1"], "batch_sizes": [1], "duration": 0.02,
    }))  # fmt: skip
    return path


def start(recipe: Path, *more: object) -> subprocess.Popen[str]:
    words = ["sweep", str(recipe), "--out", str(recipe.parent / "out"), "--json", *map(str, more)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "compress", *words], cwd=recipe.parent, env=environment, **pipes)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            process.terminate()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(4000):
        if process.poll() is not None or path.exists():
            return
        time.sleep(0.05)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_after_a_signal_the_same_command_goes_on_from_where_the_training_was(recipe, signum) -> None:
    cell = recipe.parent / "out" / "wrn16_1-kd-0"
    first = start(recipe)
    wait_for(cell / "metrics.jsonl", first)
    first.send_signal(signum)
    out, err = ended(first)
    assert out == ""
    if signum == signal.SIGINT:
        assert first.returncode == 130, err
        assert "0 of 1 cells are done" in err
    again = start(recipe)
    out, err = ended(again)
    assert again.returncode == 0, err
    (found,) = json.loads(out)["cells"]
    assert (found["state"], found["steps"]) == ("finished", 60)
    trained = [json.loads(line) for line in (cell / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in trained if line["kind"] == "train"]
    assert steps == list(range(1, 61)), "no step was made twice, none was lost"
    assert "decoding" not in err, "the second went on; it did not begin anew"


def test_two_processes_share_the_cells_and_only_one_times_the_files(recipe) -> None:
    options = ["--seeds", 2, "--steps", 2]
    both = [start(recipe, *options), start(recipe, *options)]
    said = [ended(one) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    begun = [line for _, err in said for line in err.splitlines() if ", into " in line]
    assert sorted(line.partition(":")[0] for line in begun) == ["wrn16_1-kd-0", "wrn16_1-kd-1"]
    assert len([line for _, err in said for line in err.splitlines() if line.startswith("timing ")]) == 1
    found = [json.loads(out) for out, _ in said]
    assert found[0]["cells"] == found[1]["cells"]
    assert {cell["state"] for cell in found[0]["cells"]} == {"finished"}
