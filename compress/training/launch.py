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

from compress.cli.output import print_status
from compress.errors import UsageError
from compress.files import write_error

if TYPE_CHECKING:
    from compress.engine.method import Method
    from compress.engine.accelerator import Accelerator
    from compress.engine.run import Run
    from compress.training.setup import TrainConfig, TrainingSetup

LOCK = ".lock"


def run_training(
    plan: TrainConfig, method: Method, out: Path | None, *, devices: int, resume: bool | None, dry_run: bool,
    exported: str | None, reported: bool,
) -> tuple[dict[str, Any], str] | None:  # fmt: skip
    """A plan from its networks to what came of it, for machines and for people; its estimate with `dry_run`.

    None in the processes that only help.
    """
    from compress.training.results import summarize_estimate, summarize_run
    from compress.analysis.patch_size import choose_patch_size
    from compress.training.setup import prepare_training
    from compress.predictor import announce_architecture

    given = plan.training.batch_size
    ready = prepare_training(plan, method)
    first = int(os.environ.get("RANK", "0")) == 0
    if first and given is None and plan.training.batch_size != method.batch_size:
        print_status(
            f"Assumed: batch size {plan.training.batch_size} (the method's {method.batch_size} is for small images). "
            "If wrong: --batch-size."
        )
    for teacher, (_, card) in zip(plan.teachers, ready.teachers, strict=True) if first else ():
        announce_architecture(teacher.model, card, print_status)
    if first and plan.data.unlabeled is not None and "unlabeled" not in method.needs:
        print_status(f"{plan.data.unlabeled}: not used, as method {plan.method['name']} draws no images.")
    choose_patch_size(ready, default_run_dir(ready, out), resume=resume, say=print_status if first else lambda _: None)
    if dry_run:
        return summarize_estimate(ready)
    run = train_in_dir(ready, out, devices=devices, resume=resume)
    return None if run is None else summarize_run(run, ready, exported=exported, reported=reported)


def default_run_dir(ready: TrainingSetup, out: Path | None) -> Path:
    """The folder of the run: the one given, or one named after method and student."""
    return out or Path("runs") / f"{ready.config.method['name']}-{ready.config.student.model}".replace("/", "-")


def train_in_dir(ready: TrainingSetup, out: Path | None, *, devices: int, resume: bool | None) -> Run | None:
    """Play the plan to its end in its folder. None in the processes that only help, and in the one that starts them."""
    from compress.engine.trainer import train
    from compress.training.setup import create_run, validate_run_dir
    from profiles.latency.tensor_memory import peak_memory

    folder = default_run_dir(ready, out)
    if devices > 1 and "WORLD_SIZE" not in os.environ:
        validate_run_dir(folder, ready.config, resume=resume)
        sys.exit(launch_distributed(devices, resolved_overrides(ready)))
    with run_dir_lock(folder):
        run = create_run(ready, folder, resume=resume)
        run.peak_memory_bytes = peak_memory(partial(train, ready.method, run), run.accelerator.device)
        first = run.accelerator.rank == 0
        run.accelerator = leave_process_group(run.accelerator)
    return run if first else None


def leave_process_group(place: Accelerator) -> Accelerator:
    """The place of a process whose run is done: from here on nobody waits for anybody."""
    if place.world_size == 1:
        return place
    from torch import distributed

    place.barrier()
    distributed.destroy_process_group()
    return replace(place, rank=0, world=1)


def resolved_overrides(ready: TrainingSetup) -> list[str]:
    """Options that tell the processes to come what this one has chosen from the data, so that it is chosen once."""
    patch = ready.config.method.get("patch")
    return ["--set", f"method.patch={patch}"] if isinstance(patch, int) else []


def launch_distributed(devices: int, more: Sequence[str] = ()) -> int:
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
                print_status(f"Error: process {rank} failed first; run again with --debug to see what every process says.")
            return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    return 0


@contextmanager
def run_dir_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` against a second run. Raises UsageError naming who holds it, CompressError if it is read-only."""
    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+")  # noqa: SIM115 - closed below
    except OSError as error:
        raise write_error(folder, error) from error
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
