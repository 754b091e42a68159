"""The command line as real processes: the main path, signals, a kill, and several processes for one run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from invoking import TEACHER, TINY

#: seconds after which a process is taken to hang
PATIENCE = 300
SCRIPT = Path(sys.executable).with_name("compress")


def start(*arguments: object, cwd: Path, script: bool = False) -> subprocess.Popen[str]:
    command = [str(SCRIPT)] if script else [sys.executable, "-m", "compress"]
    # As many threads as here: their number decides the order of sums, and so the last bits.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *map(str, arguments)], cwd=cwd, text=True, env=environment, **pipes)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process has said, once it has ended; one that hangs is killed with its children, and the test fails."""
    try:
        return process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            process.terminate()


def finish(*arguments: object, cwd: Path) -> None:
    process = start(*arguments, cwd=cwd)
    _, err = ended(process)
    assert process.returncode == 0, err


def tiny(photos: Path, *more: object) -> list[object]:
    return ["distill", "--teacher", TEACHER, "--ood", photos, "--student", "wrn16_1", "--out", "run", *TINY, *more]


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "last" / "model.safetensors").read_bytes()).hexdigest()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there that matches `path`, or the process has ended."""
    for _ in range(1200):
        if process.poll() is not None or list(path.parent.glob(path.name)):
            return
        time.sleep(0.05)


def test_the_main_path_by_the_installed_script(tmp_path, photos, clothes, first_run) -> None:
    if not SCRIPT.exists():
        pytest.skip("not installed as a script")
    process = start(*tiny(photos, "--val", clothes, "--json"), cwd=tmp_path, script=True)
    out, err = ended(process)
    assert process.returncode == 0, err
    assert json.loads(out)["metrics"] == first_run[1]["metrics"]
    assert weights(tmp_path / "run") == weights(first_run[0])  # a process of its own computes the same bits


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_goes_on_to_the_same_weights(tmp_path, photos, signum, code) -> None:
    steps = ["--steps", 30, "--set", "pace.evaluate=1000", "--set", "pace.log=1"]
    process = start(*tiny(photos, *steps), cwd=tmp_path)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.send_signal(signum)
    out, err = ended(process)
    assert (process.returncode, out) == (code, "")
    assert "all is saved, the same command goes on from" in err
    assert "Traceback" not in err
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.json"))
    finish(*tiny(photos, *steps, "--resume"), cwd=tmp_path)
    (tmp_path / "whole").mkdir()
    finish(*tiny(photos, *steps), cwd=tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole" / "run")


@pytest.mark.slow
def test_a_second_process_in_the_folder_is_turned_away_and_a_killed_one_leaves_no_lock(tmp_path, photos) -> None:
    endless = ["--steps", 100_000, "--set", "pace.log=1", "--set", "pace.evaluate=100000"]
    first = start(*tiny(photos, *endless), cwd=tmp_path)
    wait_for(tmp_path / "run" / "metrics.jsonl", first)
    second = start(*tiny(photos, *endless), cwd=tmp_path)
    _, err = ended(second)
    assert second.returncode == 2
    assert f"process {first.pid} is running here" in err
    first.kill()
    ended(first)
    finish(*tiny(photos, "--fresh"), cwd=tmp_path)


@pytest.mark.slow
def test_two_processes_train_one_student_and_agree(tmp_path, photos, clothes) -> None:
    process = start(*tiny(photos, "--val", clothes, "--devices", 2, "--json"), cwd=tmp_path)
    out, err = ended(process)
    assert process.returncode == 0, err
    assert json.loads(out)["steps"] == 2
    assert err.count("step 2") <= 1  # one display
    states = [torch.load(file, weights_only=True) for file in sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))]
    assert len(states) == 2
    assert ["shared" in state for state in states] == [True, False]  # the second keeps only what is its own
    assert not torch.equal(states[0]["own"]["random"], states[1]["own"]["random"])


@pytest.mark.slow
def test_an_error_of_several_processes_is_one_sentence_with_its_exit_code(tmp_path, photos) -> None:
    process = start(*tiny(photos, "--devices", 2, "--resume"), cwd=tmp_path)
    out, err = ended(process)
    assert (process.returncode, out) == (2, "")
    assert err == "Error: run: there is no run to resume; leave --resume out to begin one.\n"


@pytest.mark.slow
def test_several_processes_stop_together_at_a_signal(tmp_path, photos) -> None:
    steps = ["--steps", 100_000, "--devices", 2, "--set", "pace.log=1", "--set", "pace.evaluate=100000"]
    process = start(*tiny(photos, *steps), cwd=tmp_path)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.terminate()
    out, err = ended(process)
    assert (process.returncode, out) == (143, "")
    assert "all is saved" in err
    assert "Traceback" not in err
    assert len({path.name.split(".")[0] for path in (tmp_path / "run" / "checkpoints").glob("*.pt")}) == 1
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.pt"))) == 2
