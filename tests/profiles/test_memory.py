"""Resident memory, and the cost of loading."""

from __future__ import annotations

import subprocess
import sys

import pytest
from clockwork import Hands

from profiles.latency import memory
from profiles.latency.memory import load_and_first_call, peak_resident_memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its high-water mark")
def test_peak_sees_freed_memory() -> None:
    # In a process of its own: the kernel may reclaim pages of one that has run a thousand tests while it looks.
    script = (
        "from profiles.latency.memory import *; print(peak_resident_memory(lambda: bytearray(100_000_000).count(1)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "None" or 90e6 < int(found) < 200e6


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
    hands = Hands()

    def load():
        hands.pass_(2.0)
        return lambda seconds: hands.pass_(seconds)

    def example(_: object) -> float:
        hands.pass_(100.0)
        return 0.5

    found = load_and_first_call(load, example, peak=lambda call: call() or 77, clock=hands.clock)
    assert (found.load_ms, found.first_call_ms, found.peak_bytes, found.example) == (2000.0, 500.0, 77, 0.5)


def test_loading_errors_are_raised() -> None:
    def load() -> None:
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        load_and_first_call(load, lambda _: None)
