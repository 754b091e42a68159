"""Starting a run: alone, or as several processes under torchrun."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import UsageError
from compress.files import write_failed

if TYPE_CHECKING:
    from compress.engine.run import Run
    from compress.plan import Prepared


def train_run(ready: Prepared, out: Path | None, *, devices: int, resume: bool | None) -> Run | None:
    """Play the plan to its end in its folder. None in the processes that only help, and in the one that starts them."""
    if devices > 1 and "WORLD_SIZE" not in os.environ:
        sys.exit(launch(devices))
    from compress.engine.play import play
    from compress.plan import open_run

    folder = out or Path("runs") / f"{ready.plan.method['name']}-{ready.plan.student.model}".replace("/", "-")
    with locked(folder):
        run = open_run(ready, folder, resume=resume)
        play(ready.method, run)
    return run if run.place.rank == 0 else None


def launch(devices: int) -> int:
    """This same command as `devices` processes; their exit code."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    return subprocess.call([*torchrun, "-m", "compress", *sys.argv[1:]])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` against a second run. Raises UsageError naming the process that holds it, or that it cannot be written."""
    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+")
    except OSError as error:
        raise write_failed(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UsageError(f"{folder}: process {file.read().strip()} is running here; wait for it, or choose another --out.") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
