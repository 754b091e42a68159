"""Calls in a forked process, so that crashes, hangs and memory of hostile input are seen and limited."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.reliability.counts import Counts

BENCHMARKS = Path(__file__).parents[1]
#: tests whose modules the benchmark shares
TESTS = BENCHMARKS.parent / "tests"
#: a hostile file that runs code creates the file that this variable names
TRIPWIRE = "RELIABILITY_TRIPWIRE"
SECONDS = 300.0


def share_tests() -> None:
    """Put the directories of the tests on the path, as pytest does."""
    folders = [TESTS, *sorted(path for path in TESTS.iterdir() if path.is_dir() and path.name != "fixtures")]
    sys.path[:0] = [str(folder) for folder in folders if str(folder) not in sys.path]


@dataclass
class Outcome:
    """How a call ended."""

    kind: Literal["returned", "refused", "internal", "died", "hung"]
    value: Any = None  #: what it returned, as JSON
    text: str = ""  #: the error
    peak_bytes: int = 0  #: resident memory above that before the call
    seconds: float = 0.0


def call_isolated(
    function: Callable[..., Any], *arguments: Any, seconds: float = SECONDS, address_space: int | None = None,
    **options: Any,
) -> Outcome:  # fmt: skip
    """Call a function in a fork of this process. Its value must be JSON.

    Args:
        function: what to call.
        arguments: its arguments.
        seconds: time limit.
        address_space: bytes that may be mapped beyond those that are mapped now.
        options: its named arguments.
    """
    reader, writer = os.pipe()
    begin = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        answer_call(writer, function, arguments, options, address_space)
    os.close(writer)
    content, is_late = read_until_end(reader, begin + seconds)
    if is_late:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    took = time.monotonic() - begin
    if is_late:
        return Outcome("hung", text=f"no answer in {seconds:.0f} s", seconds=took)
    try:
        return Outcome(**json.loads(content), seconds=took)
    except ValueError:
        return Outcome("died", text=f"ended with {os.waitstatus_to_exitcode(status)}", seconds=took)


def read_until_end(reader: int, deadline: float) -> tuple[bytes, bool]:
    """Read a pipe until its other end is closed; also whether the deadline passed first."""
    content = b""
    with os.fdopen(reader, "rb") as file:
        while True:
            ready, _, _ = select.select([file], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return content, True
            part = os.read(file.fileno(), 1 << 16)
            if not part:
                return content, False
            content += part


def answer_call(
    writer: int, function: Callable[..., Any], arguments: Any, options: Any, address_space: int | None
) -> None:
    """The forked process: call the function, write the answer and end."""
    try:
        silence()
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the parent is not ours
        before = read_status("VmRSS")
        if address_space is not None:
            limit = read_status("VmSize") + address_space
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        answer: dict[str, Any]
        try:
            answer = {"kind": "returned", "value": function(*arguments, **options)}
        except BaseException as error:
            is_ours = isinstance(getattr(error, "exit_code", None), int)
            frames = traceback.extract_tb(error.__traceback__)
            place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
            text = str(error)[:2000] if is_ours else f"{type(error).__name__}: {str(error)[:300]}{place}"
            answer = {"kind": "refused" if is_ours else "internal", "text": text}
        answer["peak_bytes"] = max(0, read_status("VmHWM") - before)
        content = json.dumps(answer).encode()
        while content:
            content = content[os.write(writer, content) :]
    finally:
        os._exit(0)


def silence() -> None:
    """Send what the call prints to nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)


def read_status(name: str) -> int:
    """A size of this process from /proc, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def call_command(*arguments: object) -> dict[str, Any]:
    """Run a command of `compress` in this process; return exit code, output and the name of an internal error."""
    from invoking import run

    result = run(*arguments)
    error = result.exception
    is_crash = error is not None and not isinstance(error, SystemExit)
    last = (result.stderr.strip().splitlines() or [""])[-1]
    if is_crash or "internal error" in last or "Traceback" in result.stderr:
        raise AssertionError(f"{type(error).__name__}: {last}")
    return {"exit_code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}


def expect_refusal(counts: Counts, part: str, outcome: Outcome, what: str, tripwire: Path | None = None) -> bool:
    """Count an outcome whose only expected form is an error of this package; whether it was so."""
    failed = isinstance(outcome.value, dict) and outcome.value.get("exit_code") in (1, 2)
    if tripwire is not None and tripwire.exists():
        counts.add(part, "code", what)
        if tripwire.is_dir():
            tripwire.rmdir()
        else:
            tripwire.unlink()
    elif outcome.kind == "refused" or (outcome.kind == "returned" and failed):
        counts.add(part, "expected")
        return True
    elif outcome.kind == "returned":
        counts.add(part, "silent", f"{what}: was accepted ({str(outcome.value)[:100]})")
    else:
        count_failure(counts, part, outcome, what)
    return False


def expect_no_crash(counts: Counts, part: str, outcome: Outcome, what: str) -> bool:
    """Count an outcome that may be a result or an error of this package; whether it was so."""
    if outcome.kind in ("returned", "refused"):
        counts.add(part, "expected")
        return True
    count_failure(counts, part, outcome, what)
    return False


def count_failure(counts: Counts, part: str, outcome: Outcome, what: str) -> None:
    kind = "internal" if outcome.kind in ("internal", "died") else "other"
    counts.add(part, kind, f"{what}: {outcome.kind}: {outcome.text}")


def expect_same(counts: Counts, part: str, outcome: Outcome, expected: Any, what: str) -> None:
    """Count an outcome that is either the expected value or an error of this package."""
    if outcome.kind == "returned":
        counts.add(part, "expected" if outcome.value == expected else "silent", what)
    elif outcome.kind == "refused":
        counts.add(part, "expected")
    else:
        count_failure(counts, part, outcome, what)
