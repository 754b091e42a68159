"""The command line as real processes: the installed script, signals, kills, and several processes for one run."""

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

#: seconds after which a process counts as hanging
PATIENCE = 300
SCRIPT = Path(sys.executable).with_name("compress")


def start(*arguments: object, cwd: Path, script: bool = False) -> subprocess.Popen[str]:
    command = [str(SCRIPT)] if script else [sys.executable, "-m", "compress"]
    # As many threads as here: their number decides the order of sums, and so the last bits.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *map(str, arguments)], cwd=cwd, text=True, env=environment, **pipes)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return the output of a process once it has ended; one that hangs is terminated."""
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
    """Wait until a file matches `path`, or the process has ended."""
    for _ in range(20 * PATIENCE):
        if process.poll() is not None or list(path.parent.glob(path.name)):
            return
        time.sleep(0.05)


ENDLESS = ("--steps", 100_000, "--set", "training.log_every=1", "--set", "training.evaluate_every=100000")


@pytest.mark.slow
def test_installed_script_computes_the_same_bits(tmp_path, photos, clothes, first_run):
    if not SCRIPT.exists():
        pytest.skip("not installed as a script")
    process = start(*tiny(photos, "--val", clothes, "--json"), cwd=tmp_path, script=True)
    out, err = ended(process)
    assert process.returncode == 0, err
    assert json.loads(out)["metrics"] == first_run[1]["metrics"]
    assert weights(tmp_path / "run") == weights(first_run[0])


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_continues_to_the_same_weights(tmp_path, photos, signum, code):
    steps = ["--steps", 30, "--set", "training.evaluate_every=1000", "--set", "training.log_every=1"]
    process = start(*tiny(photos, *steps), cwd=tmp_path)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.send_signal(signum)
    out, err = ended(process)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.json"))
    finish(*tiny(photos, *steps, "--resume"), cwd=tmp_path)
    (tmp_path / "whole").mkdir()
    finish(*tiny(photos, *steps), cwd=tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole" / "run")


@pytest.fixture(scope="module")
def whole_command(tmp_path_factory, photos, clothes) -> tuple[list[object], str, float]:
    """A command that trains, evaluates, exports and reports; its weights, and its seconds without a signal."""
    folder = tmp_path_factory.mktemp("whole")
    command = tiny(photos, "--val", clothes, "--steps", 10, "--export", "onnx", "--report")
    begin = time.monotonic()
    finish(*command, cwd=folder)
    return command, weights(folder / "run"), time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(16))
def test_signal_at_any_moment(tmp_path, monkeypatch, whole_command, moment):
    command, expected, seconds = whole_command
    signum = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[moment % 3]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    process = start(*command, cwd=tmp_path)
    time.sleep(seconds * (moment + 0.5) / 16)
    process.send_signal(signum)
    out, err = ended(process)
    assert "Traceback" not in err
    assert "internal error" not in err
    if process.returncode > 0:
        assert (process.returncode, out) == (128 + signum, "")
        assert err.splitlines()[-1].startswith("Error: ")
    else:
        assert process.returncode in (0, -signum), "it had ended, or it had not begun"
    if process.returncode != -signum:
        names = {path.name for path in tmp_path.rglob("*") if path.name.startswith(".")}
        names |= {path.name for path in (tmp_path / "temporary").iterdir() if "torchinductor" not in path.name}
        assert names <= {".lock"}
    finish(*command, cwd=tmp_path)
    assert weights(tmp_path / "run") == expected


@pytest.mark.slow
def test_lock_ends_with_a_killed_process(tmp_path, photos):
    first = start(*tiny(photos, *ENDLESS), cwd=tmp_path)
    wait_for(tmp_path / "run" / "metrics.jsonl", first)
    second = start(*tiny(photos, *ENDLESS), cwd=tmp_path)
    _, err = ended(second)
    assert second.returncode == 2
    assert str(first.pid) in err
    first.kill()
    ended(first)
    finish(*tiny(photos, "--fresh"), cwd=tmp_path)


@pytest.mark.slow
def test_two_processes_train_one_student(tmp_path, photos, clothes):
    process = start(*tiny(photos, "--val", clothes, "--devices", 2, "--json"), cwd=tmp_path)
    out, err = ended(process)
    assert process.returncode == 0, err
    assert json.loads(out)["steps"] == 2
    assert err.count("step 2") <= 1, "one display"
    states = [torch.load(file, weights_only=True) for file in sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))]
    assert ["shared" in state for state in states] == [True, False]
    assert not torch.equal(states[0]["per_rank"]["random"], states[1]["per_rank"]["random"])


@pytest.mark.slow
def test_error_of_two_processes_is_one_line(tmp_path, photos):
    process = start(*tiny(photos, "--devices", 2, "--precision", "16"), cwd=tmp_path)
    out, err = ended(process)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("Error: --precision 16: ")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_two_processes_stop_together_at_a_signal(tmp_path, photos):
    process = start(*tiny(photos, *ENDLESS, "--devices", 2), cwd=tmp_path)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.terminate()
    out, err = ended(process)
    assert (process.returncode, out) == (143, "")
    assert "Traceback" not in err
    checkpoints = list((tmp_path / "run" / "checkpoints").glob("*.pt"))
    assert len({path.name.split(".")[0] for path in checkpoints}) == 1
    assert len(checkpoints) == 2


def kill_rank(rank: int, launcher: subprocess.Popen[str]) -> None:
    """Kill one training process of a launcher."""
    (pid,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/environ")
        if f"RANK={rank}".encode() in read_bytes(path).split(b"\0")
        and f"PPid:\t{launcher.pid}\n".encode() in read_bytes(path.with_name("status"))
    ]
    os.kill(pid, signal.SIGKILL)


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 1])
def test_killed_process_is_reported_or_restarted(tmp_path, photos, restarts):
    steps = ["--steps", 40, "--set", "training.log_every=1", "--set", "training.save_every=1"]
    process = start(*tiny(photos, *steps, "--devices", 2, "--restarts", restarts, "--json"), cwd=tmp_path)
    wait_for(tmp_path / "run" / "checkpoints" / "step-*.json", process)
    kill_rank(1, process)
    out, err = ended(process)
    if restarts:
        assert process.returncode == 0, err
        assert json.loads(out)["steps"] == 40
    else:
        assert process.returncode == 1
        assert "SIGKILL" in err
