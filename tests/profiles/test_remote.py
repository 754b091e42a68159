"""Remote benchmarks without a network: the archive, requests, the worker process, the ssh process, replies."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compress.errors import CompressError, UsageError
from profiles.latency import remote, remote_worker, ssh
from profiles.latency.benchmark import Latency
from profiles.latency.cases import BenchmarkCase
from profiles.latency.remote_worker import BEGIN, END, RemoteCase, RemoteFile, RemoteRequest
from profiles.latency.ssh import Address, RemoteOutput, SshProcess

BOARD = Address("board", "me", 2222, "/opt/it's py/python")
CASE = RemoteCase("my net", "0/net.onnx", "onnxruntime", "cpu", 2, 1)
LATENCY = dataclasses.asdict(
    Latency(1.0, 2.0, 3.0, 1.0, 0.0, 1000.0, 2, 10, 1, "onnxruntime", "cpu", "fp32", None, None)
)
OFFLINE = {"scenario": "Offline"}
MACHINE = {
    "cpu": "A",
    "cores": 4,
    "instructions": ["avx2"],
    "memory_bytes": 2**33,
    "gpus": [{"name": "G", "memory_bytes": 2**34, "driver": "1", "compute_capability": "9.0"}],
    "system": "Linux x86_64",
    "versions": {"python": "3.11.7"},
}


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    """float32 [batch, 3, 8, 10] -> 4 logits."""
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "w"], ["c"], kernel_shape=[3, 3]),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 10])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def remote_file(path: Path, name: str = "0/net.onnx") -> RemoteFile:
    return RemoteFile(name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def request(*files: RemoteFile, **changes: Any) -> RemoteRequest:
    return dataclasses.replace(RemoteRequest(files, (CASE,), 60.0, 0.02), **changes)


# The archive.


def test_sent_modules_import_numpy_and_standard_library_only() -> None:
    known = sys.stdlib_module_names | {"numpy", "compress", "exporters", "profiles"}
    files = remote.sent_modules()
    assert {"profiles.latency.loadgen", "exporters.runtimes.openvino", remote.WORKER} <= set(files)
    assert "exporters.runtimes.torch" not in files
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
        modules = [a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names]
        modules += [str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert {module.partition(".")[0] for module in modules} <= known, name


def test_archive_holds_the_measuring_files() -> None:
    with zipfile.ZipFile(io.BytesIO(remote.pack_worker())) as archive:
        for name, path in remote.sent_modules().items():
            inner = name.replace(".", "/")
            inner += "/__init__.py" if path.name == "__init__.py" else ".py"
            assert archive.read(inner) == path.read_bytes()


def test_bootstrap_is_one_line_for_any_shell() -> None:
    line = remote.BOOTSTRAP.format(size=4)
    assert "\n" not in line
    assert not set(line) & set("'`$!\\")
    compile(line, "bootstrap", "exec")


def test_bootstrap_refuses_an_old_python() -> None:
    code = f"import sys; sys.version_info = (3, 9); exec({remote.BOOTSTRAP.format(size=4)!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, input="")
    assert result.returncode == 1
    assert "is Python 3.9, expected 3.10 or newer" in result.stderr


# Requests.


def test_request_survives_encoding() -> None:
    one = RemoteRequest(
        (RemoteFile("0/a", 1, "x"),),
        (CASE, dataclasses.replace(CASE, image_size=(8, 9))),
        60.0,
        None,
        ({"scenario": "Offline", "duration_s": 1.0},),
        "int8",
        {"numpy": "2"},
    )
    assert remote_worker.decode_request(remote_worker.encode_request(one)) == one


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "0/../../x", ""])
def test_file_outside_its_directory_is_refused(name: str) -> None:
    with pytest.raises(CompressError):
        remote_worker.decode_request(remote_worker.encode_request(request(RemoteFile(name, 0, ""))))


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"{}", b'{"files": [], "cases": [], "scenarios": [], "more": 1}'])
def test_damaged_request_is_refused(line: bytes) -> None:
    with pytest.raises(CompressError):
        remote_worker.decode_request(line)


def test_damaged_or_short_file_is_refused(net: Path, tmp_path: Path) -> None:
    content, sent = net.read_bytes(), remote_file(net)
    remote_worker.receive_file(io.BytesIO(content + b"more"), sent, tmp_path)
    assert (tmp_path / "0" / "net.onnx").read_bytes() == content
    for wrong in (content[:-1], content[:-1] + b"?"):
        with pytest.raises(CompressError, match=r"0/net\.onnx"):
            remote_worker.receive_file(io.BytesIO(wrong), sent, tmp_path)


@pytest.mark.parametrize(("code", "datum"), [(-11, "SIGSEGV"), (-9, "memory"), (3, "3")])
def test_process_without_reply_is_a_crash(tmp_path: Path, code: int, datum: str) -> None:
    with pytest.raises(remote_worker.WorkerCrashedError, match=datum):
        remote_worker.read_reply(tmp_path / "reply.json", code)


def test_versions_are_compared_by_number() -> None:
    remote_worker.check_versions({"onnxruntime": "1.2"}, {"onnxruntime": "1.2.7"})
    for required in ({"onnxruntime": "1.20"}, {"numpy": "2"}):
        with pytest.raises(CompressError, match=next(iter(required))):
            remote_worker.check_versions(required, {"onnxruntime": "1.2.7"})


# The worker in a process of its own.


def run_worker(content: bytes, temporary: Path, **environment: str) -> tuple[dict[str, Any], int]:
    """Return the worker's reply and exit code; its standard input stays open until then."""
    archive = remote.pack_worker()
    process = subprocess.Popen(
        [sys.executable, "-c", remote.BOOTSTRAP.format(size=len(archive))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", **environment},
        cwd="/",
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(archive + content)
        process.stdin.flush()
        output = process.stdout.read().decode()
    return json.loads(output.partition(BEGIN)[2].partition(END)[0]), process.returncode


def test_worker_measures_replies_and_cleans_up(net: Path, tmp_path: Path) -> None:
    content = remote_worker.encode_request(request(remote_file(net))) + net.read_bytes()
    reply, code = run_worker(content, tmp_path)
    (latency,) = reply["interleaved"]["latencies"]
    assert 0 < latency["latency_ms_p50"] <= latency["latency_ms_p90"]
    assert (latency["batch_size"], latency["threads"]) == (2, 1)
    assert len(reply["interleaved"]["medians"][0]) == 5
    assert reply["machine"]["versions"]["onnxruntime"] == onnxruntime.__version__
    assert code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "datum"),
    [
        ({"limit_s": 0.0, "duration_s": 600.0}, "0 s"),
        ({"precision": "int8"}, "fp32"),
        ({"versions": {"onnxruntime": "0.1"}}, "0.1"),
        ({"cases": (dataclasses.replace(CASE, image_size=(4, 4)),)}, "8x10"),
    ],
)
def test_worker_reports_errors_and_cleans_up(net: Path, tmp_path: Path, changes: dict[str, Any], datum: str) -> None:
    one = request(remote_file(net), **changes)
    reply, code = run_worker(remote_worker.encode_request(one) + net.read_bytes(), tmp_path)
    assert datum in reply["error"]["message"]
    assert reply["error"]["is_usage_error"] is ("cases" in changes)
    assert code == 1
    assert list(tmp_path.iterdir()) == []


def test_worker_survives_a_crashing_runtime(net: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    content = remote_worker.encode_request(request(remote_file(net))) + net.read_bytes()
    reply, _ = run_worker(content, temporary, PYTHONPATH=str(tmp_path))
    assert reply["error"]["is_crash"]
    assert "SIGSEGV" in reply["error"]["message"]
    assert list(temporary.iterdir()) == []


# The ssh process.


def test_ssh_command_quotes_the_python(monkeypatch) -> None:
    monkeypatch.setattr(ssh.shutil, "which", lambda _: "/usr/bin/ssh")
    program, *options, end, host, line = ssh.create_command(BOARD, "import x")
    assert (program, end, host) == ("/usr/bin/ssh", "--", "board")
    assert line == """'/opt/it'"'"'s py/python' -c 'import x'"""
    assert options[-4:] == ["-p", "2222", "-l", "me"]
    assert {"BatchMode=yes", "ConnectTimeout=15", "ForwardAgent=no"} <= set(options)


def test_missing_ssh_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(ssh.shutil, "which", lambda _: None)
    with pytest.raises(CompressError):
        ssh.create_command(BOARD, "import x")


def run_process(code: str, content: Iterator[bytes], limit_s: float = 60.0, on_message=lambda _: False) -> SshProcess:
    with SshProcess([sys.executable, "-c", code], content, on_message) as process:
        process.wait(BOARD, limit_s)
    return process


def test_ssh_process_separates_output_and_messages() -> None:
    statuses: list[str] = []

    def on_message(line: str) -> bool:
        statuses.extend([line] if line.startswith("compress: ") else [])
        return line.startswith("compress: ")

    code = (
        "import sys; data = sys.stdin.buffer.read(200000); "
        "print('compress: at work', file=sys.stderr); print('noise', file=sys.stderr); print(len(data)); sys.exit(3)"
    )
    process = run_process(code, iter([b"x" * 100000] * 2), on_message=on_message)
    assert (bytes(process.output).strip(), process.exit_code) == (b"200000", 3)
    assert (statuses, list(process.messages)) == (["compress: at work"], ["noise"])


def test_process_that_reads_nothing_may_end() -> None:
    assert run_process("print('no')", iter([b"x" * 100000] * 100)).output.strip() == b"no"


@pytest.mark.parametrize(
    ("limit", "value", "code", "content", "limit_s"),
    [
        ("MAX_OUTPUT", 1000, "import time; print('x' * 2000, flush=True); time.sleep(600)", [], 60.0),
        ("MAX_ERRORS", 1000, "import sys\nwhile True: print('x' * 99, file=sys.stderr)", [], 60.0),
        ("SEND_TIMEOUT_S", 0.0, "import time; time.sleep(600)", [b"x" * 10**7] * 2, 60.0),
        ("REPLY_TIMEOUT_S", 0.5, "import time; time.sleep(600)", [], 0.0),
    ],
)
def test_stuck_process_is_ended(monkeypatch, limit: str, value: float, code: str, content: Any, limit_s: float) -> None:
    monkeypatch.setattr(ssh, limit, value)
    with pytest.raises(CompressError, match="me@board:2222"):
        run_process(code, iter(content), limit_s)


def test_endless_output_fills_neither_memory_nor_time() -> None:
    for stream in ("stdout", "stderr"):
        with SshProcess(
            [sys.executable, "-c", f"import sys\nwhile True: sys.{stream}.write('x' * 10**6)"],
            iter([]),
            lambda _: False,
        ) as process:
            with pytest.raises(CompressError):
                process.wait(BOARD, 60.0)
            assert len(process.output) <= ssh.MAX_OUTPUT + ssh.CHUNK
            assert sum(map(len, process.messages)) <= ssh.KEPT_LINES * ssh.KEPT_LETTERS


def test_terminal_escapes_of_the_other_machine_are_removed() -> None:
    lines: list[str] = []
    hostile = b"\x1b]0;x\x07a\x9b2Jb\xc2\x9bc\xff\n\xe2\x80\xaed\r\x08\n" + b"e" * 9000
    run_process(
        f"import sys; sys.stderr.buffer.write({hostile!r})", iter([]), on_message=lambda line: bool(lines.append(line))
    )
    assert all(line.isprintable() for line in lines)
    assert max(map(len, lines)) <= ssh.KEPT_LETTERS


def test_model_that_is_no_file_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "net.xml").write_text("<net/>")
    os.mkfifo(tmp_path / "net.bin")
    with pytest.raises(UsageError):
        remote.collect_files([BenchmarkCase("net", tmp_path / "net.xml")])


def test_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"short")
    assert b"".join(remote.iter_content(b"head", [path], [RemoteFile("0/net.onnx", 5, "")])) == b"headshort"
    with pytest.raises(CompressError, match=r"net\.onnx"):
        run_process("import sys; sys.stdin.read()", remote.iter_content(b"", [path], [RemoteFile("0/net.onnx", 6, "")]))


# Replies.


def framed(reply: Any) -> bytes:
    return f"Welcome!\n{BEGIN}\n{json.dumps(reply)}\n{END}\nBye\n".encode()


def test_reply_is_found_in_the_output_of_a_login_shell() -> None:
    assert remote.parse_reply(BOARD, RemoteOutput(framed({"a": "x\x1b[2J"}), [], 0)) == {"a": "x [2J"}


@pytest.mark.parametrize(
    ("stdout", "code", "messages", "datum"),
    [
        (b"", 255, ["ssh: Connection refused"], "Connection refused"),
        (b"", 127, ["sh: not found"], "/opt/it's py/python"),
        (b"hello", 0, [], "exit code 0"),
        (framed({"a": 1})[:-12], 0, ["x"], "exit code 0"),
        (framed([1]), 0, [], "list"),
        (f"{BEGIN}\n{{\n{END}".encode(), 0, [], "JSON"),
        (f"{BEGIN}\n{'[' * 100_000}\n{END}".encode(), 0, [], "JSON"),
        (f"{BEGIN}\n{'[' * 100}{']' * 100}\n{END}".encode(), 0, [], "levels"),
        (f'{BEGIN}\n{{"a": NaN}}\n{END}'.encode(), 0, [], "number"),
        (f'{BEGIN}\n{{"a": [-1e999]}}\n{END}'.encode(), 0, [], "number"),
        (f'{BEGIN}\n{{"a": 1e308}}\n{END}'.encode(), 0, [], "number"),
        (f'{BEGIN}\n{{"a": {"9" * 400}}}\n{END}'.encode(), 0, [], "number"),
        (f'{BEGIN}\n{{"a": {"9" * 9000}}}\n{END}'.encode(), 0, [], "JSON"),
        (framed(remote_worker.error_reply("it\x1b[2J\nbroke")), 1, [], r"it \[2J broke"),
        (framed(remote_worker.error_reply("no reply", is_crash=True)), 1, ["Boom"], "Boom"),
    ],
)
def test_invalid_reply_is_an_error(stdout: bytes, code: int, messages: list[str], datum: str) -> None:
    with pytest.raises(CompressError, match=f"^me@board:2222: .*{datum}") as caught:
        remote.parse_reply(BOARD, RemoteOutput(stdout, messages, code))
    assert str(caught.value).isprintable()


def test_usage_error_there_is_a_usage_error_here() -> None:
    with pytest.raises(UsageError):
        remote.parse_reply(BOARD, RemoteOutput(framed(remote_worker.error_reply("x", is_usage_error=True)), [], 1))


def reply(**changes: Any) -> dict[str, Any]:
    return {
        "interleaved": {"latencies": [LATENCY], "medians": [[1.0, 1.1]]},
        "scenarios": [{"case": 0, "latency": {**LATENCY, "scenario": "Offline"}}],
        "failures": [],
        "machine": MACHINE,
    } | changes


def validate(content: dict[str, Any], **changes: Any) -> Any:
    one = request(**{"scenarios": (OFFLINE,), **changes})
    return remote.validate_reply(BOARD, content, [BenchmarkCase("my net", Path("net.onnx"), batch_size=2)], one)


def test_valid_reply_becomes_latencies() -> None:
    timings = validate(reply())
    assert [latency.scenario for _, latency in timings.latencies] == ["quick", "Offline"]
    assert list(timings.interleaved.round_medians.values()) == [[1.0, 1.1]]
    assert validate(reply(interleaved=None), duration_s=None).interleaved is None


@pytest.mark.parametrize(
    ("changes", "datum"),
    [
        ({"interleaved": None}, "interleaved"),
        ({"interleaved": {"latencies": [], "medians": []}}, "latencies"),
        ({"interleaved": {"latencies": [LATENCY], "medians": [["x"]]}}, r"medians\.0\.0"),
        ({"interleaved": {"latencies": [LATENCY | {"runs": "many"}], "medians": [[1.0]]}}, r"latencies\.0\.runs"),
        ({"interleaved": {"latencies": [LATENCY | {"device": "cuda"}], "medians": [[1.0]]}}, "cuda"),
        ({"interleaved": {"latencies": [LATENCY | {"latency_ms_p50": -1}], "medians": [[1.0]]}}, "-1"),
        ({"scenarios": []}, "expected 1"),
        ({"scenarios": [{"case": 0, "latency": LATENCY}]}, "quick"),
        ({"scenarios": [{"case": 1, "latency": LATENCY}]}, "case"),
        ({"machine": "big"}, "machine"),
        ({"machine": {"cpu": "A"}}, r"machine\.cores"),
        ({"machine": MACHINE | {"system": " "}}, r"machine\.system"),
        ({"machine": MACHINE | {"versions": [[["x"]]]}}, r"machine\.versions"),
        ({"interleaved": {"latencies": [LATENCY], "medians": [[0.0, 1.0]]}}, "medians"),
        ({"interleaved": {"latencies": [LATENCY], "medians": [[]]}}, "medians"),
        ({"interleaved": {"latencies": [LATENCY | {"latency_ms_p90": "nan"}], "medians": [[1.0]]}}, "p90"),
        ({"interleaved": {"latencies": [LATENCY | {"latency_ms_p99": 1e14}], "medians": [[1.0]]}}, "100000000000000"),
        ({"interleaved": {"latencies": [LATENCY | {"throughput_ips": -1.0}], "medians": [[1.0]]}}, "net"),
        ({"failures": [{"case": 0, "scenario": "Offline", "message": [1]}]}, "message"),
    ],
)
def test_reply_of_something_else_is_refused(changes: dict[str, Any], datum: str) -> None:
    with pytest.raises(CompressError, match=datum):
        validate(reply(**changes))


def test_failed_scenario_keeps_the_other_results() -> None:
    failures = [{"case": 0, "scenario": "Offline", "message": "it died."}]
    timings = validate(reply(scenarios=[], failures=failures))
    assert [(one.scenario, one.message) for one in timings.failures] == [("Offline", "me@board:2222: it died.")]
    with pytest.raises(CompressError, match="it died"):
        validate(reply(interleaved=None, scenarios=[], failures=failures), duration_s=None)


# Hostile replies: latencies of the request, or one sentence.

numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 1e308, 10**400, 1e15]))
json_values = st.recursive(st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=9)), lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)
), max_leaves=6)  # fmt: skip


@st.composite
def hostile_replies(draw: st.DrawFn) -> dict[str, Any]:
    """A valid reply in which some values are replaced, removed or added."""
    content: Any = json.loads(json.dumps(reply()))
    for _ in range(draw(st.integers(1, 4))):
        at = content
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and draw(st.booleans()):
                at = at[key]
                continue
            if draw(st.booleans()):
                at[key] = draw(json_values)
            else:
                del at[key]
            break
    return content


@settings(max_examples=int(os.environ.get("COMPRESS_FUZZ_EXAMPLES", "60")), deadline=None, database=None)
@given(hostile_replies())
def test_hostile_reply_is_used_or_refused(content: dict[str, Any]) -> None:
    with contextlib.suppress(CompressError):
        timings = validate(remote.parse_reply(BOARD, RemoteOutput(framed(content), [], 0)))
        json.dumps([dataclasses.asdict(latency) for _, latency in timings.latencies], allow_nan=False)
        json.dumps(timings.machine, allow_nan=False)
        assert all(latency.latency_ms_p50 > 0 for _, latency in timings.latencies)
        assert timings.machine["system"].split()


@settings(max_examples=int(os.environ.get("COMPRESS_FUZZ_EXAMPLES", "60")), deadline=None, database=None)
@given(st.binary(max_size=40), st.binary(max_size=40))
def test_strange_output_is_refused(head: bytes, tail: bytes) -> None:
    with pytest.raises(CompressError) as caught:
        remote.parse_reply(BOARD, RemoteOutput(head + f"{BEGIN}\n".encode() + tail + f"\n{END}".encode(), [], 0))
    assert str(caught.value).isprintable()
