"""Run jobs in a plain loop (one worker) or as Ray tasks (several workers, or a cluster).

A job is a function and its arguments. It starts its trainings as processes of their own, which save their state when
they are stopped, so a job that is run again continues where the training was.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import compress
from compress.config import check_range
from compress.engine.signals import handle_signals, raise_stop_signal
from compress.errors import CompressError, UsageError
from compress.files import is_locked, sanitize
from compress.plugins import CHILD_SCRIPT as RUN_MODULE
from compress.plugins import child_command
from compress.resources import usable_cores
from compress.training.launch import MAX_PROCESSES

if TYPE_CHECKING:
    from compress.experiments.config import Resources

Progress = Callable[[str], None]

#: seconds between two looks at a running process
POLL_S = 1.0
#: seconds that an orphaned training has to save its state and end
ORPHAN_S = 300.0
#: how often Ray runs a job again after its worker or its machine died
MAX_RETRIES = 2
#: seconds to reach a Ray cluster
CONNECT_S = 10.0
OBJECT_STORE_BYTES = 80_000_000
#: limit of --workers on a cluster
MAX_JOBS = 10_000
#: runs a module as a process that receives SIGTERM when its parent dies (on Linux), so that it saves its state
CHILD_SCRIPT = f"""
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv.pop()):
    sys.exit(128 + signal.SIGTERM)
{RUN_MODULE}
"""
#: Ray on this machine alone: no telemetry, a secret token, loopback addresses only; a killed worker leaves its training
#: to save its state; memory is watched by the operating system
LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_kill_child_processes_on_worker_exit": "0",
    "RAY_memory_monitor_refresh_ms": "0",
}
#: of these, what the driver of a cluster sets
CLUSTER_VARIABLES = ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS")


@dataclass(frozen=True)
class Job:
    """A function to call with `arguments` and a progress callback."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclass
class JobOutcomes:
    """What became of the jobs that ran."""

    results: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  #: name -> error message
    signum: int = 0  #: the signal that stopped the jobs; 0: none


class Executor(Protocol):
    """Runs jobs, and owns objects that all of them share."""

    def share(self, cls: type, *arguments: Any) -> Any: ...
    def run(self, jobs: Sequence[Job], progress: Progress) -> JobOutcomes: ...


@contextlib.contextmanager
def start_executor(
    workers: int | None = None, on: str | None = None, *, resources: Resources, device: str = "auto"
) -> Iterator[Executor]:
    """Start an executor for jobs, and stop it at the end.

    Args:
        workers: Maximum number of jobs at a time. Default: 1, or as many as fit on the cluster.
        on: Address of a Ray cluster, HOST:PORT or auto. Default: this machine.
        resources: Reserved by each job.
        device: Device of the trainings; cpu reserves no GPU.

    Raises:
        UsageError: Ray is not installed, the cluster cannot be reached, or there are too many workers.
    """
    check_range("--workers", workers or 1, 1, MAX_JOBS if on is not None else max(MAX_PROCESSES, usable_cores()))
    if on is None and (workers or 1) == 1:
        yield LoopExecutor()
        return
    executor = RayExecutor(workers, on, resources, device)
    try:
        yield executor
    finally:
        executor.close()


class LoopExecutor:
    """Runs one job after another in this process."""

    def share(self, cls: type, *arguments: Any) -> Any:
        """Create a plain object."""
        return cls(*arguments)

    def run(self, jobs: Sequence[Job], progress: Progress) -> JobOutcomes:
        """Run all jobs; a failed job does not stop the others."""
        outcomes = JobOutcomes()
        try:
            with handle_signals(raise_stop_signal):
                for job in jobs:
                    record_outcome(outcomes, job, *run_job(job, progress), progress=progress)
        except KeyboardInterrupt as error:
            outcomes.signum = getattr(error, "signum", signal.SIGINT)
        return outcomes


class RayExecutor:
    """Runs jobs as Ray tasks, on this machine or on a cluster."""

    def __init__(self, workers: int | None, on: str | None, resources: Resources, device: str) -> None:
        local = dict(LOCAL_ENVIRONMENT)
        if not any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
            local["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        if "ray" in sys.modules:  # it has read the mode by now, and asks for a token by default
            del local["RAY_AUTH_MODE"]
        for name, value in local.items():
            if on is None or name in CLUSTER_VARIABLES:
                os.environ.setdefault(name, value)
        try:
            import ray
            from ray.exceptions import RayError
        except ImportError as error:
            raise UsageError("several workers need Ray: pip install 'compress-distill[sweep]'.") from error
        self.ray, self.ray_error, self.workers = ray, RayError, workers
        self.cpus = resources.cpus or (1 if on is not None else max(1, usable_cores() // (workers or 1)))
        self.owns_ray = not ray.is_initialized()
        with (
            contextlib.redirect_stdout(sys.stderr), contextlib.chdir(import_directory()),
            handle_signals(raise_stop_signal),  # and restore the handlers, because Ray sets its own
        ):  # fmt: skip
            if self.owns_ray and on is None:
                ray.init(
                    "local", num_cpus=self.cpus * (workers or 1), include_dashboard=False, configure_logging=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                )  # fmt: skip
            elif self.owns_ray:
                try:
                    check_reachable(str(on))
                    ray.init(on, configure_logging=False)
                except (OSError, RuntimeError, ValueError, RayError) as error:
                    raise UsageError(
                        f"--on {on}: no Ray cluster reached ({str(error).splitlines()[0]}); start one with `ray start`."
                    ) from error
        self.gpus = resources.gpus if resources.gpus is not None else self._default_gpus(on, device)

    def _default_gpus(self, on: str | None, device: str) -> float:
        """Return one GPU per job, or an equal share if one machine has fewer GPUs than workers."""
        available = 0 if device == "cpu" else int(self.ray.cluster_resources().get("GPU", 0))
        if not available:
            return 0
        return 1 if on is not None else 1 / math.ceil((self.workers or 1) / available)

    def share(self, cls: type, *arguments: Any) -> Any:
        """Create an actor on the machine of the driver; the result calls its methods."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        return ActorProxy(self.ray.remote(cls).options(num_cpus=0, scheduling_strategy=here).remote(*arguments))

    def run(self, jobs: Sequence[Job], progress: Progress) -> JobOutcomes:
        """Run all jobs, at most `workers` at a time; a failed job does not stop the others."""
        outcomes, waiting, running = JobOutcomes(), list(jobs), {}
        task = self.ray.remote(run_job_remotely)
        reserved = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": MAX_RETRIES}
        # Ray prints its warnings and the lines of its workers to standard output, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr), handle_signals(raise_stop_signal):
            try:
                while waiting or running:
                    while waiting and len(running) < (self.workers or len(jobs)):
                        job = waiting.pop(0)
                        running[task.options(name=job.name, **reserved).remote(job, os.getcwd())] = job
                    done, _ = self.ray.wait(list(running), timeout=POLL_S)
                    for reference in done:
                        record_outcome(outcomes, running.pop(reference), *self._get(reference), progress=progress)
            except KeyboardInterrupt as error:
                outcomes.signum = getattr(error, "signum", signal.SIGINT)
                for reference in running:  # raises KeyboardInterrupt in the job, which stops its training
                    self.ray.cancel(reference, force=False)
                if running:
                    self.ray.wait(list(running), num_returns=len(running), timeout=ORPHAN_S)
        return outcomes

    def _get(self, reference: Any) -> tuple[Any, str | None]:
        try:
            return self.ray.get(reference)
        except self.ray_error as error:
            reason = str(error).strip().splitlines()[0]
            return None, f"its worker died {MAX_RETRIES + 1} times ({reason}); is there enough memory?"

    def close(self) -> None:
        """Stop Ray if this executor started it."""
        if self.owns_ray:
            self.ray.shutdown()


class ActorProxy:
    """Calls the methods of a Ray actor as if it were a plain object."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        if name == "actor" or name.startswith("__"):
            raise AttributeError(name)
        import ray

        return lambda *arguments: ray.get(getattr(self.actor, name).remote(*arguments))


def import_directory() -> Path:
    """Return the directory in which Ray starts, because its workers import modules from there first."""
    root = Path(compress.__file__).resolve().parents[1]
    return root if root == Path.cwd().resolve() else Path(root.anchor)


def check_reachable(address: str) -> None:
    """Connect to HOST:PORT, because Ray ends the process if nothing listens there."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=CONNECT_S).close()


def run_job(job: Job, progress: Progress) -> tuple[Any, str | None]:
    """Run a job; return its result, or the message of its error."""
    try:
        return job.function(*job.arguments, progress), None
    except Exception as error:
        if isinstance(getattr(error, "exit_code", None), int):
            return None, str(error)
        return None, f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def run_job_remotely(job: Job, directory: str) -> tuple[Any, str | None]:
    """Run a job in a Ray worker, in the driver's working directory if it exists there."""
    with contextlib.suppress(OSError):
        os.chdir(directory)
    return run_job(job, lambda line: print(sanitize(line), file=sys.stderr, flush=True))


def record_outcome(outcomes: JobOutcomes, job: Job, result: Any, error: str | None, *, progress: Progress) -> None:
    """Keep the result or the failure of a job."""
    if error is None:
        outcomes.results[job.name] = result
    else:
        outcomes.failures[job.name] = error
        progress(f"{job.name}: {error}")


def run_compress(
    arguments: Sequence[str], progress: Progress, *, should_stop: Callable[[], bool] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:  # fmt: skip
    """Run a `compress` command as a process; return exit code and last line of stderr.

    The process receives SIGTERM, which makes it save its state and end, when `should_stop` returns True and when this
    call is interrupted.
    """
    command = child_command("compress", *arguments, str(os.getpid()), script=CHILD_SCRIPT)
    last_line = [""]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,  # Ctrl-C reaches only this process, which passes it on
        env={**os.environ, **(environment or {})},
    ) as process:  # fmt: skip
        try:  # at once, because leaving Popen waits for the process
            reader = threading.Thread(target=_relay_lines, args=(process, progress, last_line), daemon=True)
            reader.start()
            while True:
                try:
                    process.wait(POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    if should_stop is not None and should_stop():
                        process.terminate()
                        process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        reader.join()
    return process.returncode, last_line[0].removeprefix("Error: ")


def _relay_lines(process: subprocess.Popen[str], progress: Progress, last_line: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        progress(line.rstrip("\n"))
        last_line[0] = line.strip() or last_line[0]


def exit_reason(code: int, last_line: str) -> str:
    """Return why a process failed."""
    if code < 0:
        cause = ", possibly out of memory" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{cause}"
    return last_line or f"exit code {code}"


def wait_until_unlocked(lock: Path) -> None:
    """Wait until no process holds the lock of a run, such as an orphaned training.

    Raises:
        CompressError: the lock is still held after five minutes.
    """
    end = time.monotonic() + ORPHAN_S
    while is_locked(lock):
        if time.monotonic() > end:
            raise CompressError(f"{lock.parent}: process {lock.read_text().strip()} still runs there; end it.")
        time.sleep(POLL_S)
