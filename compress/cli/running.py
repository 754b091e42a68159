"""Starting a run: alone, or as several processes under torchrun."""

from __future__ import annotations

import fcntl
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli.output import say
from compress.errors import UsageError
from compress.files import write_failed

if TYPE_CHECKING:
    from compress.engine.method import Method
    from compress.engine.place import Place
    from compress.engine.run import Run
    from compress.plan import Plan, Prepared

LOCK = ".lock"


def carry_out(
    plan: Plan, method: Method, out: Path | None, *, devices: int, resume: bool | None, dry_run: bool,
    exported: str | None, reported: bool,
) -> tuple[dict[str, Any], str] | None:  # fmt: skip
    """A plan from its networks to what came of it, for machines and for people; its estimate with `dry_run`.

    None in the processes that only help.
    """
    from compress.cli.opening import say_what_was_chosen
    from compress.cli.results import finished, rehearsed
    from compress.patch_size import settle
    from compress.plan import prepare

    given = plan.pace.batch_size
    ready = prepare(plan, method)
    first = int(os.environ.get("RANK", "0")) == 0
    if first and given is None and plan.pace.batch_size != method.batch_size:
        say(
            f"Assumed: batch size {plan.pace.batch_size} (the method's {method.batch_size} is for small images). "
            "If wrong: --batch-size."
        )
    for teacher, (_, card) in zip(plan.teachers, ready.teachers, strict=True) if first else ():
        say_what_was_chosen(teacher.model, card)
    if first and plan.data.unlabelled is not None and "unlabelled" not in method.needs:
        say(f"{plan.data.unlabelled}: not used, as method {plan.method['name']} draws no images.")
    settle(ready, folder_of(ready, out), resume=resume, say=say if first else lambda _: None)
    if dry_run:
        return rehearsed(ready)
    run = train_run(ready, out, devices=devices, resume=resume)
    return None if run is None else finished(run, ready, exported=exported, reported=reported)


def folder_of(ready: Prepared, out: Path | None) -> Path:
    """The folder of the run: the one given, or one named after method and student."""
    return out or Path("runs") / f"{ready.plan.method['name']}-{ready.plan.student.model}".replace("/", "-")


def train_run(ready: Prepared, out: Path | None, *, devices: int, resume: bool | None) -> Run | None:
    """Play the plan to its end in its folder. None in the processes that only help, and in the one that starts them."""
    from compress.engine.play import play
    from compress.plan import check_folder, open_run
    from profiles.memory import peak

    folder = folder_of(ready, out)
    if devices > 1 and "WORLD_SIZE" not in os.environ:
        check_folder(folder, ready.plan, resume=resume)
        sys.exit(launch(devices, settled(ready)))
    with locked(folder):
        run = open_run(ready, folder, resume=resume)
        run.peak_bytes = peak(partial(play, ready.method, run), run.place.device)
        first = run.place.rank == 0
        run.place = parted(run.place)
    return run if first else None


def parted(place: Place) -> Place:
    """The place of a process whose run is done: from here on nobody waits for anybody."""
    if place.world == 1:
        return place
    from torch import distributed

    place.barrier()
    distributed.destroy_process_group()
    return replace(place, rank=0, world=1)


def settled(ready: Prepared) -> list[str]:
    """Options that tell the processes to come what this one has chosen from the data, so that it is chosen once."""
    patch = ready.plan.method.get("patch")
    return ["--set", f"method.patch={patch}"] if isinstance(patch, int) else []


def launch(devices: int, more: Sequence[str] = ()) -> int:
    """This same command, with `more`, as `devices` processes, as torchrun does it; the exit code of the first to fail.

    The first process speaks for all; with --debug every one does.
    """
    import logging
    import tempfile

    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    loud = "--debug" in sys.argv
    if not loud:
        for name in logging.root.manager.loggerDict:
            if name.startswith("torch.distributed.elastic"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    with tempfile.TemporaryDirectory() as folder:
        heard = None if loud else {0}
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=devices, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder, local_ranks_filter=heard),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "compress", *sys.argv[1:], *more)
        except SignalException as error:
            return 128 + error.sigval
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            spoken = error.failures.get(0)
            if spoken is not None and spoken.exitcode > 0:
                return spoken.exitcode
            if rank > 0 and not loud:
                say(f"Error: process {rank} failed first; run again with --debug to see what every process says.")
            return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    return 0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` against a second run. Raises UsageError naming who holds it, CompressError if it is read-only."""
    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+")  # noqa: SIM115 - closed below
    except OSError as error:
        raise write_failed(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UsageError(
                f"{folder}: process {file.read().strip()} is running here; wait for it, or choose another --out."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            if new and [path.name for path in folder.iterdir()] == [LOCK]:  # refused before anything was written
                (folder / LOCK).unlink()
                folder.rmdir()
