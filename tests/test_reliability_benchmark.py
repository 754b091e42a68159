"""The benchmark of faults counts what happens, sees what it must see, and continues when it was interrupted."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import result_files
from benchmarks.reliability import __main__ as program
from benchmarks.reliability import damaged, fuzzing, hostile_weights
from benchmarks.reliability.counts import Counts, Scale
from benchmarks.reliability.isolated import Outcome, call_isolated, expect_refusal, expect_same
from benchmarks.result_files import ResultFile
from compress.errors import UsageError

ROOT = Path(__file__).parents[1]


def refuse() -> None:
    raise UsageError("x: found y, expected z.")


def crash() -> None:
    raise ZeroDivisionError


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("function", "kind"),
    [(os.getpid, "returned"), (refuse, "refused"), (crash, "internal"), (die, "died"), (time.sleep, "hung")],
)
def test_end_of_a_call_is_seen(function, kind):
    arguments = (60,) if kind == "hung" else ()
    assert call_isolated(function, *arguments, seconds=0.2 if kind == "hung" else 60).kind == kind


def test_memory_of_a_call_is_limited_and_measured():
    outcome = call_isolated(lambda n: len(bytearray(n)), 50 << 20)
    assert outcome.value == 50 << 20
    assert outcome.peak_bytes > 40 << 20
    assert call_isolated(lambda: len(bytearray(1 << 30)), address_space=100 << 20).kind == "internal"


def test_outcomes_are_counted(tmp_path):
    counts = Counts()
    tripwire = tmp_path / "TRIPWIRE"
    for outcome in (Outcome("refused"), Outcome("returned", {"exit_code": 2}), Outcome("returned", {"exit_code": 0})):
        expect_refusal(counts, "a", outcome, "a file", tripwire)
    tripwire.mkdir()
    expect_refusal(counts, "a", Outcome("refused"), "a file", tripwire)
    assert not tripwire.exists()
    for outcome in (Outcome("returned", 1), Outcome("returned", 2), Outcome("hung"), Outcome("died")):
        expect_same(counts, "b", outcome, 1, "a file")
    assert (counts.tried, counts.as_expected, counts.silent_uses, counts.code_runs) == (8, 3, 2, 1)
    assert (counts.internal_errors, counts.others, counts.parts) == (1, 1, {"a": 4, "b": 4})
    assert len(counts.examples) == 5


@pytest.mark.parametrize("kind", damaged.DAMAGES)
def test_damage_changes_content(kind):
    rng = random.Random(0)
    for content in (b"\0", bytes(100), bytes(range(256))):
        assert damaged.damage_file(content, kind, rng) != content


def test_payloads_would_run(tmp_path):
    """Without restrictions, each payload creates the tripwire."""
    tripwire = tmp_path / "TRIPWIRE"
    for name, payload in hostile_weights.list_payloads(tripwire).items():
        content = pickle.dumps({"state_dict": payload}, 2)
        call_isolated(lambda content=content: bool(pickle.loads(content)))
        # the payload of "getattr" only returns os.system
        assert tripwire.exists() == (name != "getattr"), name
        if name != "getattr":
            tripwire.rmdir() if tripwire.is_dir() else tripwire.unlink()


def test_hostile_pickles_are_refused(tmp_path):
    from compress.models.checkpoints import read_checkpoint

    counts = Counts()
    for part, what, write in random.Random(0).sample(hostile_weights.list_pickles(tmp_path / "TRIPWIRE"), 5):
        outcome = call_isolated(lambda path: bool(read_checkpoint(path)), write(tmp_path))
        expect_refusal(counts, part, outcome, what, tmp_path / "TRIPWIRE")
    assert counts.as_expected == counts.tried == 5, counts.examples


def test_fuzzer_reports_crashes_with_their_place(tmp_path):
    def write(folder: Path) -> Path:
        (folder / "a.json").write_text('{"a": 1}')
        return folder / "a.json"

    def read(path: Path) -> object:
        return 1 / json.loads(path.read_bytes())["a"]

    result = fuzzing.run_examples(fuzzing.Reader("a", write, read, "json"), tmp_path, 30, seed=1)
    assert result["fine"] + sum(n for n, _ in result["internal"].values()) == 30
    assert any("test_reliability_benchmark" in place for place in result["internal"])
    assert result == fuzzing.run_examples(fuzzing.Reader("a", write, read, "json"), tmp_path, 30, seed=1)


def test_engines_of_another_machine_are_refused():
    counts = Counts()
    damaged.run_damaged_engines(Scale(0.05), counts)
    assert counts.tried > 10
    assert counts.as_expected == counts.tried, counts.examples


def test_every_row_exists():
    assert list(program.ROWS) == [f"R{i}" for i in range(1, 19)]
    for name in program.ROWS:
        assert callable(program.find_row(name))


@pytest.fixture
def stub_rows(tmp_path, monkeypatch) -> list[str]:
    """Each row counts one try; the list of rows that ran."""
    monkeypatch.setattr(result_files, "RESULTS", tmp_path / "results")
    ran: list[str] = []

    def find(name: str):
        def row(scale: Scale, counts: Counts) -> None:
            ran.append(f"{name} {scale.seed}")
            if name == "R2" and "R2 0" not in ran[:-1]:
                raise ValueError("the row itself fails")
            counts.add("part", "silent" if name == "R3" else "expected", "example | with a bar")

        return row

    monkeypatch.setattr(program, "find_row", find)
    return ran


def options(**changes) -> argparse.Namespace:
    return argparse.Namespace(**{"only": None, "scale": 1.0, "kills": 1, "hours": 0.0, "again": False} | changes)


def test_interrupted_benchmark_continues(stub_rows, tmp_path):
    results = ResultFile("reliability", write=True)
    program.run_rows(results, options(only=["R3", "R1"]))
    program.run_rows(results, options(only=["R1", "R2", "R3"]))
    assert stub_rows == ["R3 0", "R1 0", "R2 0"]
    program.run_rows(results, options(only=["R2"], again=True))
    program.run_rows(results, options(only=["R1"], scale=2.0))
    rows = {row["row"]: row for row in json.loads((tmp_path / "results" / "reliability.json").read_text())["rows"]}
    assert list(rows) == ["R1", "R2", "R3"]
    assert [rows[name]["as_expected"] for name in rows] == [1, 1, 0]
    assert (rows["R1"]["scale"], rows["R3"]["silent_uses"]) == (2.0, 1)
    page = program.render_page(results.content)
    assert page.count("| R3 |") == 2
    assert "R3, part: silent: example" in page


def test_hours_repeat_the_rows(stub_rows):
    results = ResultFile("reliability", write=True)
    program.run_rows(results, options(only=["R1"], hours=0.0001))
    (row,) = results.rows()
    assert row["tried"] == row["passes"] == len(stub_rows) > 1
    assert stub_rows[:2] == ["R1 0", "R1 1"]


@pytest.mark.slow
def test_rows_run_once(tmp_path):
    """The short rows with one try each, as the command runs them."""
    command = [sys.executable, "-m", "benchmarks.reliability", "--scale", "0.001", "--kills", "2"]
    short = "R1,R2,R3,R4,R5,R6,R7,R8,R9,R11,R13,R15,R16,R17"
    result = subprocess.run([*command, "--only", short], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "## Not as expected" not in result.stdout, result.stdout
