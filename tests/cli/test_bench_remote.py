"""`compress bench --target ssh://…`: a second Python on this machine, through sshd or a script in its place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from invoking import read_error, read_result, run
from other_machine import RUNTIME, SSHD, Machine, classifier, make_python, serve

from compress.files import sha256

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")
needs_sshd = pytest.mark.skipif(SSHD is None, reason="found no sshd")
#: rows that take no longer than they must
BRIEF = ("--duration", "0.05s", "--threads", 1)


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("other")
    python = make_python(folder / "python", RUNTIME)
    with serve(folder, python) as machine, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        yield machine


@pytest.fixture(autouse=True)
def _leaves_no_files(machine: Machine) -> Iterator[None]:
    yield
    assert machine.wait_for_cleanup() == ([], [])


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return classifier(tmp_path / "net.onnx")


def bench(machine: Machine, *arguments: object, python: Path | str | None = None, **change: object):
    return run("bench", *arguments, *BRIEF, "--target", machine.url(python, **change))


@pytest.mark.parametrize("package", ["torch", "onnx", "pydantic", "compress", "exporters", "profiles"])
def test_other_python_lacks_our_packages(machine: Machine, package: str) -> None:
    code = f"import numpy, onnxruntime, sys\ntry: import {package}\nexcept ImportError: sys.exit(7)"
    assert subprocess.run([machine.python, "-c", code], cwd="/").returncode == 7


# Results.


def test_files_are_timed_interleaved_there(machine: Machine, tmp_path: Path) -> None:
    plain = classifier(tmp_path / "net.onnx")
    odd = classifier(tmp_path / """a folder; of "mine" """ / """it's $(a) net'.onnx""", beside=True)
    result = read_result(bench(machine, plain, odd, "--batch-size", "1,4", "--json"))
    rows = result["results"]
    assert [(row["model"], row["batch_size"]) for row in rows] == [
        (str(path), size) for path in (plain, odd) for size in (1, 4)
    ]
    for row in rows:
        assert 0 < row["latency_ms_p50"] <= row["latency_ms_p90"] <= row["latency_ms_p99"]
        assert row["runs"] >= 10
        assert (row["runtime"], row["device"], row["precision"], row["threads"]) == ("onnxruntime", "cpu", "fp32", 1)
        assert row["first_call_ms"] > 0
        assert row["sha256"] == sha256(Path(row["model"]))
    assert [(one["result"], one["against"]) for one in result["ratios"]] == [(2, 0), (3, 1)]
    versions = result["machine"]["versions"]
    assert versions["onnxruntime"] == __import__("onnxruntime").__version__
    assert {"torch", "onnx"}.isdisjoint(versions)


def test_keys_are_the_same_here_and_there(machine: Machine, net: Path) -> None:
    there = read_result(bench(machine, net, "--json"))
    here = read_result(run("bench", net, *BRIEF, "--json"))
    assert set(there) == set(here)
    assert set(there["results"][0]) == set(here["results"][0])
    assert set(there["machine"]) == set(here["machine"])


def test_status_lines_come_from_the_other_machine(machine: Machine, net: Path) -> None:
    result = bench(machine, net)
    assert result.exit_code == 0, result.stderr
    assert f"127.0.0.1:{machine.port}: Timing 1 " in result.stderr


def test_open_image_size_is_taken_from_the_option(machine: Machine, tmp_path: Path) -> None:
    path = classifier(tmp_path / "net.onnx", size=None)
    read_error(bench(machine, path), 2)
    assert read_result(bench(machine, path, "--image-size", "12x10", "--json"))["results"]


@pytest.mark.slow
def test_named_target_has_a_budget(machine: Machine, net: Path, monkeypatch) -> None:
    monkeypatch.chdir(net.parent)
    (net.parent / "targets").mkdir()
    lines = [
        "host: ssh://Board-7", f"python: {machine.python}", "threads: 1", "duration: 0.05s", "batch_size: [2]",
        "precision: fp32",
    ]  # fmt: skip
    for name, budget in (("easy", 1e6), ("hard", 1e-6)):
        (net.parent / "targets" / f"{name}.yaml").write_text("\n".join([*lines, f"latency_budget_ms: {budget}"]))
    (row,) = read_result(run("bench", "net.onnx", "--target", "easy", "--check", "--json"))["results"]
    assert (row["batch_size"], row["within_budget"], row["budget_percentile"]) == (2, True, "p90")
    (row,) = read_result(run("bench", "net.onnx", "--target", "hard", "--json"))["results"]
    assert row["within_budget"] is False
    failed = run("bench", "net.onnx", "--target", "hard", "--check", "--json")
    assert failed.exit_code == 1
    printed = json.loads(failed.stdout)
    assert printed["results"][0]["within_budget"] is False
    assert failed.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.slow
def test_network_is_exported_and_timed_there(machine: Machine) -> None:
    (row,) = read_result(bench(machine, "wrn16_1", "--json"))["results"]
    assert (row["model"], row["runtime"]) == ("wrn16_1", "onnxruntime")


@pytest.mark.slow
def test_mlperf_scenarios_run_there(machine: Machine, net: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen")
    python = make_python(tmp_path / "python", (*RUNTIME, "mlcommons_loadgen"))
    scenarios = ("--scenario", "quick,single-stream,offline")
    rows = read_result(bench(machine, net, "--batch-size", "1,2", *scenarios, "--json", python=python))["results"]
    kinds = [(row["scenario"], row["batch_size"]) for row in rows]
    assert kinds == [("quick", 1), ("quick", 2), ("SingleStream", 1), ("Offline", 1), ("Offline", 2)]
    assert all(isinstance(row["valid"], bool) for row in rows[2:])


# Errors name the machine.


def remote_error(machine: Machine, result, code: int = 1) -> str:
    """Return the error without the name of the machine, with which it begins."""
    text = read_error(result, code)
    prefix = f"{machine.user}@127.0.0.1:"
    assert text.startswith(prefix), text
    return text.removeprefix(prefix).partition(": ")[2]


def test_missing_provider_is_not_replaced(machine: Machine, net: Path) -> None:
    text = remote_error(machine, bench(machine, net, "--provider", "cuda"))
    assert "CUDAExecutionProvider" in text


@pytest.mark.parametrize(
    ("options", "package"),
    [(("--runtimes", "openvino"), "openvino"), (("--scenario", "offline"), "mlcommons-loadgen")],
)
def test_missing_package_is_named_with_the_command(
    machine: Machine, net: Path, options: tuple[str, str], package: str
) -> None:
    assert f"{machine.python} -m pip install {package}" in remote_error(machine, bench(machine, net, *options))


def test_missing_numpy_is_named_with_the_command(machine: Machine, net: Path, tmp_path: Path) -> None:
    bare = make_python(tmp_path / "a bare python", ())
    assert f"{bare} -m pip install numpy" in remote_error(machine, bench(machine, net, python=bare))


@pytest.mark.parametrize("version", ["3.9", "3.6", "2.7"])
def test_old_python_is_refused(machine: Machine, net: Path, version: str) -> None:
    program = shutil.which(f"python{version}")
    command = [program or "", "-c", "import sys; print(sys.executable)"]
    path = program and subprocess.run(command, capture_output=True, text=True).stdout.strip()
    if not path:
        pytest.skip(f"found no Python {version}")
    assert f"{path} is Python {version}" in remote_error(machine, bench(machine, net, python=path))


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/true"])
def test_program_that_is_no_python_is_an_error(machine: Machine, net: Path, python: str) -> None:
    remote_error(machine, bench(machine, net, python=python))


@needs_sshd
def test_refused_connection_names_the_ssh_command(machine: Machine, net: Path) -> None:
    text = read_error(bench(machine, net, port=1), 1)
    assert f"`ssh -p 1 {machine.user}@127.0.0.1 true`" in text


@needs_sshd
def test_unknown_user_is_not_asked_for_a_password(machine: Machine, net: Path) -> None:
    target = f"ssh://nobody-of-that-name@127.0.0.1:{machine.port}"
    assert "denied" in read_error(run("bench", net, *BRIEF, "--target", target), 1)


@needs_sshd
def test_unknown_host_key_is_not_trusted(machine: Machine, net: Path) -> None:
    target = f"ssh://{machine.user}@localhost:{machine.port}"
    assert "Host key verification failed" in read_error(run("bench", net, *BRIEF, "--target", target), 1)


def test_damaged_file_is_refused_before_copying(machine: Machine, net: Path) -> None:
    net.write_bytes(net.read_bytes()[:-40])
    result = bench(machine, net)
    assert str(net) in read_error(result, 1)
    assert "Copying" not in result.stderr


def test_file_that_the_runtime_refuses_is_named(machine: Machine, tmp_path: Path) -> None:
    path = classifier(tmp_path / "net.onnx", kernel=5)
    assert path.name in remote_error(machine, bench(machine, path))


def test_torch_is_not_timed_there(machine: Machine, net: Path) -> None:
    assert "torch" in read_error(bench(machine, net, "--runtimes", "torch"), 2)


@pytest.mark.parametrize(
    ("line", "datum"),
    [
        ("precision: int8", "fp32"),
        ("versions: {onnxruntime: '1.2'}", "onnxruntime"),
        ("versions: {tensorrt: '10'}", "tensorrt"),
    ],
)
def test_target_requirements_are_checked_there(machine: Machine, net: Path, line: str, datum: str) -> None:
    path = net.parent / "board.yaml"
    path.write_text(f"host: ssh://Board-7\npython: {machine.python}\nduration: 0.05s\n{line}\n")
    text = read_error(run("bench", net, "--target", path), 1)
    assert text.startswith("Board-7: ")
    assert datum in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGKILL))],
)
def test_interrupted_client_stops_the_other_machine(machine: Machine, net: Path, number: int) -> None:
    command = [sys.executable, "-m", "compress", "bench", str(net), "--duration", "5m", "--target", machine.url()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        while (line := process.stderr.readline()) and ": Timing " not in line:
            lines.append(line)
        assert ": Timing " in line, lines
        assert machine.list_files() != []
        process.send_signal(number)
        process.stderr.read()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert machine.wait_for_cleanup() == ([], [])
