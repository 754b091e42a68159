"""Two processes that train together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from compress.engine.play import play
from compress.errors import CompressError
from compress.methods import METHODS

TESTS = Path(__file__).parents[1]
CASES = [f"{name} {precision}" for name in METHODS for precision in ("32", "bf16")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(folder, what each of two processes found)."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": path}
    started = [
        subprocess.Popen(
            [sys.executable, TESTS / "engine" / "pair.py", folder],
            env=shared | {"RANK": str(rank), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_replicas_are_equal_to_the_bit(pair, case):
    first, second = (found[case] for found in pair[1])
    assert first["players"] == second["players"]


@pytest.mark.parametrize("case", CASES)
def test_each_process_draws_noise_and_images_of_its_own(pair, case):
    first, second = (found[case] for found in pair[1])
    assert first["random"] != second["random"]
    for seen in ("first images", "made"):
        assert len(first[seen]) == len(second[seen])
        assert all(one != other for one, other in zip(first[seen], second[seen], strict=True))
    assert first["positions"] == second["positions"]


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_two_processes_resumes_exactly(pair, case):
    assert [found[case]["differs after resuming"] for found in pair[1]] == [[], []]


@pytest.mark.parametrize("case", CASES)
def test_one_process_writes_what_there_is_once(pair, case):
    folder = pair[0].joinpath(*case.split()) / "whole"
    assert {path.name for path in (folder / "checkpoints").glob("*4*")} == {
        "step-000000004.json", "step-000000004.again.rank0.pt", "step-000000004.again.rank1.pt",
    }  # fmt: skip
    kinds = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("evaluation") == 2


def test_the_step_on_two_halves_of_a_batch_is_the_step_on_all_of_it(pair):
    assert all(found["mean gradient"]["off by"] < 1e-6 for found in pair[1])


def test_one_process_refuses_to_go_on_for_two(pair):
    run = tiny.tiny_run(pair[0] / "kd" / "32" / "whole", "kd", steps=9)
    with pytest.raises(CompressError, match=r"saved by 2 processes, resumed by 1; use --devices 2"):
        play(tiny.tiny_method("kd"), run)
