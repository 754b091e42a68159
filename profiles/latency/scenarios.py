"""MLPerf scenarios, run by MLPerf's LoadGen in a child process.

LoadGen keeps global state (its settings are read once), calls back from its own threads, and cannot be stopped. A child
process may hang or crash without harm to this one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from compress.errors import CompressError
from compress.files import sanitize
from compress.plugins import child_path
from profiles.latency.benchmark import Latency

Scenario = Literal["SingleStream", "MultiStream", "Offline", "Server"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
#: default duration in seconds, as in LoadGen
DURATION_S = 10.0
#: seconds without a completed query after which the child is killed; a network may be compiled before the first one
TIMEOUT_S = 600.0
#: files in the directory that child and parent share
REPLY, HEARTBEAT, OUTPUT = "reply.json", "heartbeat", "output.txt"
#: bytes at the end of the output that are read for its last line
MAX_TAIL = 2**14
#: started without the current directory on its path, because that may hold any file
CHILD = "import sys; sys.path[:] = sys.argv[1:]; from profiles.latency.loadgen import main; main()"


class ScenarioError(CompressError):
    """A scenario that could not be run."""


@dataclass(frozen=True)
class CandidateSpec:
    """How another process creates a candidate."""

    function: str  #: "package.module:name"; called with `arguments`, returns a Candidate
    arguments: dict[str, Any] = field(default_factory=dict)  #: JSON values


@dataclass(frozen=True)
class ScenarioSettings:
    """Settings of LoadGen."""

    scenario: Scenario
    duration_s: float = DURATION_S  #: minimum; ignored with `mlperf`
    mlperf: bool = False  #: MLPerf's settings for image classification: 600 s and its minimum numbers of queries
    target_qps: float | None = None  #: images per second in Server; None: half of the speed in the warm-up
    latency_bound_ms: float | None = None  #: in Server; None: MLPerf's 15 ms


def run_scenario(
    spec: CandidateSpec,
    settings: ScenarioSettings,
    *,
    load_before: float | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Latency:
    """Run one scenario in a child process.

    Percentiles and verdict are read from LoadGen's log. In SingleStream and Server they are for one image, in
    MultiStream for a query of eight. In Offline they are for an image since the start of the run, so only
    `throughput_ips` is meaningful.

    Args:
        spec: How the child creates the candidate.
        settings: Scenario and its settings.
        load_before: Load average of the machine before any of our work.
        timeout_s: Seconds without a completed query after which the child is killed.

    Returns:
        Latency with LoadGen's verdict.

    Raises:
        ScenarioError: LoadGen is not installed, or the candidate fails, crashes or hangs.
    """
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise ScenarioError(
            f"{settings.scenario}: found no LoadGen, expected the package mlcommons-loadgen; install the extra "
            "`loadgen`, or use --scenario quick."
        )
    with tempfile.TemporaryDirectory(prefix="loadgen-", ignore_cleanup_errors=True) as directory:
        folder = Path(directory)
        order = {"spec": asdict(spec), "settings": asdict(settings), "folder": directory, "load_before": load_before}
        code = run_child(order, folder, timeout_s)
        try:
            reply = json.loads((folder / REPLY).read_text())
        except (OSError, ValueError) as error:
            raise ScenarioError(f"{settings.scenario}: {describe_exit(code, folder)}.") from error
    if "error" in reply:
        raise ScenarioError(f"{settings.scenario}: {reply['error'].rstrip('.')}.")
    return Latency(**reply["latency"])


def run_child(order: dict[str, Any], folder: Path, timeout_s: float) -> int:
    """Run the child and return its exit code. Raises ScenarioError if it hangs."""
    with (folder / OUTPUT).open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, *child_path()], stdin=subprocess.PIPE, stdout=output, stderr=output
        )
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps(order).encode())
        child.stdin.close()
    try:
        wait_for_child(child, lambda: modification_time(folder / HEARTBEAT), timeout_s)
    finally:
        child.kill()
        child.wait()
    return child.returncode


def wait_for_child(child: subprocess.Popen[bytes], heartbeat: Callable[[], float], timeout_s: float) -> None:
    """Wait while the heartbeat advances. Raises ScenarioError if it stops for `timeout_s`."""
    last, since = heartbeat(), time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
            return
        now = heartbeat()
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > timeout_s:
            raise ScenarioError(f"the model completed no query for {timeout_s:.0f} s, so its process was killed.")


def modification_time(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def describe_exit(code: int, folder: Path) -> str:
    """Describe how a child ended without a reply."""
    with (folder / OUTPUT).open("rb") as file:
        file.seek(max(0, (folder / OUTPUT).stat().st_size - MAX_TAIL))
        text = file.read().decode(errors="replace")
    lines = [sanitize(line).strip() for line in text.splitlines() if line.strip()]
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"the process of the model ended {how} ({lines[-1][:200] if lines else 'without any output'})"
