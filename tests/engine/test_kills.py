"""Runs that are killed or interrupted, at any moment, saving included: what comes out is what would have come out."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from contract import lines
from nursery import SAVE, STEPS

TESTS = Path(__file__).parents[1]


class Nursery:
    """The process that forks the runs; see nursery.py."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self.process = subprocess.Popen(
            [sys.executable, TESTS / "engine" / "nursery.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        )

    def live(self, folder: Path, **order) -> dict[str, float]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"folder": str(folder), **order}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def nursery():
    made = Nursery()
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """(folder, seconds, touches of the disk) of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    told = nursery.live(folder)
    assert told["ended"] == 0
    return folder, told["seconds"], int((folder / "touches").read_text())


def kept(folder: Path) -> dict[str, bytes]:
    """All that the user gets: the students and their cards, the pictures."""
    names = [folder / which / name for which in ("best", "last") for name in ("model.safetensors", "config.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in [*names, *folder.glob("pictures/*.png")]}


def diary(folder: Path) -> list[tuple[str, int]]:
    path = folder / "diary"
    return [(line.split()[0], int(line.split()[1])) for line in path.read_text().splitlines()] if path.exists() else []


def check(folder: Path, whole: Path) -> None:
    """The run ended as the undisturbed one, and no kill cost more than the steps since the last saving."""
    assert kept(folder) == kept(whole)
    assert lines(folder) == lines(whole)
    done = 0
    for word, step in diary(folder):
        if word == "began":
            assert step >= done - SAVE
        done = max(done, step)
    assert done == STEPS
    left = {path.name for path in (folder / "checkpoints").iterdir()}
    assert len(left) == 4, f"two checkpoints and nothing that kills left behind, found {left}"


def kill_until_done(nursery: Nursery, folder: Path, orders: list[dict]) -> int:
    """Runs in `folder` killed one after another as ordered, then one left alone. Returns how many were killed."""
    ended = [nursery.live(folder, **order)["ended"] for order in orders]
    assert set(ended) <= {-signal.SIGKILL, 0}
    assert nursery.live(folder)["ended"] == 0
    return ended.count(-signal.SIGKILL)


def test_the_undisturbed_run_is_itself_repeatable(nursery, whole, tmp_path):
    assert nursery.live(tmp_path)["ended"] == 0
    check(tmp_path, whole[0])


@pytest.mark.parametrize("seed", range(3))
def test_runs_killed_at_random_moments_end_like_one_that_was_not(nursery, whole, tmp_path, seed):
    folder, seconds, _ = whole
    rng = random.Random(seed)
    assert kill_until_done(nursery, tmp_path, [{"after": rng.uniform(0.05, 0.5) * seconds} for _ in range(3)])
    check(tmp_path, folder)


@pytest.mark.parametrize("seed", range(3))
def test_runs_killed_while_they_write_end_like_one_that_was_not(nursery, whole, tmp_path, seed):
    folder, _, touches = whole
    rng = random.Random(seed)
    orders = [{"touch": rng.randrange(touches // 2), "before": rng.random() < 0.5} for _ in range(3)]
    assert kill_until_done(nursery, tmp_path, orders)
    check(tmp_path, folder)


def test_the_last_saving_overwrites_no_checkpoint_until_it_is_whole(nursery, whole, tmp_path):
    """The last step is saved twice, when due and at the end; killed amid the second, the first is still there."""
    folder, _, touches = whole
    for back in (24, 20, 17):
        assert kill_until_done(nursery, tmp_path / str(back), [{"touch": touches - back}]) == 1
        check(tmp_path / str(back), folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_many_runs_killed_at_random_moments_end_like_one_that_was_not(nursery, whole, tmp_path, seed):
    folder, seconds, _ = whole
    rng = random.Random(100 + seed)
    kill_until_done(nursery, tmp_path, [{"after": rng.uniform(0.02, 0.7) * seconds} for _ in range(4)])
    check(tmp_path, folder)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_kill_at_every_single_touch_of_the_disk_loses_nothing(nursery, whole, tmp_path, before):
    folder, _, touches = whole
    for touch in range(touches):
        here = tmp_path / str(touch)
        assert kill_until_done(nursery, here, [{"touch": touch, "before": before}]) == 1
        check(here, folder)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("word", ["began 0", "did 8"])
def test_a_signal_saves_and_ends_with_its_exit_code_and_the_run_goes_on_from_there(
    nursery, whole, tmp_path, signum, word
):
    told = nursery.live(tmp_path, when=[word], signal=signum)
    assert told["ended"] == 128 + signum
    done = max(step for kind, step in diary(tmp_path) if kind == "did")
    words = (tmp_path / "last words").read_text()
    assert words == f"stopped by {signum.name} at step {done}; all is saved, the same command goes on from it."
    assert nursery.live(tmp_path)["ended"] == 0
    assert ("began", done) in diary(tmp_path), "nothing was done twice"
    check(tmp_path, whole[0])


def test_a_second_signal_ends_a_run_that_does_not_come_back(nursery, tmp_path):
    """The third step sleeps for ten minutes; the first signal waits for its end, the second does not."""
    assert nursery.live(tmp_path, when=["hangs", "hangs"], signal=signal.SIGINT, hang=True)["ended"] == 130
