"""Signals that stop a command: the first one lets it end in order, the second one ends the process at once.

Python runs signal handlers between two instructions of the main thread, so a long call of C++ code delays them. The
second signal is therefore counted by a thread, which reads what Python's C code writes to a file descriptor for each
signal. A call that also holds Python's global lock stops the thread too; there the kernel ends the process, because the
first signal sets the kernel's own action until the thread has seen it.

This module imports neither torch nor NumPy, so that the command line can import it fast.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOW_CURSOR = b"\x1b[?25h\n"
#: of Linux on 64-bit processors: the action of a signal, and where its flags are
ACTION_BYTES, FLAGS_OFFSET, SA_RESETHAND = 152, 136, 0x80000000

Handler = Callable[[int, FrameType | None], None]


class StopSignal(KeyboardInterrupt):
    """A signal that stops a command."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def raise_stop_signal(signum: int, _: FrameType | None) -> None:
    """Raise StopSignal; a signal handler."""
    raise StopSignal(signum)


@contextlib.contextmanager
def handle_signals(handler: Handler) -> Iterator[None]:
    """Context in which `handler` receives SIGINT, SIGTERM and SIGHUP; a second signal ends the process at once.

    Restores the previous handlers. Only the main thread can set handlers; elsewhere its owner handles signals. SIGHUP
    stays ignored if it is, as under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    try:
        with SecondSignal.watch() as watcher:
            watcher.set_handlers(handler)
            yield
    finally:  # after the end of the thread, which also changes the kernel's actions
        for signum, old in previous.items():
            signal.signal(signum, signal.SIG_DFL if old is None else old)
            if SecondSignal.current is not None and old not in (None, signal.SIG_IGN, signal.SIG_DFL):
                SecondSignal.current.reset_at_first(signum)


def handle_signals_to_the_end(handler: Handler) -> None:
    """Like `handle_signals`, until this process ends."""
    SecondSignal.current = SecondSignal()
    SecondSignal.current.set_handlers(handler)


class SecondSignal:
    """A thread that ends the process when a second stop signal arrives. There is at most one."""

    current: SecondSignal | None = None

    @classmethod
    @contextlib.contextmanager
    def watch(cls) -> Iterator[SecondSignal]:
        """Start the thread, or use the one that runs."""
        if cls.current is not None:
            yield cls.current
            return
        cls.current = cls()
        try:
            yield cls.current
        finally:
            cls.current.close()
            cls.current = None

    def __init__(self) -> None:
        self.signum = 0  #: of the first signal that the thread has seen
        self.handled = 0  #: of the first signal that the main thread has handled
        self._actions: dict[int, Any] = {}
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._previous = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._count, daemon=True, name="second signal")
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        signal.set_wakeup_fd(self._previous)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _count(self) -> None:
        while received := os.read(self._read, 64):
            if self._previous != -1:
                with contextlib.suppress(OSError):
                    os.write(self._previous, received)
            for signum in received:
                if signum not in STOP_SIGNALS:
                    continue
                if self.signum:
                    end_process(signum)
                self.signum = signum
                if signum in self._actions:
                    call_sigaction(signum, self._actions[signum])

    def set_handlers(self, handler: Handler) -> None:
        """Let `handler` receive the first signal."""
        is_terminal = [is_open_terminal(descriptor) for descriptor in range(3)]

        def on_signal(signum: int, frame: FrameType | None) -> None:
            if self.handled:  # within one long call of Python's C code the thread may not run
                end_process(signum)
            self.handled = signum
            if signum == signal.SIGHUP:
                detach_terminal(is_terminal)
            handler(signum, frame)

        for signum in STOP_SIGNALS:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, on_signal)
                self.reset_at_first(signum)

    def reset_at_first(self, signum: int) -> None:
        """Make the kernel end the process at the next signal of this kind if no Python code runs before it."""
        if self.signum or sys.platform != "linux" or sys.maxsize < 2**32:
            return
        import ctypes

        usual = ctypes.create_string_buffer(ACTION_BYTES)
        if call_sigaction(signum, None, usual):
            return
        flags = int.from_bytes(usual.raw[FLAGS_OFFSET : FLAGS_OFFSET + 4], "little") | SA_RESETHAND
        once = ctypes.create_string_buffer(usual.raw, ACTION_BYTES)
        once[FLAGS_OFFSET : FLAGS_OFFSET + 4] = flags.to_bytes(4, "little")  # pyright: ignore[reportArgumentType]
        self._actions[signum] = usual
        call_sigaction(signum, once)


def received_signal() -> int:
    """Return the first stop signal that this process has received within `handle_signals`, or 0."""
    watcher = SecondSignal.current
    return 0 if watcher is None else watcher.handled or watcher.signum


def call_sigaction(signum: int, new: Any, old: Any = None) -> int:
    """Call the function sigaction of the C library. Python has no access to its flags."""
    import ctypes

    return ctypes.CDLL(None).sigaction(signum, new, old)


def end_process(signum: int) -> None:
    """End this process and its descendants at once. Files are written atomically, so nothing is lost."""
    for pid in list_descendants(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    if is_open_terminal(2):
        with contextlib.suppress(OSError):
            os.write(2, SHOW_CURSOR)
    os._exit(128 + signum)


def list_descendants(pid: int) -> list[int]:
    """Return the children of a process and their descendants; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(path.read_bytes().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = list(children.get(pid, []))
    for one in found:
        found += children.get(one, [])
    return found


def is_open_terminal(descriptor: int) -> bool:
    """Check whether a file descriptor is a terminal; a closed one is none."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def detach_terminal(is_terminal: list[bool]) -> None:
    """Redirect what the terminal that has gone away would receive: writing to it fails."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor, was_terminal in enumerate(is_terminal):
        if was_terminal:
            os.dup2(null, descriptor)
    os.close(null)


def stop_watching_in_child() -> None:
    """A forked process must not report its signals to the thread of its parent."""
    if SecondSignal.current is not None:
        SecondSignal.current = None
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=stop_watching_in_child)
