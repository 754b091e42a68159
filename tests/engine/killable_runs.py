"""A process that has imported everything once and forks runs that are to be killed, at a time or a touch of the disk.

Reads one order a line from standard input, as JSON, and answers each with a line: how the run ended. Orders: `folder`;
`after` (seconds) or `touch` (a number, with `before`), when it dies; `when` (words of its diary) it is sent `signal`;
`hang`, to stay in its third step.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import tiny
import torch

from compress.engine.play import play
from compress.engine.run import Run
from compress.errors import CompressError

STEPS, SAVE = 15, 3


class Diary:
    """MosaicKD that notes the step it begins at and each that it has done, in a file that outlives it."""

    def __init__(self, path: Path, *, hang: bool) -> None:
        self.method = tiny.tiny_method("mosaic")
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.began, self.hang = False, hang

    def setup(self, run: Run) -> None:
        self.run = run
        self.method.setup(run)

    def step(self) -> dict[str, torch.Tensor]:
        if not self.began:
            self.note("began", self.run.step)
            self.began = True
        if self.hang and self.run.step == 2:
            self.note("hangs", 2)
            time.sleep(600)
        losses = self.method.step()
        self.note("did", self.run.step + 1)
        return losses

    def note(self, what: str, step: int) -> None:
        os.write(self.file, f"{what} {step}\n".encode())


def live(order: dict[str, Any]) -> int:
    """One run, from wherever its folder says to its end. Returns the exit code that the command would give."""
    folder = Path(order["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    touches = itertools.count()
    watch(touches, order.get("touch"), order.get("before", False))
    run = tiny.tiny_run(
        folder, steps=STEPS, save=SAVE, evaluate=7, log=1, validate=tiny.share_of_class_0, keep=True
    )  # fmt: skip
    try:
        play(Diary(folder / "diary", hang=order.get("hang", False)), run)
    except CompressError as error:
        (folder / "last words").write_text(str(error))
        return error.exit_code
    (folder / "touches").write_text(str(next(touches)))
    return 0


def watch(touches: Iterator[int], at: int | None, before: bool) -> None:
    """Count every touch of the disk, and die at one of them: before it, after it, or amid a write."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fatal(call: Callable[..., Any]) -> Callable[..., Any]:
        def touched(*args: Any, **options: Any) -> Any:
            here = next(touches) == at
            if here and before:
                die()
            answer = call(*args, **options)
            if here:
                die()
            return answer

        return touched

    class Cut:
        """A file whose fatal write is cut in the middle."""

        def __init__(self, file: IO[bytes]) -> None:
            self.file = file

        def write(self, content: bytes) -> int:
            if next(touches) == at:
                self.file.write(content[: len(content) // 2])
                self.file.flush()
                die()
            return self.file.write(content)

        def __enter__(self) -> Cut:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, fatal(getattr(os, name)))
    fdopen = os.fdopen
    os.fdopen = lambda *args, **options: Cut(fdopen(*args, **options))  # pyright: ignore


def bear(order: dict[str, Any]) -> dict[str, Any]:
    """Fork a run, do to it what the order says, and tell how it ended (as subprocess does: minus the signal)."""
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = live(order)
        finally:
            os._exit(code)
    if "after" in order:
        time.sleep(order["after"])
        send(pid, order.get("signal", signal.SIGKILL))
    for word in order.get("when", []):
        await_word(Path(order["folder"]) / "diary", word, pid)
        send(pid, order["signal"])
        time.sleep(0.2)
    _, status = os.waitpid(pid, 0)
    return {"ended": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begin}


def send(pid: int, signum: int) -> None:
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        os.kill(pid, signum)


def await_word(path: Path, word: str, pid: int) -> None:
    while not (path.exists() and word in path.read_text()):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.005)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(bear(json.loads(line))), flush=True)
