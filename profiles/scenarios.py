"""MLPerf's scenarios, played by its own LoadGen, each in a process of its own, with its verdict.

LoadGen keeps state for the whole process (its settings are read once), calls back from threads of its own, and cannot
be stopped: so what it measures is opened in a child, which may hang or die without harm to us.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from profiles.latency import Latency

Scenario = Literal["SingleStream", "MultiStream", "Offline", "Server"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
#: seconds, if neither a duration nor MLPerf's is asked for: LoadGen's own default
DURATION_S = 10.0
#: seconds without a single answer after which the child is given up; a network may be compiled before its first one
PATIENCE_S = 600.0
#: files in the folder that child and parent share
ANSWER, PULSE, SAID = "answer.json", "pulse", "said.txt"
#: started without the current folder on its path, where anything may lie
CHILD = "import sys; sys.path.pop(0); from profiles.loadgen import main; main()"


class ScenarioError(Exception):
    """A scenario that could not be played, in one sentence."""

    exit_code = 1


@dataclass(frozen=True)
class Opening:
    """How a process of its own comes by what it measures."""

    function: str  #: "package.module:name"; called with `settings`, answers with a Candidate
    settings: dict[str, Any] = field(default_factory=dict)  #: what JSON can hold


@dataclass(frozen=True)
class Rules:
    """How LoadGen plays."""

    scenario: Scenario
    duration_s: float = DURATION_S  #: at least; without meaning under `mlperf`
    mlperf: bool = False  #: MLPerf's own settings for image classification: 600 s, and its least numbers of queries
    target_qps: float | None = None  #: images a second in Server; None: half of what the warm-up came to
    latency_bound_ms: float | None = None  #: of Server; None: MLPerf's 15 ms


def play(
    opening: Opening, rules: Rules, *, load_before: float | None = None, patience_s: float = PATIENCE_S
) -> Latency:
    """Open and measure in a process of its own. `load_before`: of the machine, before any of our work.

    Percentiles and verdict are read from LoadGen's log. For SingleStream and Server they are of one image, for
    MultiStream of a query of eight, for Offline of an image since the beginning of the whole, which only says how long
    that was: its number is `throughput_ips`. Raises ScenarioError where LoadGen is not installed, and where what it
    measures fails, dies, or does not answer for `patience_s` seconds.
    """
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise ScenarioError(
            f"{rules.scenario} is played by MLPerf's LoadGen, which is not installed; install it with: "
            'pip install "compress[loadgen]", or take --scenario quick.'
        )
    with tempfile.TemporaryDirectory(prefix="loadgen-") as place:
        folder = Path(place)
        order = {"opening": asdict(opening), "rules": asdict(rules), "folder": place, "load_before": load_before}
        code = watched(order, folder, patience_s)
        try:
            answer = json.loads((folder / ANSWER).read_text())
        except (OSError, ValueError) as error:
            raise ScenarioError(f"{rules.scenario}: {death(code, folder)}.") from error
    if "error" in answer:
        said = answer["error"].removeprefix(f"{rules.scenario}: ").rstrip(".")
        raise ScenarioError(f"{rules.scenario}: {said}.")
    return Latency(**answer)


def watched(order: dict[str, Any], folder: Path, patience_s: float) -> int:
    """Exit code of the child, once it has ended. Raises ScenarioError if it no longer answers."""
    here = [path or os.getcwd() for path in sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(here)}
    with (folder / SAID).open("wb") as said:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment
        )
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps(order).encode())
        child.stdin.close()
    try:
        patient(child, lambda: modified(folder / PULSE), patience_s)
    finally:
        child.kill()
        child.wait()
    return child.returncode


def patient(child: subprocess.Popen[bytes], pulse: Callable[[], float], patience_s: float) -> None:
    """Wait for the child, as long as its pulse goes on. Raises ScenarioError if that stops."""
    last, since = pulse(), time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
            return
        now = pulse()
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > patience_s:
            raise ScenarioError(f"what is measured gave no answer for {patience_s:.0f} s, so it was ended.")


def modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def death(code: int, folder: Path) -> str:
    """Why a child ended without an answer."""
    lines = [line.strip() for line in (folder / SAID).read_text(errors="replace").splitlines() if line.strip()]
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"the process that LoadGen measured ended {how} ({lines[-1][:200] if lines else 'without a word'})"
