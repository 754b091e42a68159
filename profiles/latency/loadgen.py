"""The child process of `profiles.latency.scenarios`: creates a candidate and runs MLPerf's LoadGen on it.

LoadGen's threads cannot handle exceptions, and a test cannot be ended early. So the first failure is written to the
reply and ends the process. Every query is served with the candidate's own example, even one of fewer images.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from compress.errors import CompressError
from compress.resources import usable_cores
from profiles.latency import machine
from profiles.latency.benchmark import Candidate, Latency, time_call, with_environment
from profiles.latency.scenarios import HEARTBEAT, REPLY, ScenarioError, ScenarioSettings
from profiles.latency.warmup import WARMUP_S, Clock, WarmupResult, warm_up

#: MLPerf's benchmark whose settings `--mlperf` uses: image classification
BENCHMARK = "resnet50"
#: number of images in LoadGen's library
IMAGES = 1024
#: share of the warm-up's speed that Server requests by default; factor by which Offline may be faster than it
SERVER_LOAD_SHARE, OFFLINE_MARGIN = 0.5, 1.3
#: maximum seconds of work in the queue of Server
MAX_QUEUE_S = 5.0
#: LoadGen's log, and the prefix of its JSON lines
LOG, LOG_PREFIX = "mlperf_log_detail.txt", ":::MLLOG"
#: scenario -> infix before "_latency_ns" in the keys of percentiles
PERCENTILE_INFIX = {"MultiStream": "_per_query"}
#: LoadGen's check -> description of its failure
CHECKS = {
    "result_perf_constraints_met": "too many queries exceeded the latency bound",
    "result_min_duration_met": "it ended before its minimum duration",
    "result_min_queries_met": "it had fewer queries than required",
}


def main() -> None:
    """Run the order on standard input and write the reply into its directory."""
    order = json.loads(sys.stdin.buffer.read())
    folder = Path(order["folder"])
    threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        module, _, name = order["spec"]["function"].partition(":")
        candidate = getattr(importlib.import_module(module), name)(**order["spec"]["arguments"])
        latency = measure_scenario(candidate, ScenarioSettings(**order["settings"]), folder, order["load_before"])
    except Exception as error:  # the parent reports any failure in one sentence
        report_failure(folder, error)
    write_reply_and_exit(folder, {"latency": asdict(latency)}, 0)


def exit_with_parent(parent: int) -> None:
    """Exit when the parent has ended, because only the parent reads the reply."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def report_failure(folder: Path, error: BaseException) -> NoReturn:
    """Write an error as the reply and exit."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:300] if lines else "no message"
    is_expected = isinstance(error, CompressError)  # its message is complete
    reply = {"error": text if is_expected else f"the model failed ({type(error).__name__}: {text})"}
    write_reply_and_exit(folder, reply, 1)


def write_reply_and_exit(folder: Path, reply: dict[str, Any], code: int) -> NoReturn:
    """Write the reply and exit at once: threads of LoadGen and of the runtime may still run."""
    draft = folder / f"{REPLY}.part"
    draft.write_text(json.dumps(reply))
    draft.replace(folder / REPLY)
    os._exit(code)


class SystemUnderTest:
    """Serves LoadGen's queries with calls of a candidate."""

    def __init__(self, library: Any, candidate: Candidate[Any], folder: Path, *, offline: bool) -> None:
        self.library, self.candidate, self.folder, self.offline = library, candidate, folder, offline
        self.clock = Clock()
        self.seconds: list[float] = []  #: of each query; of each call since the start if one query is all
        self.waiting: queue.SimpleQueue[tuple[float, Any]] = queue.SimpleQueue()
        self.last_heartbeat = 0.0

    def run_query(self, samples: list[Any]) -> None:
        """Run a query at once, in LoadGen's thread."""
        start, size = self.clock.now(), self.candidate.batch_size
        for i in range(0, len(samples), size):
            last = i + size >= len(samples)
            self.run_batch(samples[i : i + size], [start] if last or self.offline else [])

    def enqueue_query(self, samples: list[Any]) -> None:
        for sample in samples:
            self.waiting.put((self.clock.now(), sample))

    def process_queue(self) -> None:
        """Run queued samples forever, up to the batch size at once."""
        while True:
            batch = [self.waiting.get()]
            while len(batch) < self.candidate.batch_size and not self.waiting.empty():
                batch.append(self.waiting.get())
            self.run_batch([sample for _, sample in batch], [start for start, _ in batch])

    def run_batch(self, samples: list[Any], starts: list[float]) -> None:
        """Complete `samples` with one call, which completes the queries that began at `starts`."""
        try:
            time_call(self.candidate, self.clock)
            now = self.clock.now()
            self.seconds += [now - start for start in starts]
            response = self.library.QuerySampleResponse
            self.library.QuerySamplesComplete([response(sample.id, 0, 0) for sample in samples])
            if now - self.last_heartbeat > 1:
                self.last_heartbeat = now
                (self.folder / HEARTBEAT).touch()
        except BaseException as error:  # the thread is LoadGen's
            report_failure(self.folder, error)


def measure_scenario(
    candidate: Candidate[Any], settings: ScenarioSettings, folder: Path, load_before: float | None
) -> Latency:
    """Warm up, run LoadGen, and read its log."""
    scenario = settings.scenario
    if scenario == "SingleStream" and candidate.batch_size != 1:
        raise ScenarioError(f"found a batch of {candidate.batch_size}, expected 1 for SingleStream.")
    import mlperf_loadgen as library

    clock = Clock()
    limit = max(WARMUP_S, min(settings.duration_s, 3.0))
    warmup = warm_up(partial(time_call, candidate, clock), least_s=WARMUP_S, limit_s=limit, clock=clock)
    test = create_settings(library, settings, candidate.batch_size, warmup, folder)
    system = SystemUnderTest(library, candidate, folder, offline=scenario == "Offline")
    issue: Callable[[list[Any]], None] = system.run_query
    if scenario == "Server":
        issue = system.enqueue_query
        threading.Thread(target=system.process_queue, daemon=True).start()
    run_test(library, issue, test, folder)
    log = parse_log(folder, scenario)
    is_server = scenario == "Server"
    latency = Latency(
        **latency_fields(log, scenario, samples=test.multi_stream_samples_per_query),
        latency_ms_std=1e3 * statistics.pstdev(system.seconds),
        batch_size=candidate.batch_size,
        threads=candidate.threads,
        runtime=candidate.runtime,
        device=candidate.device,
        precision=candidate.precision,
        load_before=load_before,
        load_after=machine.system_load(),
        scenario=scenario,
        submission_length=settings.mlperf,
        target_qps=test.server_target_qps if is_server else None,
        latency_bound_ms=test.server_target_latency_ns / 1e6 if is_server else None,
        clock_mhz=machine.clock_mhz(candidate.device, candidate.gpu),
    )
    has_queue = scenario != "SingleStream"  # the spread of a queue does not indicate other load
    warning = machine.load_warning(
        before=latency.load_before,
        after=latency.load_after,
        cores=usable_cores(),
        threads=candidate.threads,
        p50=None if has_queue else latency.latency_ms_p50,
        p90=None if has_queue else latency.latency_ms_p90,
    )
    return replace(with_environment(latency, candidate, warmup), load_warning=warning)


def create_settings(
    library: Any, settings: ScenarioSettings, batch_size: int, warmup: WarmupResult, folder: Path
) -> Any:
    """Create MLPerf's settings and the speed by which LoadGen plans; shorter unless a submission is meant."""
    test = library.TestSettings()
    test.scenario = getattr(library.TestScenario, settings.scenario)
    test.mode = library.TestMode.PerformanceOnly
    (folder / "user.conf").write_text("")  # an empty user configuration makes LoadGen load MLPerf's
    test.FromConfig(str(folder / "user.conf"), BENCHMARK, settings.scenario, 1)
    speed = batch_size / warmup.median_s
    # LoadGen creates its queries in advance from these: rather too many than too few
    test.single_stream_expected_latency_ns = 1e9 * warmup.median_s / 2
    calls = -(-test.multi_stream_samples_per_query // batch_size)
    test.multi_stream_expected_latency_ns = 1e9 * warmup.median_s * calls / 2
    test.offline_expected_qps = OFFLINE_MARGIN * speed
    test.server_target_qps = SERVER_LOAD_SHARE * speed if settings.target_qps is None else settings.target_qps
    if settings.latency_bound_ms is not None:
        test.server_target_latency_ns = round(1e6 * settings.latency_bound_ms)
    # a query that waits longer has missed any bound: LoadGen then ends early instead of completing all of them
    queue_s = max(MAX_QUEUE_S, 2 * test.server_target_latency_ns / 1e9)
    test.server_max_async_queries = max(100, round(queue_s * speed))
    if not settings.mlperf:
        test.min_duration_ms, test.min_query_count = max(1, round(1e3 * settings.duration_s)), 1
    return test


def run_test(library: Any, issue: Callable[[list[Any]], None], settings: Any, folder: Path) -> None:
    """Run the test; its logs are written to `folder`."""
    logs = library.LogSettings()
    logs.enable_trace = False
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False
    system = library.ConstructSUT(issue, do_nothing)
    images = library.ConstructQSL(IMAGES, IMAGES, do_nothing, do_nothing)
    # an audit.config in the current directory must not be used, so name one that does not exist
    library.StartTestWithLogSettings(system, images, settings, logs, str(folder / "audit.config"))


def do_nothing(*_: Any) -> None:
    """LoadGen's callbacks to load images and flush queues: the images are loaded, and there is no queue."""


def parse_log(folder: Path, scenario: str) -> dict[str, Any]:
    """Return the keys and values of LoadGen's detailed log. Raises ScenarioError if it has no result."""
    log: dict[str, Any] = {}
    path = folder / LOG
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        if line.startswith(LOG_PREFIX):
            with contextlib.suppress(ValueError, LookupError, TypeError):  # a line that another thread has interrupted
                entry = json.loads(line.removeprefix(LOG_PREFIX))
                log[entry["key"]] = entry["value"]
    if "result_validity" not in log:
        why = next((str(log[key]) for key in log if key.startswith("error_")), "its log has no verdict")
        raise ScenarioError(f"LoadGen has no result for {scenario} ({why}).")
    return log


def latency_fields(log: dict[str, Any], scenario: str, *, samples: int = 8) -> dict[str, Any]:
    """Return the fields of Latency that the log has. `samples`: images per query of MultiStream."""
    infix = PERCENTILE_INFIX.get(scenario, "")
    tails = {p: log[f"result_{p}.00_percentile{infix}_latency_ns"] / 1e6 for p in (50, 90, 99)}
    mean = log["result_mean_query_latency_ns" if infix else "result_mean_latency_ns"] / 1e6
    speeds = {
        "SingleStream": lambda: log["result_qps_with_loadgen_overhead"],
        "MultiStream": lambda: 1e3 * samples / mean,
        "Offline": lambda: log["result_samples_per_second"],
        "Server": lambda: log["result_completed_samples_per_sec"],
    }
    return {
        "latency_ms_p50": tails[50],
        "latency_ms_p90": tails[90],
        "latency_ms_p99": tails[99],
        "latency_ms_mean": mean,
        "throughput_ips": float(speeds[scenario]()),
        "runs": int(log["result_query_count"]),
        "valid": log["result_validity"] == "VALID",
        "invalid_reason": invalid_reason(log),
    }


def invalid_reason(log: dict[str, Any]) -> str:
    """Return why LoadGen calls the result invalid; empty if it is valid."""
    if log["result_validity"] == "VALID":
        return ""
    failed = [text for key, text in CHECKS.items() if log.get(key) is False]
    if log.get("early_stopping_met") is False:
        details = " ".join(str(log.get("early_stopping_result", "")).replace("*", " ").split())
        failed.append(f"too few queries for a reliable percentile ({details.rstrip('.')})")
    return "; ".join(failed) or str(log.get("result_invalid_reason") or "LoadGen gives no reason")
