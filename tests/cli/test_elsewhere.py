"""`compress bench --target ssh://…`: against a second Python, through a real sshd on this machine."""

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
from invoking import answer, refusal, run
from other_machine import RUNTIME, SSHD, Machine, classifier, make_python, served
from test_json import agree

from compress.files import sha256

pytestmark = pytest.mark.skipif(SSHD is None or os.name != "posix", reason="there is no sshd here to measure through")
#: rows that take no longer than they must
BRIEF = ("--duration", "0.05s", "--threads", 1)


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("other")
    python = make_python(folder / "python", RUNTIME)
    with served(folder, python) as machine, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        yield machine


@pytest.fixture(autouse=True)
def _nothing_stays_there(machine: Machine) -> Iterator[None]:
    yield
    assert machine.left_in_the_end() == []


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return classifier(tmp_path / "net.onnx")


def bench(machine: Machine, *arguments: object, python: Path | str | None = None, **change: object):
    return run("bench", *arguments, *BRIEF, "--target", machine.url(python, **change))


@pytest.mark.parametrize("package", ["torch", "onnx", "pydantic", "compress", "exporters", "profiles"])
def test_the_other_python_has_nothing_of_ours(machine: Machine, package: str) -> None:
    code = f"import numpy, onnxruntime, sys\ntry: import {package}\nexcept ImportError: sys.exit(7)"
    assert subprocess.run([machine.python, "-c", code], cwd="/").returncode == 7


# what comes back


def test_several_files_are_measured_there_in_turns_as_if_here(machine: Machine, tmp_path: Path) -> None:
    plain = classifier(tmp_path / "net.onnx")
    odd = classifier(tmp_path / """a folder; of "mine" """ / """it's $(a) net'.onnx""", beside=True)
    found = answer(bench(machine, plain, odd, "--batch-size", "1,4", "--json"))
    rows = found["results"]
    assert [(row["model"], row["batch_size"]) for row in rows] == [
        (str(path), size) for path in (plain, odd) for size in (1, 4)
    ]
    for row in rows:
        assert 0 < row["latency_ms_p50"] <= row["latency_ms_p90"] <= row["latency_ms_p99"]
        assert row["runs"] >= 10
        assert (row["runtime"], row["device"], row["precision"], row["threads"]) == ("onnxruntime", "cpu", "fp32", 1)
        assert row["first_ms"] > 0
        assert row["sha256"] == sha256(Path(row["model"]))
    assert [(one["result"], one["against"]) for one in found["ratios"]] == [(2, 0), (3, 1)]
    versions = found["machine"]["versions"]
    assert versions["onnxruntime"] == __import__("onnxruntime").__version__
    assert "torch" not in versions
    assert "onnx" not in versions


def test_the_same_file_here_and_there_gives_the_same_keys(machine: Machine, net: Path) -> None:
    there = answer(bench(machine, net, "--json"))
    here = answer(run("bench", net, *BRIEF, "--json"))
    assert set(there) == set(here)
    assert set(there["results"][0]) == set(here["results"][0]) | {"sha256"}
    assert set(there["machine"]) == set(here["machine"])


def test_people_get_a_table_and_the_other_machines_words(machine: Machine, net: Path) -> None:
    result = bench(machine, net)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0].split()[:3] == ["model", "runtime", "device"]
    assert f"127.0.0.1:{machine.port}: timing 1 in turns" in result.stderr


def test_a_size_that_the_file_leaves_open_is_taken_from_the_command_line(machine: Machine, tmp_path: Path) -> None:
    path = classifier(tmp_path / "net.onnx", size=None)
    assert "does not say its image size" in refusal(bench(machine, path), 2)
    assert answer(bench(machine, path, "--image-size", "12x10", "--json"))["results"]


def test_a_machine_of_the_users_own_ssh_configuration_has_a_budget(machine: Machine, net: Path, monkeypatch) -> None:
    monkeypatch.chdir(net.parent)
    (net.parent / "targets").mkdir()
    lines = ["host: ssh://Board-7", f"python: {machine.python}", "threads: 1", "duration: 0.05s", "batch: [2]"]
    for name, budget in (("easy", 1e6), ("hard", 1e-6)):
        text = "\n".join([*lines, f"latency_budget_ms: {budget}", "precision: fp32"])
        (net.parent / "targets" / f"{name}.yaml").write_text(text)
    held = answer(run("bench", "net.onnx", "--target", "easy", "--check", "--json"))["results"]
    assert [(row["batch_size"], row["holds_budget"], row["budget_percentile"]) for row in held] == [(2, True, "p90")]
    assert "holds the 1e+06 ms of easy" in run("bench", "net.onnx", "--target", "easy").stdout
    assert answer(run("bench", "net.onnx", "--target", "hard", "--json"))["results"][0]["holds_budget"] is False
    failed = run("bench", "net.onnx", "--target", "hard", "--check", "--json")
    assert failed.exit_code == 1
    printed = json.loads(failed.stdout)
    assert printed["results"][0]["holds_budget"] is False
    agree("compress bench", printed)
    assert failed.stderr.splitlines()[-1].startswith("Error: ")
    assert "does NOT hold the 1e-06 ms of hard" in failed.stderr


@pytest.mark.slow
def test_a_network_is_exported_and_measured_there_as_its_onnx_file(machine: Machine) -> None:
    (row,) = answer(bench(machine, "wrn16_1", "--json"))["results"]
    assert (row["model"], row["runtime"]) == ("wrn16_1", "onnxruntime")


@pytest.mark.slow
def test_mlperfs_scenarios_are_played_there(machine: Machine, net: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen")
    python = make_python(tmp_path / "python", (*RUNTIME, "mlcommons_loadgen"))
    scenarios = ("--scenario", "quick,single-stream,offline")
    found = answer(bench(machine, net, "--batch-size", "1,2", *scenarios, "--json", python=python))["results"]
    kinds = [(row["scenario"], row["batch_size"]) for row in found]
    assert kinds == [("quick", 1), ("quick", 2), ("SingleStream", 1), ("Offline", 1), ("Offline", 2)]
    assert all(isinstance(row["valid"], bool) for row in found[2:])


# what is refused, in one sentence that names the machine


def told(machine: Machine, text: str) -> str:
    """The sentence without the machine's name, with which it begins."""
    name = f"{machine.user}@127.0.0.1:"
    assert text.startswith(name), text
    return text.removeprefix(name).partition(": ")[2]


def last(result) -> str:
    """The one sentence; before it only talk of what goes on."""
    assert result.exit_code in (1, 2), result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    *talk, sentence = result.stderr.strip().splitlines()
    assert all(line.startswith("Copying ") or ": timing " in line for line in talk), talk
    assert sentence.startswith("Error: ")
    assert "internal error" not in sentence
    assert sentence.endswith(".")
    return sentence.removeprefix("Error: ")


def test_a_provider_that_is_not_there_is_refused_and_not_replaced(machine: Machine, net: Path) -> None:
    text = told(machine, last(bench(machine, net, "--provider", "cuda")))
    assert text.startswith("CUDAExecutionProvider is not in ONNX Runtime")
    assert "CPUExecutionProvider" in text


def test_a_runtime_that_is_missing_there_is_named_with_what_installs_it(machine: Machine, net: Path) -> None:
    text = told(machine, last(bench(machine, net, "--runtimes", "openvino")))
    assert text == (
        f"openvino is not installed there; install it on that machine with: {machine.python} -m pip install openvino."
    )


def test_a_python_without_numpy_is_told_how_to_get_it(machine: Machine, net: Path, tmp_path: Path) -> None:
    bare = make_python(tmp_path / "a bare python", ())
    text = told(machine, last(bench(machine, net, python=bare)))
    assert text.startswith(f"NumPy is not installed there for {bare}; install it")


def test_a_loadgen_that_is_missing_there_is_named(machine: Machine, net: Path) -> None:
    text = told(machine, last(bench(machine, net, "--scenario", "offline")))
    assert text.startswith("MLPerf's LoadGen is not installed there; install it on that machine with: ")
    assert text.endswith("-m pip install mlcommons-loadgen.")


@pytest.mark.parametrize("version", ["3.9", "3.6", "2.7"])
def test_a_python_that_is_too_old_is_refused(machine: Machine, net: Path, version: str) -> None:
    found = shutil.which(f"python{version}")
    place = (
        found
        and subprocess.run(
            [found, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True
        ).stdout.strip()
    )
    if not place:
        pytest.skip(f"no Python {version} here")
    assert (
        told(machine, last(bench(machine, net, python=place)))
        == f"{place} is Python {version}, expected 3.10 or newer."
    )


def test_a_python_that_is_not_there_is_named(machine: Machine, net: Path) -> None:
    text = told(machine, last(bench(machine, net, python="/no/such/python")))
    assert text.startswith("no /no/such/python there")


def test_a_program_that_is_no_python_gives_no_answer(machine: Machine, net: Path) -> None:
    assert "ended with code 0 and no answer" in told(machine, last(bench(machine, net, python="/bin/true")))


def test_a_host_that_refuses_is_named_with_what_ssh_says(machine: Machine, net: Path) -> None:
    text = last(bench(machine, net, port=1))
    assert text.startswith(f"{machine.user}@127.0.0.1:1: ssh does not get there (")
    assert "refused" in text
    assert f"`ssh -p 1 {machine.user}@127.0.0.1 true`" in text


def test_a_user_whose_key_is_refused_is_not_asked_for_a_password(machine: Machine, net: Path) -> None:
    text = last(run("bench", net, *BRIEF, "--target", f"ssh://nobody-of-that-name@127.0.0.1:{machine.port}"))
    assert "ssh does not get there" in text
    assert "denied" in text


def test_a_host_whose_key_is_unknown_is_not_trusted(machine: Machine, net: Path) -> None:
    text = last(run("bench", net, *BRIEF, "--target", f"ssh://{machine.user}@localhost:{machine.port}"))
    assert "Host key verification failed" in text


def test_a_broken_file_is_refused_before_anything_is_copied(machine: Machine, net: Path) -> None:
    net.write_bytes(net.read_bytes()[:-40])
    assert "cannot be loaded as ONNX" in refusal(bench(machine, net), 1)


def test_a_file_that_the_runtime_there_refuses_is_named_with_its_reason(machine: Machine, tmp_path: Path) -> None:
    path = classifier(tmp_path / "net.onnx", kernel=5)
    text = told(machine, last(bench(machine, path)))
    assert text.startswith(f"{path}: ")
    assert "there" in text


def test_what_only_this_machine_runs_is_wrong_usage(machine: Machine, net: Path) -> None:
    text = refusal(bench(machine, net, "--runtimes", "torch"), 2)
    assert "not timed on another machine in torch; it can be in onnxruntime, openvino" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("precision: int8", "runs in fp32 there, expected int8"),
        ("versions: {onnxruntime: 1.2}", "found onnxruntime 1."),
        ("versions: {tensorrt: 10}", "found tensorrt not installed there, expected 10"),
    ],
)
def test_what_is_not_as_the_target_says_is_refused(machine: Machine, net: Path, line: str, said: str) -> None:
    path = net.parent / "board.yaml"
    path.write_text(f"host: ssh://Board-7\npython: {machine.python}\nduration: 0.05s\n{line}\n")
    text = last(run("bench", net, "--target", path))
    assert text.startswith("Board-7: ")
    assert said in text


@pytest.fixture
def heeded() -> Iterator[None]:
    """Ctrl-C reaches children also where a shell has started these tests in the background, who are to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_stops_waiting_stops_the_other_machine_too(machine: Machine, net: Path, number: int) -> None:
    command = [sys.executable, "-m", "compress", "bench", str(net), "--duration", "5m", "--target", machine.url()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        talk = []
        while (line := process.stderr.readline()) and ": timing " not in line:
            talk.append(line)
        assert ": timing " in line, talk
        assert machine.left() != []
        process.send_signal(number)
        process.stderr.read()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert machine.left_in_the_end() == []
    mine = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(machine.python) in text_of(path)]
    assert mine == []


def text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
