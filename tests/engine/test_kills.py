"""Killed and interrupted runs end like an undisturbed one, even if killed while saving.

So do runs after a power loss, and after errors of the disk. Every evaluation replaces the best student.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from contract import read_metrics
from killable_runs import SAVE, STEPS

from compress.models.serialization import load_model_directory

TESTS = Path(__file__).parents[1]
#: one method without a pool of images, and one with a pool
METHODS = ("mosaic", "fastdfkd")


class KillableRuns:
    """The process that forks the runs; see killable_runs.py."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self.process = subprocess.Popen(
            [sys.executable, TESTS / "engine" / "killable_runs.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        )

    def run(self, folder: Path, **order) -> dict[str, float]:
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
def runs():
    process = KillableRuns()
    yield process
    process.close()


@pytest.fixture(scope="module")
def whole_runs(runs, tmp_path_factory):
    """Method -> (folder, seconds, disk accesses) of an undisturbed run."""
    whole = {}
    for method in METHODS:
        folder = tmp_path_factory.mktemp(method)
        result = runs.run(folder, method=method)
        assert result["exit_code"] == 0
        whole[method] = folder, result["seconds"], int((folder / "touches").read_text())
    return whole


@pytest.fixture(scope="module")
def whole(whole_runs):
    return whole_runs["mosaic"]


def read_results(folder: Path, *, logs: bool = True) -> dict[str, bytes]:
    """Read the final files: students, cards and pool; with `logs` also images."""
    names = [folder / which / name for which in ("best", "last") for name in ("model.safetensors", "config.json")]
    names += [
        path
        for pattern in ("compress-pool/*/*.png", "compress-images/*.png")[: 1 + logs]
        for path in folder.glob(pattern)
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def check_best(folder: Path) -> None:
    """The best student opens, once one was saved."""
    if (folder / "best" / "config.json").exists():
        load_model_directory(folder / "best", user_code=tiny.CARD.architecture)


def read_diary(folder: Path) -> list[tuple[str, int]]:
    path = folder / "diary"
    return [(line.split()[0], int(line.split()[1])) for line in path.read_text().splitlines()] if path.exists() else []


def assert_equals_undisturbed(folder: Path, whole: Path, *, logs: bool = True) -> None:
    """The run ended like the undisturbed one, and each kill lost only the steps since the last save."""
    assert read_results(folder, logs=logs) == read_results(whole, logs=logs)
    assert read_metrics(folder) == read_metrics(whole)
    done = 0
    for word, step in read_diary(folder):
        if word == "began":
            assert step >= done - SAVE
        done = max(done, step)
    assert done == STEPS
    left = {path.name for path in (folder / "checkpoints").iterdir()}
    assert len(left) == 4, left


def kill_until_done(runs: KillableRuns, folder: Path, orders: list[dict]) -> int:
    """Run and kill as ordered, then run to the end; returns the number of kills."""
    ended = []
    for order in orders:
        ended.append(runs.run(folder, **order)["exit_code"])
        check_best(folder)
    assert set(ended) <= {-signal.SIGKILL, 0}
    assert runs.run(folder, method=orders[-1].get("method", "mosaic"))["exit_code"] == 0
    return ended.count(-signal.SIGKILL)


def test_undisturbed_run_is_repeatable(runs, whole, tmp_path):
    assert runs.run(tmp_path)["exit_code"] == 0
    assert_equals_undisturbed(tmp_path, whole[0])


@pytest.mark.parametrize("seed", range(3))
def test_random_kills_lose_nothing(runs, whole, tmp_path, seed):
    folder, seconds, _ = whole
    rng = random.Random(seed)
    # The earliest first: the run may be much faster now than when its time was measured.
    moments = sorted(rng.uniform(0.03, 0.5) * seconds for _ in range(3))
    assert kill_until_done(runs, tmp_path, [{"after": moment} for moment in moments])
    assert_equals_undisturbed(tmp_path, folder)


@pytest.mark.parametrize("seed", range(3))
def test_kills_while_writing_lose_nothing(runs, whole, tmp_path, seed):
    folder, _, touches = whole
    rng = random.Random(seed)
    orders = [{"touch": rng.randrange(touches // 2), "before": rng.random() < 0.5} for _ in range(3)]
    assert kill_until_done(runs, tmp_path, orders)
    assert_equals_undisturbed(tmp_path, folder)


def test_last_save_overwrites_no_checkpoint(runs, whole, tmp_path):
    """The last step is saved twice; a kill during the second save keeps the first."""
    folder, _, touches = whole
    for back in (24, 20, 17):
        assert kill_until_done(runs, tmp_path / str(back), [{"touch": touches - back}]) == 1
        assert_equals_undisturbed(tmp_path / str(back), folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_many_random_kills_lose_nothing(runs, whole, tmp_path, seed):
    folder, seconds, _ = whole
    rng = random.Random(100 + seed)
    kill_until_done(runs, tmp_path, [{"after": rng.uniform(0.02, 0.7) * seconds} for _ in range(4)])
    assert_equals_undisturbed(tmp_path, folder)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_kill_at_every_disk_access(runs, whole_runs, tmp_path, method, before):
    folder, _, touches = whole_runs[method]
    for touch in range(touches):
        here = tmp_path / str(touch)
        assert kill_until_done(runs, here, [{"method": method, "touch": touch, "before": before}]) == 1
        assert_equals_undisturbed(here, folder)


def fail_and_resume(runs: KillableRuns, folder: Path, whole: Path, order: dict) -> int:
    """Run with an error of the disk, then run to the end; returns the exit code of the first run."""
    code = runs.run(folder, **order)["exit_code"]
    check_best(folder)
    if code:
        text = (folder / "error").read_text()
        assert code == 1, text
        message = text.partition("\n")[0]
        assert str(folder) in message
        assert " MB" in message or order["errno"] != "ENOSPC"
    assert runs.run(folder, method=order["method"])["exit_code"] == 0
    assert read_results(folder, logs=False) == read_results(whole, logs=False)
    assert read_metrics(folder) == read_metrics(whole)
    return code


def failing_accesses(touches: int, count: int) -> list[int]:
    return sorted(random.Random(touches).sample(range(touches), count))


def test_disk_error_loses_nothing(runs, whole_runs, tmp_path):
    """An error ends the run with a sentence or loses an image; the next run ends like an undisturbed one."""
    folder, _, touches = whole_runs["fastdfkd"]
    for touch in failing_accesses(touches, 2):
        order = {"method": "fastdfkd", "touch": touch, "errno": "ENOSPC"}
        fail_and_resume(runs, tmp_path / str(touch), folder, order)


def test_full_disk_loses_nothing(runs, whole_runs, tmp_path):
    """From some access on, all of them fail."""
    folder, _, touches = whole_runs["fastdfkd"]
    for touch in failing_accesses(touches, 1):
        order = {"method": "fastdfkd", "touch": touch, "errno": "ENOSPC", "lasting": True}
        assert fail_and_resume(runs, tmp_path / str(touch), folder, order) == 1


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [{}, {"lasting": True}])
@pytest.mark.parametrize("errno", ["ENOSPC", "EIO", "EROFS", "EDQUOT"])
@pytest.mark.parametrize("method", METHODS)
def test_error_at_every_disk_access(runs, whole_runs, tmp_path, method, errno, lasting):
    folder, _, touches = whole_runs[method]
    step = 1 if errno == "ENOSPC" else 7
    for touch in range(0, touches, step):
        order = {"method": method, "touch": touch, "errno": errno, **lasting}
        fail_and_resume(runs, tmp_path / str(touch), folder, order)


def lose_power(runs: KillableRuns, folder: Path, whole: Path, order: dict) -> None:
    """Lose power at a disk access; a run continues from what is durable, and no complete checkpoint is lost."""
    lost = folder.with_suffix(".lost")
    assert runs.run(folder, **order, power_loss=str(lost))["exit_code"] == -signal.SIGKILL
    done = max((step for word, step in read_diary(folder) if word == "did"), default=0)
    for disk in lost.iterdir():
        check_best(disk)
        assert runs.run(disk, method=order["method"])["exit_code"] == 0, (disk / "error").read_text()
        began = next((step for _, step in read_diary(disk)), STEPS)
        assert began >= (max(done, 1) - 1) // SAVE * SAVE
        assert read_results(disk, logs=False) == read_results(whole, logs=False)
        assert read_metrics(disk) == read_metrics(whole)


def test_power_loss_keeps_checkpoints(runs, whole_runs, tmp_path):
    folder, _, touches = whole_runs["fastdfkd"]
    for touch in failing_accesses(touches, 1):
        lose_power(runs, tmp_path / str(touch), folder, {"method": "fastdfkd", "touch": touch, "before": False})


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_power_loss_at_every_disk_access(runs, whole_runs, tmp_path, method):
    folder, _, touches = whole_runs[method]
    for touch in range(touches):
        lose_power(runs, tmp_path / str(touch), folder, {"method": method, "touch": touch, "before": False})


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("word", ["began 0", "did 8"])
def test_signal_saves_and_run_resumes(runs, whole, tmp_path, signum, word):
    result = runs.run(tmp_path, when=[word], signal=signum)
    assert result["exit_code"] == 128 + signum
    done = max(step for kind, step in read_diary(tmp_path) if kind == "did")
    assert f"{signum.name} at step {done}" in (tmp_path / "error").read_text()
    assert runs.run(tmp_path)["exit_code"] == 0
    assert ("began", done) in read_diary(tmp_path)
    assert_equals_undisturbed(tmp_path, whole[0])


def test_second_signal_ends_process(runs, tmp_path):
    """The third step sleeps for ten minutes; the first signal waits for its end, the second does not."""
    assert runs.run(tmp_path, when=["hangs", "hangs"], signal=signal.SIGINT, hang=True)["exit_code"] == 130
