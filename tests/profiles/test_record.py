# ruff: noqa: E501 - records on one line
"""Records: written whole, read back equal, refused with a sentence where they are not what they should be."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest

from profiles.record import FILE, NoRecordError, Record, RecordError, join, read_records, write_records

FULL = Record(
    "Student <b>", "student", "kd", "wrn16_1", "classification", (32, 32), {"accuracy": 0.5, "f1": 0.25}, 10, 20, 3, 11,
    {"odd": 2}, 99, [{"latency_ms_p50": 1.5, "runtime": "torch", "threads": None}], {"opset": 18, "parity": {"images": 3}},
    {"steps": 7, "history": [{"step": 1, "seconds": 0.5, "accuracy": 0.1}]}, {"cores": 2}, {"python": "3.11"}, {"a": "b.png"},
)  # fmt: skip


def test_what_is_written_reads_back_equal(tmp_path: Path):
    write_records(tmp_path, [FULL, Record("bare")])
    assert read_records(tmp_path) == read_records(tmp_path / FILE) == [FULL, Record("bare")]
    content = json.loads((tmp_path / FILE).read_text())
    assert content["schema"] == 1
    assert set(content["records"][0]) == {one.name for one in dataclasses.fields(Record)}


def test_no_records_are_records_too(tmp_path: Path):
    write_records(tmp_path, [])
    assert read_records(tmp_path) == []


def test_numbers_that_json_does_not_have_and_paths_are_written_all_the_same(tmp_path: Path):
    odd = Record(
        "x", metrics={"accuracy": math.nan, "f1": 0.5}, export={"path": Path("a/b"), "parity": {"max_abs": math.inf}}
    )
    write_records(tmp_path, [odd])
    assert "NaN" not in (tmp_path / FILE).read_text()
    read = read_records(tmp_path)[0]
    assert read.metrics == {"f1": 0.5}
    assert read.export == {"path": "a/b", "parity": {"max_abs": None}}


def test_a_failed_writing_leaves_the_record_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_records(tmp_path, [FULL])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match="cannot be written \\(No space left"):
        write_records(tmp_path, [])
    assert read_records(tmp_path) == [FULL]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"file/sub/record\.json: cannot be written"):
        write_records(tmp_path / "file" / "sub", [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "damaged, not JSON"),
        ('{"schema": 1, "rec', "damaged, not JSON"),
        ("[" * 100_000, "damaged, not JSON"),
        ("\xff\xfe", "damaged, not JSON"),
        ("[]", "not a record: the whole"),
        ('{"schema": 2, "records": []}', "written by a newer version (schema 2, known up to 1); update."),
        ('{"schema": 1}', "not a record: records: "),
        ('{"schema": 1, "records": [{"name": "a", "role": "king"}]}', "not a record: records.0.role: "),
        ('{"schema": 1, "records": [{"name": "a", "macs": "many"}]}', "not a record: records.0.macs: "),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, content: str, said: str):
    (tmp_path / FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(RecordError) as caught:
        read_records(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_missing_record_is_a_wrong_request(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NoRecordError, match=r"no record\.json in it") as caught:
            read_records(folder)
        assert caught.value.exit_code == 2


def test_joined_runs_share_a_teacher_and_students_of_one_name_are_told_apart(tmp_path: Path):
    teacher = Record("T", "teacher", metrics={"accuracy": 0.9})
    timed = dataclasses.replace(teacher, latencies=[{"latency_ms_p50": 1.0}])
    student = Record("S", "student", metrics={"accuracy": 0.8}, run={"seed": 0}, pictures={"mosaics": "grid.png"})
    other = dataclasses.replace(student, run={"seed": 1})
    write_records(tmp_path / "one", [teacher, student])
    write_records(tmp_path / "two", [timed, other])
    records, pictures = join([tmp_path / "one", tmp_path / "two", tmp_path / "one"])
    assert [record.name for record in records] == ["T", "S (one)", "S (two)"]
    assert records[0].latencies == timed.latencies
    assert pictures == {"mosaics": tmp_path / "one" / "grid.png", "mosaics (two)": tmp_path / "two" / "grid.png"}
    assert join([tmp_path])[0] == records  # a folder of runs stands for the runs in it
