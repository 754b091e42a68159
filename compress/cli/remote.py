"""The way to another machine: the system's ssh, one channel, files in and one JSON object out.

Nothing is installed there and nothing stays there. What comes back is data: it is validated, never executed, and shown
without what it could do to a terminal.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from compress.errors import CompressError
from compress.targets import Address

if TYPE_CHECKING:
    from profiles.remote.order import Order

#: never a question to nobody, a forwarded port or agent, a connection that lives on; all else as ~/.ssh/config has it
OPTIONS = (
    "BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4", "ClearAllForwardings=yes",
    "ForwardAgent=no", "ForwardX11=no", "ControlMaster=no", "ControlPersist=no", "RemoteCommand=none", "RequestTTY=no",
)  # fmt: skip
SSH_FAILED, NOT_FOUND = 255, 127
#: seconds for which the other side may take no byte of what it is sent; for its answer after all is done
STALLED_S, RETURN_S = 60.0, 30.0
#: bytes that the other side may say on standard output, and in one line of standard error
LONGEST, LONGEST_LINE = 2**23, 2**14
CHUNK = 2**16
#: lines of its standard error that are kept, to say why
KEPT_LINES = 20


@dataclass(frozen=True)
class Sent:
    """A file to copy."""

    path: Path
    size: int  #: bytes


def ask(address: Address, order: Order, files: Sequence[Sent], *, hear: Callable[[str], None]) -> dict[str, Any]:
    """What the runner on the other machine answers to `order`, as JSON has it, unchecked.

    `files`: those of the order's parts. `hear` is given what is said meanwhile. Raises CompressError, naming the
    machine, where it cannot be reached or cannot do it.
    """
    from profiles.remote.order import to_line
    from profiles.remote.packing import bootstrap, pack

    archive = pack()
    command = command_for(address, bootstrap(archive))
    with Call(command, pieces(archive + to_line(order), files), hear) as call:
        call.wait(address, order.limit_s)
    return understood(address, bytes(call.said), call.code, list(call.talk))


def command_for(address: Address, line: str) -> list[str]:
    """The call of ssh that has the other machine's Python run `line`. Raises CompressError where there is no ssh."""
    program = shutil.which("ssh")
    if program is None:
        raise CompressError("ssh is not installed here; --target ssh://… needs the client of OpenSSH.")
    options = [part for option in OPTIONS for part in ("-o", option)]
    port = [] if address.port is None else ["-p", str(address.port)]
    user = [] if address.user is None else ["-l", address.user]
    return [program, "-T", *options, *port, *user, "--", address.host, shlex.join([address.python, "-c", line])]


def pieces(head: bytes, files: Sequence[Sent]) -> Iterator[bytes]:
    """All that is sent. Raises CompressError for a file that is no longer as long as was said."""
    yield head
    for sent in files:
        left = sent.size
        with open(sent.path, "rb") as file:
            while chunk := file.read(min(CHUNK, left)):
                left -= len(chunk)
                yield chunk
        if left:
            raise CompressError(f"{sent.path}: became shorter while it was copied; run again.")


class Call:
    """A process that is sent something while it is listened to. At the end of the context it has ended."""

    def __init__(self, command: Sequence[str], content: Iterator[bytes], hear: Callable[[str], None]) -> None:
        self.content, self.hear = content, hear
        self.said = bytearray()  #: on standard output
        self.talk: deque[str] = deque(maxlen=KEPT_LINES)  #: on standard error, but for the runner's own lines
        self.code = 0
        self.problem: Exception | None = None
        self.moved, self.sent = time.monotonic(), False
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdin: IO[bytes] = self.process.stdin
        self.streams = (self.stdin, self.process.stdout, self.process.stderr)
        work = ((self.send, self.stdin), (self.listen, self.streams[1]), (self.overhear, self.streams[2]))
        self.threads = [threading.Thread(target=one, args=(stream,), daemon=True) for one, stream in work]

    def __enter__(self) -> Call:
        for thread in self.threads:
            thread.start()
        return self

    def send(self, stream: IO[bytes]) -> None:
        """Send all, and leave the stream open: its end would say that nobody waits for the answer."""
        try:
            for chunk in self.content:
                stream.write(chunk)
                stream.flush()
                self.moved = time.monotonic()
        except BrokenPipeError:
            pass  # it has ended; why stands in what it said
        except (OSError, ValueError, CompressError) as error:
            self.problem = error
        self.moved, self.sent = time.monotonic(), True

    def listen(self, stream: IO[bytes]) -> None:
        while chunk := stream.read1(CHUNK):  # pyright: ignore[reportAttributeAccessIssue]
            self.said += chunk
            if len(self.said) > LONGEST:
                self.problem = CompressError(f"more than {LONGEST} bytes came back, which is no answer.")
                break

    def overhear(self, stream: IO[bytes]) -> None:
        from profiles.remote.serving import TELLING

        while line := stream.readline(LONGEST_LINE):
            text = printable(line.decode(errors="replace")).strip()
            if text.startswith(TELLING):
                self.hear(text.removeprefix(TELLING))
            elif text:
                self.talk.append(text)

    def wait(self, address: Address, limit_s: float) -> None:
        """Until it has said all. Raises CompressError where it does not go on, or what is sent cannot be read."""
        listening = self.threads[1]
        while listening.is_alive():
            listening.join(0.2)
            quiet = time.monotonic() - self.moved
            if self.problem is not None:
                break
            if quiet > (limit_s + RETURN_S if self.sent else STALLED_S):
                what = "gave no answer" if self.sent else "took no more of what it was sent"
                raise CompressError(f"{address}: {what} within {quiet:.0f} s; look whether that machine still works.")
        if self.problem is not None:
            raise CompressError(f"{address}: {self.problem}") from self.problem
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it is ended, and its answer is all there is
            self.code = self.process.wait(RETURN_S)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(RETURN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self.threads:
            thread.join(RETURN_S)
        for stream in self.streams:
            with contextlib.suppress(OSError):  # bytes that nobody took
                stream.close()


def understood(address: Address, said: bytes, code: int, talk: list[str]) -> dict[str, Any]:
    """The answer in what was said. Raises CompressError where there is none, or it says why there is no result."""
    from profiles.remote.entry import BEGIN, END

    _, begun, rest = said.decode(errors="replace").rpartition(BEGIN + "\n")
    content, ended, _ = rest.partition("\n" + END)
    if not begun or not ended:
        raise CompressError(f"{address}: {why(address, code, talk)}")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CompressError(
            f"{address}: what came back is no answer of the runner ({type(error).__name__})."
        ) from error
    if not isinstance(found, dict):
        raise CompressError(f"{address}: what came back is no answer of the runner ({type(found).__name__}).")
    if "error" in found:
        below = f" ({talk[-1]})" if talk and "no answer" in str(found["error"]) else ""
        raise CompressError(f"{address}: {printable(str(found['error']))[:2000]}{below}.")
    return found


def why(address: Address, code: int, talk: list[str]) -> str:
    """Why there is no answer, by the exit code of ssh."""
    last = (talk[-1] if talk else "it gives no reason").rstrip(".")
    if code == SSH_FAILED:
        return f"ssh does not get there ({last}); `ssh {address_for_ssh(address)} true` must work without a question."
    if code == NOT_FOUND:
        return f"no {address.python} there ({last}); name the Python with ?python=PATH or `python:` in the target file."
    return f"the runner there ended with code {code} and no answer ({last})."


def address_for_ssh(address: Address) -> str:
    """As ssh is called by hand."""
    port = "" if address.port is None else f"-p {address.port} "
    return port + (f"{address.user}@" if address.user else "") + address.host


def printable(text: str) -> str:
    """Without what it could do to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
