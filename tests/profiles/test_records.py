# ruff: noqa: E501 - records on one line
"""Records: lines that are only ever added, read back equal, refused with a sentence where they are not what they should be."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from profiles.latency.benchmark import Latency
from profiles.records import (
    FILE,
    SCHEMA,
    NoRecordError,
    Record,
    RecordError,
    append_records,
    has_records,
    merge_lines,
    read_measurements,
    read_records,
    record_schema,
)  # fmt: skip

SOME: dict[str, Any] = {
    "latency_ms_p50": 1.5, "latency_ms_p90": 2.0, "latency_ms_p99": 3.0, "latency_ms_mean": 1.6, "latency_ms_std": 0.1,
    "throughput_ips": 600.0, "batch_size": 1, "runs": 10, "threads": None, "runtime": "torch", "device": "cpu",
    "precision": "fp32", "load_before": None, "load_after": 0.5,
}  # fmt: skip
FULL = Record(
    "Student <b>", "student", "kd", "wrn16_1", "classification", (32, 32), "onnx", "int8", {"accuracy": 0.5, "f1": 0.25}, 10, 20, 3, 4, 11,
    {"odd": 2}, 99, [Latency(**SOME)], {"opset": 18, "parity": {"images": 3}},
    {"steps": 7, "seed": 0, "history": [{"step": 1, "seconds": 0.5, "accuracy": 0.1}]}, {"cores": 2}, {"python": "3.11"}, {"a": "b.png"}, "2026-01-01T00:00:00+00:00",
)  # fmt: skip


def test_records_read_back_equal(tmp_path: Path):
    append_records(tmp_path, [FULL, Record("bare", at="then")])
    assert read_records(tmp_path) == read_records(tmp_path / FILE) == [FULL, Record("bare", at="then")]
    first = json.loads((tmp_path / FILE).read_text().splitlines()[0])
    assert set(first) == {one.name for one in dataclasses.fields(Record)} | {"schema"}
    assert first["schema"] == SCHEMA == 2


def test_measurements_are_appended(tmp_path: Path):
    append_records(tmp_path, [Record("a", macs=1)])
    before = (tmp_path / FILE).read_bytes()
    append_records(tmp_path, [Record("a", params=2)])
    after = (tmp_path / FILE).read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == 2
    assert all(line.at.endswith("+00:00") for line in read_measurements(tmp_path))


def test_later_line_wins(tmp_path: Path):
    slow, fast = Latency(**SOME), Latency(**SOME | {"latency_ms_p50": 1.0})
    elsewhere = Latency(**SOME | {"machine": "a board"})
    append_records(tmp_path, [Record("a", metrics={"accuracy": 0.1, "f1": 0.3}, macs=5, run={"seed": 0, "steps": 3})])
    append_records(tmp_path, [Record("a", latencies=[slow], run={"seed": 0})])
    append_records(tmp_path, [Record("a", metrics={"accuracy": 0.2}, latencies=[fast, elsewhere], run={"seed": 0})])
    (result,) = read_records(tmp_path)
    assert result.metrics == {"accuracy": 0.2, "f1": 0.3}
    assert (result.macs, result.run["steps"]) == (5, 3)
    assert result.latencies == [fast, elsewhere]


def test_forms_and_seeds_are_separate():
    lines = [
        Record("a"), Record("a", format="onnx"), Record("a", format="onnx", precision="int8"), Record("a", "teacher"),
        Record("a", run={"seed": 1}), Record("a", method="kd"),
    ]  # fmt: skip
    assert merge_lines([*lines, *lines]) == lines


def test_default_keeps_earlier_task():
    (result,) = merge_lines([Record("a", task="segmentation"), Record("a", macs=3)])
    assert (result.task, result.macs) == ("segmentation", 3)


def test_partial_line_is_ignored(tmp_path: Path):
    append_records(tmp_path, [FULL])
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"schema": 2, "name": "cut o')
    assert read_records(tmp_path) == [FULL]
    append_records(tmp_path, [Record("next")])
    assert [record.name for record in read_records(tmp_path)] == [FULL.name, "next"]


def append_some(folder: Path, name: str) -> None:
    for i in range(20):
        append_records(folder, [Record(f"{name}{i}", run={"text": "x" * 10_000})])


def test_concurrent_writers_lose_nothing(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=append_some, args=(tmp_path, name)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {record.name for record in read_records(tmp_path)} == {f"{name}{i}" for name in "abc" for i in range(20)}


def test_unusual_values_are_written(tmp_path: Path):
    odd = Record(
        "x", metrics={"accuracy": math.nan, "f1": 0.5}, export={"path": Path("a/b"), "parity": {"max_abs": math.inf}}
    )
    append_records(tmp_path, [odd])
    assert "NaN" not in (tmp_path / FILE).read_text()
    read = read_records(tmp_path)[0]
    assert read.metrics == {"f1": 0.5}
    assert read.export == {"path": "a/b", "parity": {"max_abs": None}}


def test_failed_write_keeps_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    append_records(tmp_path, [FULL])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match="cannot be written"):
        append_records(tmp_path, [Record("more")])
    assert read_records(tmp_path) == [FULL]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_unwritable_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"file/sub/records\.jsonl: cannot be written"):
        append_records(tmp_path / "file" / "sub", [])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"schema": 2, "rec\n', "line 1: damaged, not JSON"),
        ("[" * 100_000 + "\n", "line 1: damaged, not JSON"),
        ("\xff\xfe\n", "line 1: damaged, not JSON"),
        ("[]\n", "line 1: found no object"),
        ('{"schema": 2, "name": "a"}\n{"schema": 3}\n', "found schema 3, expected 2"),
        ('{"schema": 2}\n', "line 1: not a record: name: "),
        ('{"schema": 2, "name": "a", "role": "king"}\n', "line 1: not a record: role: "),
        ('{"schema": 2, "name": "a", "macs": "many"}\n', "line 1: not a record: macs: "),
        ('{"schema": 2, "name": "a", "latencies": [{"latency_ms_p50": 1}]}\n', "line 1: not a record: latencies.0.latency_ms_p90: "),
    ],
)  # fmt: skip
def test_invalid_line_is_refused(tmp_path: Path, content: str, text: str):
    (tmp_path / FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(RecordError) as caught:
        read_records(tmp_path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_missing_records_are_a_usage_error(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NoRecordError, match=r"no records\.jsonl") as caught:
            read_records(folder)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", [b"", b"\n", b'{"schema": 2, "na'])
def test_file_without_record_is_no_finished_run(tmp_path: Path, content: bytes):
    """A killed process can leave such a file; the next one writes the records."""
    (tmp_path / FILE).write_bytes(content)
    assert not has_records(tmp_path) or content == b"\n"
    with pytest.raises(NoRecordError):
        read_records(tmp_path)
    append_records(tmp_path, [FULL])
    assert has_records(tmp_path)
    assert read_records(tmp_path) == [FULL]


def test_published_schema_is_current():
    """Write it with `python -m profiles.records > docs/record.schema.json`."""
    published = Path(__file__).parents[2] / "docs" / "record.schema.json"
    assert json.loads(published.read_text()) == record_schema()
