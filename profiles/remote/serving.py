"""Receives an order and its files, has a process of its own do it, answers, and leaves nothing behind.

Standard input stays open while that process works: its end says that whoever asked is gone (Ctrl-C there, a broken
line), and then the work stops too. The process is another one because a runtime that crashes on a bad file takes its
process with it, and somebody must still say so and clean up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from profiles.remote.entry import answer
from profiles.remote.order import Part, Refused, from_line

#: in the temporary folder, which is removed by whoever made it: see `profiles.remote.packing`
FILES, ORDER, REPLY = "files", "order.json", "reply.json"
#: bytes of an order; more is none
LONGEST = 2**20
CHUNK = 2**20
#: before a line on standard error that is for people; all else there is the runtimes' own talk
TELLING = "compress: "


def main(arguments: list[str]) -> int:
    """The exit code of the runner, `arguments[0]`, which lies in the temporary folder."""
    folder = Path(arguments[0]).parent
    if arguments[1:2] == ["measure"]:
        from profiles.remote.timing import measure

        (folder / REPLY).write_text(json.dumps(attempt(measure, from_line((folder / ORDER).read_bytes()), folder)))
        return 0
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        signal.signal(getattr(signal, name), leave)
    reply = attempt(serve, sys.stdin.buffer, folder)
    answer(reply)
    return int("error" in reply)


def leave(number: int, _: object) -> None:
    """End as after an error, so that what is to be done at the end is done."""
    sys.exit(128 + number)


def attempt(work: Any, *arguments: Any) -> dict[str, Any]:
    """What `work` answers, or why it does not."""
    try:
        return work(*arguments)
    except OSError as error:
        return {"error": f"{error.strerror or error} ({error.filename or 'no file'})"}
    except MemoryError:
        return {"error": "the memory there does not suffice"}
    except Exception as error:
        if not hasattr(error, "exit_code"):  # no sentence for people: its traceback goes to standard error
            raise
        return {"error": str(error).rstrip(".")}


def tell(text: str) -> None:
    """A line for people."""
    print(TELLING + text, file=sys.stderr, flush=True)


def serve(source: BinaryIO, folder: Path) -> dict[str, Any]:
    line = source.readline(LONGEST)
    order = from_line(line)
    for part in order.parts:
        receive(source, part, folder / FILES)
    (folder / ORDER).write_bytes(line)
    return supervise(folder, order.limit_s)


def receive(source: BinaryIO, part: Part, folder: Path) -> None:
    """Write the next bytes to where they belong. Raises Refused where they end early, or are not those sent."""
    path = folder / part.name
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), part.size
    with open(path, "wb") as file:
        while left and (chunk := source.read(min(left, CHUNK))):
            file.write(chunk)
            digest.update(chunk)
            left -= len(chunk)
    if left or digest.hexdigest() != part.sha256:
        found = f"{part.size - left} bytes of sha256 {digest.hexdigest()[:12]}…"
        raise Refused(f"{part.name} arrived damaged: found {found}, expected {part.size} of {part.sha256[:12]}…")


def supervise(folder: Path, limit_s: float) -> dict[str, Any]:
    """Have the order done, at most for `limit_s` seconds and while somebody is there to hear the answer."""
    command = [sys.executable, sys.argv[0], "measure"]
    end = time.monotonic() + limit_s
    # Its standard output is a pipe that only tells when it has ended: runtimes write there what nobody asked for.
    # What they leave among the temporary files (ONNX Runtime does) they leave where it is removed.
    surroundings = {**os.environ, "TMPDIR": str(folder)}
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=surroundings, start_new_session=True
    )
    assert child.stdout is not None
    talk = child.stdout.fileno()
    try:
        while True:
            ready, _, _ = select.select([0, talk], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise Refused(f"not done after {limit_s:.0f} s; ask for less, or for a shorter --duration")
            if 0 in ready and not os.read(0, CHUNK):
                raise Refused("whoever asked is gone")
            if talk in ready and not os.read(talk, CHUNK):
                break
        code = child.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # and what it has started
        child.wait()
        child.stdout.close()
    return read_reply(folder / REPLY, code)


def read_reply(path: Path, code: int) -> dict[str, Any]:
    if path.is_file():
        return json.loads(path.read_bytes())
    if code < 0:
        name = signal.Signals(-code).name
        memory = "; the system may have run out of memory" if name == "SIGKILL" else ""
        raise Refused(f"the runtime there crashed ({name}{memory})")
    raise Refused(f"the runner there ended with code {code} and no answer")
