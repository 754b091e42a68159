"""What comes back from another machine is data that may be anything; and so may be the way there."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.cli import remote
from compress.cli.elsewhere import checked
from compress.cli.remote import Call, Sent, command_for, pieces, understood
from compress.cli.targets import Address, read_address
from compress.errors import CompressError
from profiles.latency import Latency
from profiles.remote.entry import BEGIN, END
from profiles.remote.order import Job, Order, Play

BOARD = Address("board", "me", 2222, "/opt/it's py/python")
JOB = Job("0/net.onnx", "my net", "onnxruntime", "cpu", 1, 1)
LATENCY = dataclasses.asdict(
    Latency(1.0, 2.0, 3.0, 1.0, 0.0, 1000.0, 1, 10, 1, "onnxruntime", "cpu", "fp32", None, None)
)
PLAY = Play(0, {"scenario": "Offline"})


def framed(reply: Any) -> bytes:
    return f"Welcome!\n{BEGIN}\n{json.dumps(reply)}\n{END}\nBye\n".encode()


# the call of ssh


def test_ssh_is_called_with_a_list_and_the_python_quoted(monkeypatch) -> None:
    monkeypatch.setattr(remote.shutil, "which", lambda _: "/usr/bin/ssh")
    program, *options, end, host, line = command_for(BOARD, "import x")
    assert (program, end, host) == ("/usr/bin/ssh", "--", "board")
    assert line == """'/opt/it'"'"'s py/python' -c 'import x'"""
    assert options[-4:] == ["-p", "2222", "-l", "me"]
    assert {"BatchMode=yes", "ConnectTimeout=15", "ForwardAgent=no"} <= set(options)


def test_without_ssh_it_is_named(monkeypatch) -> None:
    monkeypatch.setattr(remote.shutil, "which", lambda _: None)
    with pytest.raises(CompressError, match="ssh is not installed here"):
        command_for(BOARD, "import x")


# answers


def test_an_answer_is_found_among_what_a_login_shell_says() -> None:
    assert understood(BOARD, framed({"a": 1}), 0, []) == {"a": 1}


@pytest.mark.parametrize(
    ("said", "code", "talk", "expected"),
    [
        (b"", 255, ["ssh: Connection refused"], r"me@board:2222: ssh does not get there \(ssh: Connection refused\)"),
        (b"", 127, ["sh: not found"], r"no /opt/it's py/python there \(sh: not found\); name the Python"),
        (b"hello", 0, [], r"ended with code 0 and no answer \(it gives no reason\)\.$"),
        (framed({"a": 1})[:-12], 0, ["x"], "no answer"),
        (framed([1]), 0, [], r"is no answer of the runner \(list\)"),
        (f"{BEGIN}\n{{\n{END}".encode(), 0, [], "is no answer of the runner"),
        (f"{BEGIN}\n{'[' * 100_000}\n{END}".encode(), 0, [], "is no answer of the runner"),
        (framed({"error": "it\x1b[2J\nbroke"}), 1, [], r"^me@board:2222: it \[2J broke\.$"),
        (framed({"error": "ended with code 1 and no answer"}), 1, ["Boom"], r"no answer \(Boom\)\.$"),
    ],
)
def test_what_is_no_result_becomes_one_sentence(said: bytes, code: int, talk: list[str], expected: str) -> None:
    with pytest.raises(CompressError, match=expected) as caught:
        understood(BOARD, said, code, talk)
    assert str(caught.value).isprintable()


def reply(**changes: Any) -> dict[str, Any]:
    quick = {"latencies": [LATENCY], "medians": [[1.0, 1.1]]}
    whole = {
        "quick": quick,
        "played": [{"latency": {**LATENCY, "scenario": "Offline"}}],
        "machine": {"cpu": "A\x1b[2J"},
    }
    return whole | changes


def look(found: dict[str, Any], **changes: Any) -> Any:
    order = dataclasses.replace(Order((), (JOB,), 60.0, 1.0, (PLAY,)), **changes)
    return checked(BOARD, found, [object()], order)  # pyright: ignore[reportArgumentType]


def test_a_whole_answer_becomes_numbers_without_signs_for_a_terminal() -> None:
    found = look(reply())
    ((_, latency),) = found.rounds.latencies.items()
    assert latency == Latency(**LATENCY)
    assert [one.scenario for _, one in found.played] == ["Offline"]
    assert found.machine == {"cpu": "A [2J"}
    assert look(reply(quick=None), quick_s=None).rounds is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quick": None}, "no measurement"),
        ({"quick": {"latencies": [], "medians": []}}, "0 latencies came back, expected 1"),
        ({"quick": {"latencies": [LATENCY], "medians": [["x"]]}}, r"no measurement \(medians\.0\.0"),
        ({"quick": {"latencies": [LATENCY | {"runs": "many"}], "medians": [[1.0]]}}, r"latencies\.0\.runs"),
        ({"quick": {"latencies": [LATENCY | {"device": "cuda"}], "medians": [[1.0]]}}, "my net: .*'cuda'.* expected"),
        ({"quick": {"latencies": [LATENCY | {"latency_ms_p50": -1}], "medians": [[1.0]]}}, "my net: .* of -1"),
        ({"played": []}, "0 played came back, expected 1"),
        ({"played": [{"latency": LATENCY}]}, "'quick'.* expected .*'Offline'"),
        ({"machine": "big"}, r"no measurement \(machine"),
    ],
)
def test_an_answer_of_something_else_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CompressError, match=said):
        look(reply(**changes))


def test_a_row_that_failed_there_is_told_and_the_others_are_kept() -> None:
    found = look(reply(played=[{"error": "Offline: it died."}]))
    assert found.failed == ["me@board:2222: my net, batch 1: Offline: it died."]
    assert found.played == []
    with pytest.raises(CompressError, match="it died"):
        look(reply(quick=None, played=[{"error": "Offline: it died."}]), quick_s=None)


# a process at the other end


def call(code: str, content: Iterator[bytes], limit_s: float = 60.0) -> Call:
    with Call([sys.executable, "-c", code], content, lambda _: None) as made:
        made.wait(BOARD, limit_s)
    return made


def test_what_is_sent_arrives_and_what_is_said_is_kept_apart() -> None:
    heard: list[str] = []
    code = (
        "import sys; found = sys.stdin.buffer.read(200000); "
        "print('compress: at work', file=sys.stderr); print('noise', file=sys.stderr); print(len(found)); sys.exit(3)"
    )
    with Call([sys.executable, "-c", code], iter([b"x" * 100000] * 2), heard.append) as made:
        made.wait(BOARD, 60.0)
    assert (bytes(made.said).strip(), made.code, heard, list(made.talk)) == (b"200000", 3, ["at work"], ["noise"])


def test_one_that_ends_without_reading_is_no_crash_of_ours() -> None:
    assert call("print('no')", iter([b"x" * 100000] * 100)).said.strip() == b"no"


def test_one_that_says_too_much_is_ended(monkeypatch) -> None:
    monkeypatch.setattr(remote, "LONGEST", 1000)
    with pytest.raises(CompressError, match="more than 1000 bytes came back"):
        call("import time; print('x' * 2000, flush=True); time.sleep(600)", iter([]))


def test_one_that_takes_nothing_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(remote, "STALLED_S", 0.0)
    with pytest.raises(CompressError, match="took no more of what it was sent"):
        call("import time; time.sleep(600)", iter([b"x" * 10**7] * 2))


def test_one_that_does_not_answer_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(remote, "RETURN_S", 0.5)
    with pytest.raises(CompressError, match="gave no answer"):
        call("import time; time.sleep(600)", iter([]), limit_s=0.0)


def test_a_file_that_becomes_shorter_meanwhile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"short")
    assert b"".join(pieces(b"head", [Sent(path, 5)])) == b"headshort"
    with pytest.raises(CompressError, match=r"net\.onnx: became shorter"):
        call("import sys; sys.stdin.read()", pieces(b"", [Sent(path, 6)]))


def test_a_python_in_the_home_folder_is_found_from_there() -> None:
    assert read_address("ssh://board", python="~/env/bin/python").python == "env/bin/python"
