"""The child of `profiles.scenarios`: opens what is measured, and lets MLPerf's LoadGen ask it for answers.

An exception must not reach LoadGen, whose threads know none, and there is no way to end a test early: so the first
failure is written down and ends the process. All asks are for the candidate's own example, again and again; a query of
fewer images than it holds is answered by the whole of it.
"""

from __future__ import annotations

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

from profiles import machine
from profiles.conditions import busy, load
from profiles.latency import Candidate, Latency, once
from profiles.scenarios import ANSWER, PULSE, Rules, ScenarioError
from profiles.steady import WARMUP_S, Clock, Warmth, warm_up
from profiles.verdict import numbers, read_log

#: whose settings `--mlperf` takes: MLPerf's image classification
BENCHMARK = "resnet50"
#: images that LoadGen chooses from
IMAGES = 1024
#: of the speed in the warm-up: what Server asks for unless told, and by how much Offline may be faster than that
SHARE, MARGIN = 0.5, 1.3
#: seconds of work that may wait in Server
HOPELESS_S = 5.0


def main() -> None:
    """Do the order on standard input, and leave the answer in its folder."""
    order = json.loads(sys.stdin.buffer.read())
    folder = Path(order["folder"])
    threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()
    try:
        module, _, name = order["opening"]["function"].partition(":")
        candidate = getattr(importlib.import_module(module), name)(**order["opening"]["settings"])
        found = measured(candidate, Rules(**order["rules"]), folder, order["load_before"])
    except Exception as error:  # whatever it is, the parent says it in one sentence
        fail(folder, error)
    end(folder, asdict(found), 0)


def follow(parent: int) -> None:
    """End when the parent has: nobody would read the answer."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def fail(folder: Path, error: BaseException) -> NoReturn:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:300] if lines else "no message"
    ours = hasattr(error, "exit_code")  # speaks for itself
    end(folder, {"error": text if ours else f"what is measured failed ({type(error).__name__}: {text})"}, 1)


def end(folder: Path, answer: dict[str, Any], code: int) -> NoReturn:
    """Leave the answer, and the process at once: threads of LoadGen and of the runtime may still be about."""
    draft = folder / f"{ANSWER}.part"
    draft.write_text(json.dumps(answer))
    draft.replace(folder / ANSWER)
    os._exit(code)


class Answering:
    """Answers LoadGen's queries with the calls of a candidate."""

    def __init__(self, library: Any, candidate: Candidate[Any], folder: Path, *, offline: bool) -> None:
        self.library, self.candidate, self.folder, self.offline = library, candidate, folder, offline
        self.clock = Clock()
        self.seconds: list[float] = []  #: of each query; of each call, from the beginning on, where one query is all
        self.waiting: queue.SimpleQueue[tuple[float, Any]] = queue.SimpleQueue()
        self.beat = 0.0

    def now(self, samples: list[Any]) -> None:
        """Answer a query at once, in the thread that asks."""
        start, size = self.clock.now(), self.candidate.batch_size
        for i in range(0, len(samples), size):
            last = i + size >= len(samples)
            self.call(samples[i : i + size], [start] if last or self.offline else [])

    def later(self, samples: list[Any]) -> None:
        for sample in samples:
            self.waiting.put((self.clock.now(), sample))

    def serve(self) -> None:
        """Answer what waits, as many at once as the candidate takes, for ever."""
        while True:
            batch = [self.waiting.get()]
            while len(batch) < self.candidate.batch_size and not self.waiting.empty():
                batch.append(self.waiting.get())
            self.call([sample for _, sample in batch], [since for since, _ in batch])

    def call(self, samples: list[Any], since: list[float]) -> None:
        """Answer `samples` with one call; the queries that began at `since` are done by it."""
        try:
            once(self.candidate, self.clock)
            now = self.clock.now()
            self.seconds += [now - start for start in since]
            respond = self.library.QuerySampleResponse
            self.library.QuerySamplesComplete([respond(sample.id, 0, 0) for sample in samples])
            if now - self.beat > 1:
                self.beat = now
                (self.folder / PULSE).touch()
        except BaseException as error:  # the thread is LoadGen's
            fail(self.folder, error)


def measured(candidate: Candidate[Any], rules: Rules, folder: Path, load_before: float | None) -> Latency:
    """Warm up, play, and read what LoadGen says of it."""
    if rules.scenario == "SingleStream" and candidate.batch_size != 1:
        raise ScenarioError(f"SingleStream asks for one image at a time, found a batch of {candidate.batch_size}.")
    import mlperf_loadgen as library

    clock = Clock()
    limit = max(WARMUP_S, min(rules.duration_s, 3.0))
    warmth = warm_up(partial(once, candidate, clock), least_s=WARMUP_S, limit_s=limit, clock=clock)
    settings = settings_of(library, rules, candidate.batch_size, warmth, folder)
    answering = Answering(library, candidate, folder, offline=rules.scenario == "Offline")
    issue: Callable[[list[Any]], None] = answering.now
    if rules.scenario == "Server":
        issue = answering.later
        threading.Thread(target=answering.serve, daemon=True).start()
    run(library, issue, settings, folder)
    found = read_log(folder, rules.scenario)
    server = rules.scenario == "Server"
    latency = Latency(
        **numbers(found, rules.scenario, samples=settings.multi_stream_samples_per_query),
        latency_ms_std=1e3 * statistics.pstdev(answering.seconds),
        batch_size=candidate.batch_size,
        threads=candidate.threads,
        runtime=candidate.runtime,
        device=candidate.device,
        precision=candidate.precision,
        load_before=load_before,
        load_after=load(),
        scenario=rules.scenario,
        submission_length=rules.mlperf,
        target_qps=settings.server_target_qps if server else None,
        latency_bound_ms=settings.server_target_latency_ns / 1e6 if server else None,
    )
    return surrounded(latency, candidate, warmth)


def surrounded(latency: Latency, candidate: Candidate[Any], warmth: Warmth) -> Latency:
    """The same with where it ran and how it began. The spread of a queue says nothing of the machine."""
    calm = latency.scenario == "SingleStream"
    return replace(
        latency,
        machine=machine.short_name(candidate.device, candidate.gpu),
        first_ms=candidate.first_ms,
        load_ms=candidate.load_ms,
        peak_bytes=candidate.peak_bytes,
        warmup_runs=warmth.runs,
        settled=warmth.settled,
        clock_mhz=machine.clock_mhz(candidate.device, candidate.gpu),
        governor=None if machine.on_gpu(candidate.device) else machine.governor(),
        busy=busy(
            before=latency.load_before,
            after=latency.load_after,
            cores=machine.cores(),
            threads=candidate.threads,
            p50=latency.latency_ms_p50 if calm else None,
            p90=latency.latency_ms_p90 if calm else None,
        ),
    )


def settings_of(library: Any, rules: Rules, batch: int, warmth: Warmth, folder: Path) -> Any:
    """MLPerf's settings, and the speed that LoadGen plans by. Shorter where no submission is meant."""
    settings = library.TestSettings()
    settings.scenario = getattr(library.TestScenario, rules.scenario)
    settings.mode = library.TestMode.PerformanceOnly
    (folder / "user.conf").write_text("")  # of the user's own there are none; with it come MLPerf's
    settings.FromConfig(str(folder / "user.conf"), BENCHMARK, rules.scenario, 1)
    speed = batch / warmth.typical_s
    # of these LoadGen makes its queries before it begins: rather too many than too few
    settings.single_stream_expected_latency_ns = 1e9 * warmth.typical_s / 2
    calls = -(-settings.multi_stream_samples_per_query // batch)
    settings.multi_stream_expected_latency_ns = 1e9 * warmth.typical_s * calls / 2
    settings.offline_expected_qps = MARGIN * speed
    settings.server_target_qps = SHARE * speed if rules.target_qps is None else rules.target_qps
    if rules.latency_bound_ms is not None:
        settings.server_target_latency_ns = round(1e6 * rules.latency_bound_ms)
    # what waits longer has missed any bound: LoadGen then ends early instead of waiting until all of it is answered
    queue_s = max(HOPELESS_S, 2 * settings.server_target_latency_ns / 1e9)
    settings.server_max_async_queries = max(100, round(queue_s * speed))
    if not rules.mlperf:
        settings.min_duration_ms, settings.min_query_count = max(1, round(1e3 * rules.duration_s)), 1
    return settings


def run(library: Any, issue: Callable[[list[Any]], None], settings: Any, folder: Path) -> None:
    """Play the test; its logs go to the folder."""
    logs = library.LogSettings()
    logs.enable_trace = False
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False
    system = library.ConstructSUT(issue, nothing)
    images = library.ConstructQSL(IMAGES, IMAGES, nothing, nothing)
    # of an audit only the folder's own settings, and there are none: one that lies about must not be taken
    library.StartTestWithLogSettings(system, images, settings, logs, str(folder / "audit.config"))


def nothing(*_: Any) -> None:
    """LoadGen asks for images to be loaded and queues to be flushed: they are there, and there is none."""
