"""Resident memory, and the cost of loading."""

from __future__ import annotations

import subprocess
import sys

import pytest
from clockwork import ManualClock

from profiles.latency import memory
from profiles.latency.memory import load_and_first_call, peak_resident_memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its high-water mark")
def test_peak_sees_freed_memory() -> None:
    # In a process of its own: the kernel may reclaim pages of one that has run a thousand tests while it looks.
    script = (
        "from profiles.latency.memory import *; print(peak_resident_memory(lambda: bytearray(100_000_000).count(1)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert result == "None" or 90e6 < int(result) < 200e6


def test_unmeasurable_call_still_runs(monkeypatch, tmp_path) -> None:
    ran = []
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "gone" / "clear_refs")
    assert peak_resident_memory(lambda: ran.append(1)) is None
    assert ran == [1]

    def full() -> None:
        raise OSError("the disk is full")

    for where in (tmp_path / "gone" / "clear_refs", tmp_path / "clear_refs"):
        monkeypatch.setattr(memory, "CLEAR_REFS", where)
        with pytest.raises(OSError, match="full"):
            peak_resident_memory(full)


def test_loading_and_first_call_are_timed() -> None:
    timer = ManualClock()

    def load():
        timer.pass_(2.0)
        return lambda seconds: timer.pass_(seconds)

    def example(_: object) -> float:
        timer.pass_(100.0)
        return 0.5

    result = load_and_first_call(load, example, peak=lambda call: call() or 77, clock=timer.clock)
    assert (result.load_ms, result.first_call_ms, result.peak_bytes, result.example) == (2000.0, 500.0, 77, 0.5)


def test_loading_errors_are_raised() -> None:
    def load() -> None:
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        load_and_first_call(load, lambda _: None)
