"""Who works in a folder that several processes share, here and on other machines, and who of them is no more.

Each process writes a small file of its own, every few seconds with another number in it. Clocks of machines differ, and
what a network's file system says of times comes late; so nobody compares times: whose number another process has not
seen change for long, by its own clock, is taken to be dead. On the same machine the system is asked, which knows.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from compress.files import write_bytes

#: seconds between two signs of life
BEAT_S = 5.0
#: seconds without one after which a process counts as dead; what is slow to show itself must fit in
PATIENCE_S = 60.0


class Presence:
    """This process among those that work in `folder`."""

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.now = folder, now
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._beats = 0
        self._seen: dict[str, tuple[object, float]] = {}  #: name -> last number, and when it was first seen
        self._guard = threading.Lock()

    def beat(self) -> None:
        """Give a sign of life. Raises CompressError where the folder cannot be written."""
        self._beats += 1
        sign = {"place": place(), "pid": os.getpid(), "born": born(os.getpid()), "beat": self._beats}
        write_bytes(self.path(self.name), json.dumps(sign).encode())

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Give signs of life while open."""
        from compress.errors import CompressError

        self.beat()
        over = threading.Event()

        def go_on() -> None:
            while not over.wait(BEAT_S):
                with contextlib.suppress(CompressError):  # a server that is away for a moment; the next one may come
                    self.beat()

        thread = threading.Thread(target=go_on, daemon=True, name="presence")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with contextlib.suppress(OSError):
                self.path(self.name).unlink()

    def dead(self, name: str) -> bool:
        """Whether the process of that name is no more, as far as can be told."""
        if name == self.name:
            return False
        sign = self._read(name)
        if sign.get("place") == place() and sign.get("born") is not None:
            return born(int(sign["pid"])) != sign["born"]
        with self._guard:
            beat, now = sign.get("beat"), self.now()
            last, since = self._seen.setdefault(name, (beat, now))
            if last != beat:
                self._seen[name] = (beat, now)
                return False
            return now - since > PATIENCE_S

    def _read(self, name: str) -> dict[str, Any]:
        """The last sign of life; empty where there is none."""
        try:
            found = json.loads(self.path(name).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def place() -> str:
    """What processes that see each other's numbers have in common: the machine since its start, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {uuid.uuid4()}"  # equals no other: only its signs of life will tell


def born(pid: int) -> str | None:
    """When a process of this machine was started, by the system's own count; None where there is none, or no telling.

    Numbers of processes are used again; number and start together are not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
