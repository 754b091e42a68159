"""Two processes that train together."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from compress.engine.trainer import train
from compress.errors import CompressError
from compress.methods import METHODS

TESTS = Path(__file__).parents[1]
#: an adversarial method, one with labels, and the baseline; all others are slow tests
FEW = ("mosaic", "supervised", "kd")
#: (precision, method)
CASES = [
    *(("32", name) for name in FEW),
    *(
        pytest.param(precision, name, marks=pytest.mark.slow)
        for precision in ("32", "bf16")
        for name in METHODS
        if (precision, name in FEW) != ("32", True)
    ),
]
each_case = pytest.mark.parametrize(("precision", "name"), CASES)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A function from a precision to (folder, results of each of two processes)."""
    return functools.cache(lambda precision, names: train_pair(tmp_path_factory.mktemp("pair"), precision, names))


@pytest.fixture
def pair(request, pairs):
    """The pair with the method of a test, or with FEW."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {"precision": "32", "name": FEW[0]}
    is_few = (params["precision"], params["name"] in FEW) == ("32", True)
    return pairs(params["precision"], FEW if is_few else tuple(METHODS))


def train_pair(folder: Path, precision: str, names: tuple[str, ...]) -> tuple[Path, list[dict]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": path}
    started = [
        subprocess.Popen(
            [sys.executable, TESTS / "engine" / "rank_process.py", folder, precision, *names],
            env=shared | {"RANK": str(rank), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@each_case
def test_replicas_are_bit_identical(pair, precision, name):
    first, second = (results[name] for results in pair[1])
    assert first["trainables"] == second["trainables"]


@each_case
def test_processes_draw_different_data(pair, precision, name):
    first, second = (results[name] for results in pair[1])
    assert first["random"] != second["random"]
    for key in ("first images", "pools"):
        assert len(first[key]) == len(second[key])
        assert all(one != other for one, other in zip(first[key], second[key], strict=True))
    assert first["positions"] == second["positions"]


@each_case
def test_two_processes_resume_exactly(pair, precision, name):
    assert [results[name]["differences"] for results in pair[1]] == [[], []]


@each_case
def test_only_rank_zero_writes_shared_files(pair, precision, name):
    folder = pair[0] / name / "whole"
    assert {path.name for path in (folder / "checkpoints").glob("*4*")} == {
        "step-000000004.json", "step-000000004.again.rank0.pt", "step-000000004.again.rank1.pt",
    }  # fmt: skip
    kinds = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("evaluation") == 2


def test_gradients_are_averaged_over_processes(pair):
    assert all(results["mean gradient"]["error"] < 1e-6 for results in pair[1])


def test_processes_roll_back_together(pair):
    first, second = (results["rollbacks"] for results in pair[1])
    assert first == second
    assert first["steps"] == [[2, 0], [6, 4]], "seen when the run saves"


def test_other_process_count_raises(pair):
    run = tiny.tiny_run(pair[0] / "kd" / "whole", "kd", steps=9)
    with pytest.raises(CompressError, match="--devices 2"):
        train(tiny.tiny_method("kd"), run)
