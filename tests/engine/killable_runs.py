"""A process that imports everything once and forks runs, which are killed or disturbed.

Reads orders from standard input, one JSON object per line, and writes a line for each. Keys: `folder`; `method`
(default: mosaic); `after` (seconds) until the kill, or until `signal`; `touch` (number of a disk access, see
`DiskAccesses`); `when` (words in the diary) to send `signal`; `hang` to sleep in the third step, or "native" to compute
there in one long call; `nan` (steps whose weights become NaN); `clock` (seconds that the clock jumps in each step);
`environment` and `umask` of the run.
"""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
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
    """A method that records its first step and each completed step in a file."""

    def __init__(self, path: Path, order: dict[str, Any]) -> None:
        self.method = tiny.tiny_method(order.get("method", "mosaic"))
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.began, self.order = False, order
        self.clock = itertools.count(1)

    def setup(self, run: Run) -> None:
        self.run = run
        self.method.setup(run)

    def step(self) -> dict[str, torch.Tensor]:
        if not self.began:
            self.record("began", self.run.step)
            self.began = True
        if self.run.step == 2 and self.order.get("hang"):
            self.record("hangs", 2)
            hang(native=self.order["hang"] == "native")
        if "clock" in self.order:
            jump_clock(self.order["clock"] * next(self.clock))
        losses = self.method.step()
        if self.run.step in self.order.get("nan", []):
            with torch.no_grad():
                next(iter(self.run.student.parameters())).fill_(float("nan"))
        self.record("did", self.run.step + 1)
        return losses

    def record(self, what: str, step: int) -> None:
        os.write(self.file, f"{what} {step}\n".encode())


def hang(*, native: bool) -> None:
    """Do nothing for minutes, in Python or in one call of PyTorch that sees no signal."""
    if native:
        torch.linalg.matrix_power(torch.eye(3000), 2**62)
    else:
        time.sleep(600)


def jump_clock(seconds: float, now: Callable[[], float] = time.time) -> None:
    time.time = lambda: now() + seconds


def run_to_end(order: dict[str, Any]) -> int:
    """Run or resume to the end; returns the exit code of the command."""
    folder = Path(order["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(order.get("environment", {}))
    os.umask(order.get("umask", 0o022))
    method = DiaryMethod(folder / "diary", order)
    accesses = DiskAccesses(order)
    run = tiny.tiny_run(
        folder, order.get("method", "mosaic"), steps=STEPS, save_every=SAVE, evaluate_every=4, log_every=1,
        validate=lambda _: {"accuracy": run.step / STEPS}, save_models=True,
    )  # fmt: skip
    try:
        train(method, run)
    except Exception as error:
        accesses.at = None
        (folder / "error").write_text(f"{error}\n{traceback.format_exc()}")
        return error.exit_code if isinstance(error, CompressError) else 70
    touches, accesses.at = accesses.count, None
    (folder / "touches").write_text(str(touches))
    return 0


class DiskAccesses:
    """Counts the disk accesses of the main thread that change something, and disturbs number `touch`.

    The disturbance is the error `errno` (with `lasting`, also of all later accesses), the signal `signal`, or a kill;
    `before` or after the access, in a write after half of it. With `power_loss`, a folder, what the disk would contain
    after a power loss is copied there before the kill.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self.order, self.count = order, 0
        self.at, self.before = order.get("touch"), order.get("before", False)
        self.disk = DurableDisk(Path(order["folder"])) if "power_loss" in order else None
        for name in ("chmod", "fsync", "link", "mkdir", "rename", "replace", "rmdir", "symlink", "unlink"):
            setattr(os, name, self.watch(getattr(os, name)))
        os.open = self.watch(os.open, lambda _, flags, *rest, **options: flags & (os.O_CREAT | os.O_TRUNC))
        fdopen, opened = os.fdopen, self.watch(io.open)
        os.fdopen = lambda *args, **options: CutFile(fdopen(*args, **options), self)  # pyright: ignore

        def open_file(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+") or not self.is_counted():
                return opened.__wrapped__(file, mode, *args, **options)
            return CutFile(opened(file, mode, *args, **options), self)

        io.open = builtins.open = open_file  # pyright: ignore

    def watch(self, call: Any, changes: Callable[..., Any] = lambda *_, **__: True) -> Any:
        def watched(*args: Any, **options: Any) -> Any:
            if not self.is_counted() or not changes(*args, **options):
                return call(*args, **options)
            here = self.is_here()
            if here and (self.before or "errno" in self.order):
                self.disturb()
            result = call(*args, **options)
            if call.__name__ == "fsync" and self.disk is not None:
                self.disk.sync(args[0])
            if here and not self.before:
                self.disturb()
            return result

        watched.__wrapped__ = call  # pyright: ignore
        return watched

    def is_counted(self) -> bool:
        return threading.current_thread() is threading.main_thread()

    def is_here(self) -> bool:
        """Count an access; whether to disturb it."""
        number, self.count = self.count, self.count + 1
        return self.at is not None and (number == self.at or (number > self.at and "lasting" in self.order))

    def disturb(self) -> None:
        if "errno" in self.order:
            number = getattr(errno, self.order["errno"])
            raise OSError(number, os.strerror(number))
        if self.disk is not None:
            self.at = None
            self.disk.restore(Path(self.order["power_loss"]))
        os.kill(os.getpid(), self.order.get("signal", signal.SIGKILL))


class CutFile:
    """A file whose disturbed write stops in the middle."""

    def __init__(self, file: IO[Any], accesses: DiskAccesses) -> None:
        self.file, self.accesses = file, accesses

    def write(self, content: Any) -> int:
        if not self.accesses.is_counted() or not self.accesses.is_here():
            return self.file.write(content)
        half = self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.accesses.disturb()
        return half + self.file.write(content[half:])

    def __enter__(self) -> CutFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class DurableDisk:
    """What a power loss leaves: the content of a file at its last sync, the names in a folder at its last sync."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self.kept: dict[int, Path] = {}  #: inode -> an open file; while it is open, no other gets its number

    def sync(self, file: int) -> None:
        path = Path(f"/proc/self/fd/{file}")
        number = self.keep(path)
        if path.is_dir():
            self.names[number] = {entry.name: self.keep(entry) for entry in path.iterdir()}
        else:
            self.contents[number] = path.read_bytes()

    def keep(self, path: Path) -> int:
        number = os.stat(path).st_ino
        if number not in self.kept:
            self.kept[number] = Path(f"/proc/self/fd/{os.open(path, os.O_PATH)}")
        return number

    def restore(self, target: Path) -> None:
        """Copy what is durable: in target/strict under the synced names, in target/renamed under today's names."""
        for name in ("strict", "renamed"):
            self.copy(self.keep(self.root), target / name, strict=name == "strict")

    def copy(self, number: int, target: Path, *, strict: bool) -> None:
        source = self.kept[number]
        if not source.is_dir():
            target.write_bytes(self.contents.get(number, b""))
            return
        target.mkdir(parents=True)
        names = self.names.get(number, {}) if strict else {entry.name: self.keep(entry) for entry in source.iterdir()}
        for name, inner in names.items():
            self.copy(inner, target / name, strict=strict)


def fork_run(order: dict[str, Any]) -> dict[str, Any]:
    """Fork a run and follow the order; returns the exit code (as subprocess: minus the signal)."""
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 71
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
