"""Run a line of Python on another machine through the system's ssh, and send it bytes.

Nothing is installed there. What comes back is data: it is never executed, and control characters are removed.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from compress.errors import CompressError
from compress.files import sanitize

#: no questions, no forwarded port or agent, no shared connection; all else as in ~/.ssh/config
OPTIONS = (
    "BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4", "ClearAllForwardings=yes",
    "ForwardAgent=no", "ForwardX11=no", "ControlMaster=no", "ControlPersist=no", "RemoteCommand=none", "RequestTTY=no",
)  # fmt: skip
SSH_FAILED, NOT_FOUND = 255, 127
#: seconds without progress while sending; seconds for the output after the time limit
SEND_TIMEOUT_S, REPLY_TIMEOUT_S = 60.0, 30.0
#: maximum bytes of standard output, of standard error and of one line of it; letters of a line that are kept
MAX_OUTPUT, MAX_ERRORS, MAX_LINE, KEPT_LETTERS = 2**23, 2**20, 2**14, 500
CHUNK = 2**16
#: lines of standard error that are kept for error messages
KEPT_LINES = 20


@dataclass(frozen=True)
class Address:
    """Another machine and its Python."""

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"

    def __str__(self) -> str:
        """Format as `user@host:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


@dataclass(frozen=True)
class RemoteOutput:
    """What a command on another machine has written."""

    stdout: bytes
    messages: list[str]  #: last lines of standard error
    exit_code: int


def run_python(
    address: Address,
    code: str,
    content: Iterator[bytes],
    *,
    limit_s: float,
    on_message: Callable[[str], bool],
) -> RemoteOutput:
    """Run one line of Python on another machine.

    Args:
        address: The machine.
        code: One line without a single quote.
        content: Bytes for its standard input, which stays open until it has ended.
        limit_s: Maximum seconds after the last byte was sent.
        on_message: Called with each line of its standard error; returns whether the line was handled.

    Raises:
        CompressError: ssh is missing, or the machine takes no bytes or does not end in time.
    """
    with SshProcess(create_command(address, code), content, on_message) as process:
        process.wait(address, limit_s)
    return RemoteOutput(bytes(process.output), list(process.messages), process.exit_code)


def create_command(address: Address, code: str) -> list[str]:
    """Return the ssh command. Raises CompressError if ssh is not installed."""
    program = shutil.which("ssh")
    if program is None:
        raise CompressError("ssh: found no client, expected OpenSSH for --target ssh://…; install it.")
    options = [part for option in OPTIONS for part in ("-o", option)]
    port = [] if address.port is None else ["-p", str(address.port)]
    user = [] if address.user is None else ["-l", address.user]
    return [program, "-T", *options, *port, *user, "--", address.host, shlex.join([address.python, "-c", code])]


class SshProcess:
    """A process that reads its input while its output is collected. It has ended when the context exits."""

    def __init__(self, command: Sequence[str], content: Iterator[bytes], on_message: Callable[[str], bool]) -> None:
        self.content, self.on_message = content, on_message
        self.output = bytearray()
        self.messages: deque[str] = deque(maxlen=KEPT_LINES)
        self.exit_code = 0
        self.error: Exception | None = None
        self.last_progress, self.is_sent = time.monotonic(), False
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.streams = (self.process.stdin, self.process.stdout, self.process.stderr)
        targets = (self.send_content, self.read_output, self.read_messages)
        self.threads = [
            threading.Thread(target=target, args=(stream,), daemon=True)
            for target, stream in zip(targets, self.streams, strict=True)
        ]

    def __enter__(self) -> SshProcess:
        for thread in self.threads:
            thread.start()
        return self

    def send_content(self, stream: IO[bytes]) -> None:
        """Send all bytes and leave the stream open: its end tells the other machine to stop."""
        try:
            for chunk in self.content:
                stream.write(chunk)
                stream.flush()
                self.last_progress = time.monotonic()
        except BrokenPipeError:
            pass  # the process has ended; its output says why
        except (OSError, ValueError, CompressError) as error:
            self.error = error
        self.last_progress, self.is_sent = time.monotonic(), True

    def read_output(self, stream: IO[bytes]) -> None:
        while chunk := stream.read1(CHUNK):  # pyright: ignore[reportAttributeAccessIssue]
            self.output += chunk
            if len(self.output) > MAX_OUTPUT:
                self.error = CompressError(f"found more than {MAX_OUTPUT} bytes of output, expected a reply.")
                break

    def read_messages(self, stream: IO[bytes]) -> None:
        size = 0
        while line := stream.readline(MAX_LINE):
            size += len(line)
            if size > MAX_ERRORS:
                self.error = CompressError(f"found more than {MAX_ERRORS} bytes of messages, expected a reply.")
                break
            text = sanitize(line.decode(errors="replace"), " ").strip()[:KEPT_LETTERS]
            if text and not self.on_message(text):
                self.messages.append(text)

    def wait(self, address: Address, limit_s: float) -> None:
        """Wait for the end of the output. Raises CompressError if there is no progress or the content is unreadable."""
        reader = self.threads[1]
        while reader.is_alive():
            reader.join(0.2)
            idle = time.monotonic() - self.last_progress
            if self.error is not None:
                break
            if idle > (limit_s + REPLY_TIMEOUT_S if self.is_sent else SEND_TIMEOUT_S):
                what = "sent no reply" if self.is_sent else "took no more bytes"
                raise CompressError(f"{address}: {what} for {idle:.0f} s; check whether that machine still works.")
        if self.error is not None:
            raise CompressError(f"{address}: {self.error}") from self.error
        with contextlib.suppress(subprocess.TimeoutExpired):  # it is ended then; the output is complete
            self.exit_code = self.process.wait(REPLY_TIMEOUT_S)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(REPLY_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self.threads:
            thread.join(REPLY_TIMEOUT_S)
        for stream in self.streams:
            with contextlib.suppress(OSError):  # bytes that were not sent
                stream.close()


def describe_failure(address: Address, output: RemoteOutput) -> str:
    """Describe why there is no reply, by the exit code of ssh."""
    last = (output.messages[-1] if output.messages else "no reason given").rstrip(".")
    if output.exit_code == SSH_FAILED:
        return f"ssh fails ({last}); `ssh {format_ssh_arguments(address)} true` must work without a question."
    if output.exit_code == NOT_FOUND:
        remedy = "set the Python with ?python=PATH or `python:` in the target file"
        return f"found no {address.python} there ({last}); {remedy}."
    return f"the worker there ended with exit code {output.exit_code} and no reply ({last})."


def format_ssh_arguments(address: Address) -> str:
    """Format the arguments for calling ssh by hand."""
    port = "" if address.port is None else f"-p {address.port} "
    return port + (f"{address.user}@" if address.user else "") + address.host
