"""Executors, child processes and signals; Ray on this machine and with two raylets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from running import is_running
from test_compare import create_config

from compress.errors import CompressError, UsageError
from compress.experiments import run_comparison
from compress.experiments.config import Resources
from compress.experiments.runner import CHILD_SCRIPT, Job, exit_reason, run_compress, start_executor
from compress.plugins import CHILD_SCRIPT as RUN_MODULE

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


def ignore(_: str) -> None:
    return None


def square(x: int, progress: Any) -> int:
    if x == 1:
        raise CompressError("the loss is nan")
    if x == 2:
        raise ZeroDivisionError("of ours")
    return x * x


def test_loop_continues_after_failures() -> None:
    with start_executor(1, resources=Resources()) as executor:
        outcomes = executor.run([Job(str(x), square, (x,)) for x in range(4)], ignore)
    assert outcomes.results == {"0": 0, "3": 9}
    assert outcomes.failures["1"] == "the loss is nan"
    assert "ZeroDivisionError" in outcomes.failures["2"]


def test_loop_stops_at_signal() -> None:
    """In a process of its own: a signal that arrives at a wrong moment would end the tests without a word."""
    code = (
        "import os, signal, time\n"
        "from compress.experiments.config import Resources\n"
        "from compress.experiments.runner import Job, start_executor\n"
        "def interrupt(progress):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
        "jobs = [Job('0', lambda progress: 0), Job('1', interrupt), Job('3', lambda progress: 3)]\n"
        "with start_executor(1, resources=Resources()) as executor:\n"
        "    outcomes = executor.run(jobs, lambda _: None)\n"
        "print(outcomes.results, int(outcomes.signum), outcomes.failures)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "{'0': 0} 2 {}\n"), done.stderr


def test_run_compress_returns_code_and_error(tmp_path) -> None:
    lines: list[str] = []
    code, last_line = run_compress(["doctor", "--jsn"], lines.append)
    assert code == 2
    assert "--jsn" in last_line
    assert lines[-1] == f"Error: {last_line}"


@pytest.mark.parametrize(
    ("code", "line", "named"), [(1, "nan", "nan"), (3, "", "3"), (-9, "kd 50%", "SIGKILL"), (-11, "", "SIGSEGV")]
)
def test_exit_reason_names_cause(code: int, line: str, named: str) -> None:
    assert named in exit_reason(code, line)


def test_missing_ray_is_usage_error(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="sweep"), start_executor(2, resources=Resources()):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_unreachable_cluster_is_usage_error(address: str) -> None:
    with pytest.raises(UsageError, match=address), start_executor(None, address, resources=Resources()):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process when its parent dies")
def test_orphan_receives_sigterm(tmp_path) -> None:
    child = CHILD_SCRIPT.replace(RUN_MODULE, "print(os.getpid(), flush=True)\nimport time; time.sleep(600)")
    parent = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())])\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    wait_until(lambda: not is_running(pid))


def test_one_worker_does_not_import_ray() -> None:
    code = (
        "import sys, compress.experiments.compare, compress.experiments.sweep as sweep\n"
        "from compress.experiments.config import Resources\n"
        "with sweep.start_executor(1, resources=Resources()) as executor:\n"
        "    outcomes = executor.run([sweep.Job('a', lambda progress: 1)], print)\n"
        "assert outcomes.results == {'a': 1} and 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def find_parent(run_dir: Path) -> int:
    """The process that started the training in a directory, once that has made some steps."""
    wait_until(lambda: (run_dir / "metrics.jsonl").exists())
    training = int((run_dir / ".lock").read_text())
    return int(Path(f"/proc/{training}/stat").read_text().rpartition(")")[2].split()[1])


def read_steps(run_dir: Path) -> list[int]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["kind"] == "train"]


def run_while(act: Callable[[], None], function: Callable[[], Any]) -> Any:
    """Call `function`, and `act` meanwhile in a thread."""
    thread = threading.Thread(target=act)
    thread.start()
    try:
        return function()
    finally:
        thread.join()


@pytest.fixture(autouse=True)
def _ray_token(monkeypatch) -> None:
    """One token for all Ray instances of this process, which keeps the first that it reads."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)


def compare_command(photos: Path, clothes: Path, out: Path, *, workers: int, seeds: int = 1) -> list[str]:
    settings = ["--set", "training.log_every=1", "--set", "data.views=1", "--device", "cpu", "--workers", str(workers)]
    return [
        sys.executable, "-m", "compress", "compare", "--teacher", "embedded/fashion_wrn16_2", "--student", "wrn16_1",
        "--unlabeled", str(photos), "--val", str(clothes), "--methods", "kd", "--seeds", str(seeds), "--steps", "40",
        "--batch-size", "8", "--out", str(out), "--json", *settings,
    ]  # fmt: skip


def start_command(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_worker_resumes_training(photos, clothes, tmp_path) -> None:
    """The command is a process of its own, because Ray ends its driver without an exception when a raylet dies."""
    command = compare_command(photos, clothes, tmp_path / "out", workers=2, seeds=2)
    with start_command(command) as process:
        try:
            metrics = tmp_path / "out" / "kd-0" / "metrics.jsonl"
            wait_until(lambda: metrics.exists() or process.poll() is not None)
            assert process.poll() is None, process.communicate()[1]
            killed = find_parent(metrics.parent)
            assert killed not in (process.pid, os.getpid())
            os.kill(killed, signal.SIGKILL)
            out, error = process.communicate(timeout=300)
        except BaseException:
            process.terminate()
            raise
    assert process.returncode == 0, error
    (method,) = json.loads(out)["methods"]
    assert [run["steps"] for run in method["runs"]] == [40, 40]
    for seed in (0, 1):
        assert read_steps(tmp_path / "out" / f"kd-{seed}") == list(range(1, 41)), "no step is lost or repeated"


@pytest.mark.slow
def test_dead_node_moves_training(photos, clothes, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_kill_child_processes_on_worker_exit", "0")
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "1000")
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
        config = create_config(photos, clothes, seeds=2, **{"training.steps": 40, "training.log_every": 1})

        def kill_node() -> None:
            find_parent(tmp_path / "kd-1")
            cluster.remove_node(nodes[0], allow_graceful=False)

        result = run_while(kill_node, lambda: run_comparison(config, output_dir=tmp_path, on=cluster.address))
    finally:
        cluster.shutdown()
    assert result.failed == []
    for seed in (0, 1):
        assert read_steps(tmp_path / f"kd-{seed}") == list(range(1, 41))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_command_continues(photos, clothes, tmp_path, workers) -> None:
    command = compare_command(photos, clothes, tmp_path / "out", workers=workers)
    with start_command(command) as first:
        wait_until(lambda: (tmp_path / "out" / "kd-0" / "metrics.jsonl").exists())
        first.send_signal(signal.SIGINT)
        out, error = first.communicate(timeout=120)
    assert (first.returncode, out) == (130, ""), error
    again = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert again.returncode == 0, again.stderr
    (method,) = json.loads(again.stdout)["methods"]
    assert method["runs"][0]["steps"] == 40
    assert read_steps(tmp_path / "out" / "kd-0") == list(range(1, 41))
