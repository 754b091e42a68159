"""Training runs from a config: in this process, or in several processes started as torchrun does."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from compress.engine.signals import handle_signals, raise_stop_signal
from compress.errors import CompressError, Interrupted, UsageError
from compress.files import LockHeldError, file_lock, make_directory, write_error
from compress.own_files import LOCK, RECIPE
from compress.plugins import child_command
from compress.resources import default_threads, usable_cores

if TYPE_CHECKING:
    from compress.engine.accelerator import Accelerator
    from compress.engine.method import Method
    from compress.engine.run import Run
    from compress.training.config import TrainConfig
    from compress.training.estimate import EstimateResult
    from compress.training.results import RunResult, TrainingSummary
    from compress.training.setup import TrainingSetup

#: files of a distributed training, in a temporary directory
JOB, SUMMARY, ERROR = "job.json", "summary.json", "error-{rank}.json"
WORKER = "compress.training.worker"
#: limits of --devices, or the number of cores if that is larger, and of --restarts
MAX_PROCESSES, MAX_RESTARTS = 64, 1000

Progress = Callable[[str], None]


class LostPeerError(CompressError):
    """Another process of a distributed training has ended."""

    def __init__(self) -> None:
        super().__init__(
            "lost the connection to another process of this training; see its message. The same command continues from "
            "the last checkpoint."
        )


def ignore(message: str) -> None:
    """Discard a progress message."""


def run_training(
    config: TrainConfig, method: Method, *, output_dir: Path | None = None, devices: int = 1, restarts: int = 0,
    resume: bool | None = None, export: Literal["onnx"] | None = None, report: bool = False, command: str = "",
    progress: Progress = ignore,
) -> RunResult | None:  # fmt: skip
    """Train a student, measure it and record the result in the run directory.

    The resolved config is written to recipe.yaml in the run directory and reproduces the run.

    Args:
        config: validated settings, from `load_config`; resolved in place.
        method: the method of the config, from `load_config`.
        output_dir: run directory; None: runs/METHOD-STUDENT.
        devices: number of processes, each on one device.
        restarts: how often the processes restart from the last checkpoint after one of them failed.
        resume: None continues a run of the same config and otherwise begins one; True requires a run; False removes
            the old run.
        export: "onnx" also writes the best student as verified ONNX.
        report: also measure latency and write a report.
        command: command line to record with the result.
        progress: receives status messages; without it no progress is shown.

    Returns:
        The result; None in processes of rank above 0, if torchrun started the caller.

    Raises:
        UsageError: the config, the data or the run directory do not fit; nothing has been trained.
        Interrupted: a signal arrived; the state is saved and the same call continues.
        CompressError: the training failed.
    """
    from compress.training.memory import fit_memory
    from compress.training.resolution import resolve_setup
    from compress.training.results import summarize_run

    check_processes(devices, restarts)
    progress = progress if is_first_process() else ignore
    setup, run_dir = resolve_setup(config, method, output_dir, devices=devices, resume=resume, progress=progress)
    fit_memory(setup, run_dir, devices=devices, resume=resume, progress=progress)
    summary = train_in_dir(setup, run_dir, devices=devices, restarts=restarts, resume=resume, progress=progress)
    if summary is None:
        return None
    return summarize_run(setup, run_dir, summary, export=export, report=report, command=command, progress=progress)


def estimate_training(
    config: TrainConfig, method: Method, *, output_dir: Path | None = None, resume: bool | None = None,
    progress: Progress = ignore,
) -> EstimateResult:  # fmt: skip
    """Check everything that `run_training` checks and estimate the cost on this machine; write nothing.

    Arguments and errors are those of `run_training`.
    """
    from compress.training.estimate import estimate_cost
    from compress.training.memory import fit_memory
    from compress.training.resolution import resolve_setup

    setup, run_dir = resolve_setup(config, method, output_dir, resume=resume, progress=progress)
    warnings: list[str] = []
    fit_memory(setup, run_dir, devices=1, resume=resume, progress=progress, warn=warnings.append)
    result = estimate_cost(setup)
    warnings += result.warnings
    for warning in warnings:
        progress(f"Warning: {warning}")
    return replace(result, warnings=warnings)


def check_processes(devices: int, restarts: int) -> None:
    """Raise UsageError for more processes than this machine can hold, or an absurd number of restarts."""
    from compress.config import check_range

    check_range("--devices", devices, 1, max(MAX_PROCESSES, usable_cores()))
    check_range("--restarts", restarts, 0, MAX_RESTARTS)


def is_first_process() -> bool:
    """Check whether this process has rank 0, or is the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def train_in_dir(
    setup: TrainingSetup, run_dir: Path, *, devices: int = 1, restarts: int = 0, resume: bool | None = None,
    image_count: int | None = None, progress: Progress = ignore,
) -> TrainingSummary | None:  # fmt: skip
    """Train in a locked run directory. None in processes of rank above 0.

    With `image_count` the method only synthesizes that many images, without a student.
    """
    from compress.engine.synthesis import SynthesisOnly
    from compress.engine.trainer import train
    from compress.training.memory import explain_out_of_memory
    from compress.training.run_dir import identify_run, validate_run_dir
    from compress.training.setup import create_run
    from profiles.latency.tensor_memory import peak_memory

    check_processes(devices, restarts)
    if (devices > 1 or restarts) and "WORLD_SIZE" not in os.environ:
        identity = identify_run(setup.config, [net for net, _ in setup.teachers])
        validate_run_dir(run_dir, setup.config, resume=resume, identity=identity)
        job = {"run_dir": str(run_dir), "resume": resume, "image_count": image_count}
        return launch_processes(setup.config, job, devices=devices, restarts=restarts)
    if image_count is not None:
        setup = replace(setup, method=cast("Any", SynthesisOnly(cast("Any", setup.method), image_count)))
    try:
        with run_dir_lock(run_dir), explain_out_of_memory(setup):
            run = create_run(setup, run_dir, resume=resume, quiet=progress is ignore)
            run.peak_memory_bytes = peak_memory(partial(train, setup.method, run), run.accelerator.device)
            run.accelerator = leave_process_group(run.accelerator)
    except RuntimeError as error:
        if is_connection_error(error):
            raise LostPeerError from error
        raise
    return summarize_training(run) if is_first_process() else None


def is_connection_error(error: RuntimeError) -> bool:
    """Check whether a collective operation failed because another process has ended."""
    from torch import distributed

    is_distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return is_distributed and (isinstance(error, distributed.DistError) or "gloo" in str(error).lower())


def summarize_training(run: Run) -> TrainingSummary:
    """Collect the numbers of a finished training."""
    from compress.training.results import TrainingSummary, overall_metrics

    lines = run.metrics_logger.read_records("evaluation") if run.metrics_logger is not None else []
    names = ("step", "seconds", *overall_metrics(run.metrics))
    history: list[dict[str, float]] = []
    for line in lines:
        while history and history[-1]["step"] >= line["step"]:
            history.pop()  # undone by a rollback
        if line.keys() >= set(names):
            history.append({name: line[name] for name in names})
    return TrainingSummary(
        steps=run.step, seconds=run.elapsed, batch_size=run.batch_size, precision=run.accelerator.precision,
        metrics=run.metrics, peak_bytes=run.peak_memory_bytes, data_wait_share=run.data_wait_share,
        history=history, rollbacks=run.rollbacks,
    )  # fmt: skip


def leave_process_group(accelerator: Accelerator) -> Accelerator:
    """Return the accelerator of a process whose training has ended: it waits for no other process any more."""
    if accelerator.world_size == 1:
        return accelerator
    from torch import distributed

    accelerator.barrier()
    distributed.destroy_process_group()
    return replace(accelerator, rank=0, world_size=1)


def launch_processes(config: TrainConfig, job: dict[str, Any], *, devices: int, restarts: int = 0) -> TrainingSummary:
    """Train in several processes on this machine, each of which reads the config as a recipe file.

    Args:
        config: the resolved config.
        job: arguments of `train_in_dir`: run_dir, resume, image_count.
        devices: number of processes.
        restarts: how often the processes restart after a failure.

    Raises:
        CompressError: the error of the first process that failed.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from compress.config import dump_yaml
    from compress.training.results import TrainingSummary

    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):  # it logs what is raised here
            logging.getLogger(name).setLevel(logging.CRITICAL)
    usual = str(default_threads())
    if os.environ.get("OMP_NUM_THREADS", usual) == usual:  # not a choice of the user
        os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // devices))
    # A store that restarted processes share with their predecessors holds addresses of ended ones.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with tempfile.TemporaryDirectory(prefix="compress-train-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        (directory / RECIPE).write_text(dump_yaml(config), encoding="utf-8")
        (directory / JOB).write_text(json.dumps(job), encoding="utf-8")
        launch_config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=devices, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=restarts, monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=name, local_ranks_filter={0}),
        )  # fmt: skip
        command = child_command(WORKER, name)
        # torchrun's launcher replaces the signal handlers; this context restores them.
        try:
            with handle_signals(raise_stop_signal):
                elastic_launch(launch_config, command[0])(*command[1:])
        except SignalException as error:  # the processes have received SIGTERM
            stopped = read_worker_error(directory, 0, -error.sigval)
            raise Interrupted(error.sigval, str(stopped)) from error
        except ChildFailedError as error:
            failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
            errors = [read_worker_error(directory, rank, failure.exitcode) for rank, failure in failures]
            raise next((one for one in errors if not isinstance(one, LostPeerError)), errors[0]) from error
        return TrainingSummary(**json.loads((directory / SUMMARY).read_text(encoding="utf-8")))


def read_worker_error(directory: Path, rank: int, exit_code: int) -> CompressError:
    """Create the error that a process wrote before it ended, or one that tells how it ended."""
    try:
        content = json.loads((directory / ERROR.format(rank=rank)).read_text(encoding="utf-8"))
    except OSError:
        reason = f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
        if exit_code == -signal.SIGKILL:  # as the kernel does if a control group has no memory left
            reason += ", possibly out of memory (--batch-size auto learns from parts of the batch)"
        return CompressError(
            f"process {rank}: ended by {reason}. The same command continues from the last checkpoint; --restarts N "
            "restarts the processes."
        )
    code, message = content["exit_code"], content["message"]
    if code > 128:
        return Interrupted(code - 128, message)
    if content["type"] == LostPeerError.__name__:
        return LostPeerError()
    error = UsageError(message) if code == UsageError.exit_code else CompressError(message)
    error.add_note(content["traceback"])
    return error


@contextmanager
def run_dir_lock(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run directory; a new directory that stays empty is removed.

    Raises:
        UsageError: another process holds it.
        CompressError: the directory cannot be written.
    """
    if not is_first_process():
        yield
        return
    is_new = not run_dir.exists()
    with ExitStack() as stack:
        try:
            make_directory(run_dir)
            stack.enter_context(file_lock(run_dir / LOCK))
        except LockHeldError as error:
            raise UsageError(str(error)) from error
        except OSError as error:
            raise write_error(run_dir, error) from error
        try:
            yield
        finally:
            with suppress(OSError):
                if is_new and [path.name for path in run_dir.iterdir()] == [LOCK]:
                    (run_dir / LOCK).unlink()
                    run_dir.rmdir()
