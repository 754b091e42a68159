"""A process that imports everything once and forks runs, which are killed at a given time or disk access.

Reads orders from standard input, one JSON object per line, and writes a line for each. Keys: `folder`; `after`
(seconds) or `touch` (number of a disk access, with `before`) until the kill; `when` (words in the diary) to send
`signal`; `hang` to sleep in the third step.
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

from compress.engine.run import Run
from compress.engine.trainer import train
from compress.errors import CompressError

STEPS, SAVE = 15, 3


class DiaryMethod:
    """MosaicKD that records its first step and each completed step in a file."""

    def __init__(self, path: Path, *, hang: bool) -> None:
        self.method = tiny.tiny_method("mosaic")
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.began, self.hang = False, hang

    def setup(self, run: Run) -> None:
        self.run = run
        self.method.setup(run)

    def step(self) -> dict[str, torch.Tensor]:
        if not self.began:
            self.record("began", self.run.step)
            self.began = True
        if self.hang and self.run.step == 2:
            self.record("hangs", 2)
            time.sleep(600)
        losses = self.method.step()
        self.record("did", self.run.step + 1)
        return losses

    def record(self, what: str, step: int) -> None:
        os.write(self.file, f"{what} {step}\n".encode())


def run_to_end(order: dict[str, Any]) -> int:
    """Run or resume to the end; returns the exit code of the command."""
    folder = Path(order["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    touches = itertools.count()
    kill_at_disk_access(touches, order.get("touch"), order.get("before", False))
    run = tiny.tiny_run(
        folder, steps=STEPS, save_every=SAVE, evaluate_every=7, log_every=1, validate=tiny.score_class_0,
        save_models=True,
    )  # fmt: skip
    try:
        train(DiaryMethod(folder / "diary", hang=order.get("hang", False)), run)
    except CompressError as error:
        (folder / "error").write_text(str(error))
        return error.exit_code
    (folder / "touches").write_text(str(next(touches)))
    return 0


def kill_at_disk_access(touches: Iterator[int], at: int | None, before: bool) -> None:
    """Count all disk accesses and kill the process at one: before it, after it, or within a write."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fatal(call: Callable[..., Any]) -> Callable[..., Any]:
        def touched(*args: Any, **options: Any) -> Any:
            here = next(touches) == at
            if here and before:
                die()
            result = call(*args, **options)
            if here:
                die()
            return result

        return touched

    class CutFile:
        """A file whose fatal write stops in the middle."""

        def __init__(self, file: IO[bytes]) -> None:
            self.file = file

        def write(self, content: bytes) -> int:
            if next(touches) == at:
                self.file.write(content[: len(content) // 2])
                self.file.flush()
                die()
            return self.file.write(content)

        def __enter__(self) -> CutFile:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, fatal(getattr(os, name)))
    fdopen = os.fdopen
    os.fdopen = lambda *args, **options: CutFile(fdopen(*args, **options))  # pyright: ignore


def fork_run(order: dict[str, Any]) -> dict[str, Any]:
    """Fork a run and follow the order; returns the exit code (as subprocess: minus the signal)."""
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = run_to_end(order)
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
    return {"exit_code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begin}


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
        print(json.dumps(fork_run(json.loads(line))), flush=True)
