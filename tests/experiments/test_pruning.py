"""Early stopping: scores by tenths of the budget, groups, and what stays of a stopped training."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from test_sweep import create_config

from compress.errors import CompressError
from compress.experiments import artifacts
from compress.experiments.cells import FILES, MADE_FIELDS, PRUNED, Cell
from compress.experiments.config import PruningConfig
from compress.experiments.grid import build_grid
from compress.experiments.pruning import PruningMonitor, scores_by_budget_fraction
from profiles.records import Record, append_records


def ignore(_: str) -> None:
    return None


def write_scores(cell: Cell, *scores: float, every: float = 10.0) -> None:
    """Write one evaluation per `every` seconds, and a line that was cut off."""
    cell.run.directory.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [{"kind": "train", "step": 1, "S": 1.0, "seconds": 1.0}]
    lines += [
        {"kind": "evaluation", "step": i, "accuracy": score, "iou/x": 0.5, "seconds": every * i + 0.3}
        for i, score in enumerate(scores, 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (cell.run.directory / "metrics.jsonl").write_text(text + '{"kind": "ev')


@pytest.fixture
def pair(photos, clothes, tmp_path) -> tuple[Cell, PruningMonitor]:
    """The second of two cells of a student, and a monitor that has seen the first one finish."""
    settings = {"training.steps": None, "training.time_limit": 100.0, "pruning.kind": "median", "pruning.warmup": 2}
    config = create_config(photos, clothes, methods=["kd", "mosaic"], **settings)
    first, second = build_grid(config, tmp_path / "out").cells
    monitor = PruningMonitor(config.pruning, {first.name: "wrn16_1", second.name: "wrn16_1"})
    for tenth in range(1, 11):
        assert not monitor.report(first.name, tenth, tenth / 10)
    monitor.finish(first.name, 1.0)
    return second, monitor


def test_scores_by_budget_fraction(pair) -> None:
    cell, _ = pair
    training = cell.run.train_config.training
    write_scores(cell, 0.1, 0.2, 0.3, every=5.0)
    scores = scores_by_budget_fraction(cell.run.directory, training)
    assert {tenth: line["score"] for tenth, line in scores.items()} == {0: 0.1, 1: 0.2}
    write_scores(cell, *[0.5] * 12)
    scores = scores_by_budget_fraction(cell.run.directory, training)
    assert list(scores) == list(range(1, 11))
    assert scores[3] == {"step": 3, "metric": "accuracy", "score": 0.5}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[1]", b"{}", b'{"made": 3}', b"\xff", b"[" * 100_000])
def test_damaged_state_of_a_cell_is_made_again(pair, content) -> None:
    cell, _ = pair
    cell.run.directory.mkdir(parents=True)
    for name in (PRUNED, FILES):
        (cell.run.directory / name).write_bytes(content)
    (cell.run.directory.parent / artifacts.TIMED).write_bytes(content)
    nothing = {"request": cell.files.request, "made": [], "rejected": []}
    assert cell.files.read_outcome() == nothing
    for entries in (3, [3], [{"format": "onnx"}]):
        (cell.run.directory / FILES).write_text(json.dumps({**nothing, "made": entries}))
        assert cell.files.read_outcome() == nothing
    assert not cell.is_done
    assert isinstance(artifacts.read_timing(cell.run.directory.parent), dict)


def test_files_out_of_a_cell_are_not_used(pair) -> None:
    cell, _ = pair
    folder = cell.run.directory
    folder.mkdir(parents=True)
    (folder.parent / "out.onnx").write_bytes(b"")
    (folder / "own.onnx").write_bytes(b"")
    (folder / "link.onnx").symlink_to(folder.parent / "out.onnx")
    os.mkfifo(folder / "pipe.onnx")
    names = ["../out.onnx", str(folder.parent / "out.onnx"), "link.onnx", "pipe.onnx", "a\0b", 3, "own.onnx"]
    made = [dict.fromkeys(MADE_FIELDS, "") | {"file": name} for name in names]
    outcome = {"request": cell.files.request, "made": made, "rejected": []}
    (folder / FILES).write_text(json.dumps(outcome))
    assert [entry["file"] for entry in cell.files.read_outcome()["made"]] == ["own.onnx"]


def test_median_stops_worse_training(pair) -> None:
    cell, monitor = pair
    write_scores(cell, 0.05)
    assert artifacts.report_scores(cell, monitor) is None, "before the first decision"
    write_scores(cell, 0.05, 0.25)
    assert artifacts.report_scores(cell, monitor) is None, "as good as the other was then"
    write_scores(cell, 0.05, 0.25, 0.26)
    assert artifacts.report_scores(cell, monitor) == {"tenth": 3, "step": 3, "metric": "accuracy", "score": 0.26}
    assert artifacts.report_scores(cell, monitor) is None, "reported once"


@pytest.mark.parametrize("kind", ["asha"])
def test_students_do_not_compete(kind) -> None:
    groups = {f"{student}-{i}": student for student in ("small", "large") for i in range(2)}
    monitor = PruningMonitor(PruningConfig(kind, warmup=2, reduction_factor=2), groups)
    assert not monitor.report("large-0", 2, 0.9)
    assert not monitor.report("small-0", 1, 0.1)
    assert not monitor.report("small-0", 2, 0.2), "the first of its student"
    assert monitor.report("small-1", 2, 0.1)
    assert not monitor.report("large-1", 2, 0.95)


def test_pruned_cell_keeps_last_score(pair, monkeypatch) -> None:
    cell, monitor = pair

    def train(_: Any, __: Any, *, should_stop: Any) -> tuple[int, str]:
        write_scores(cell, 0.05, 0.1)
        assert should_stop()
        return 143, "stopped by SIGTERM"

    monkeypatch.setattr(artifacts, "run_compress", train)
    artifacts.train_cell(cell, monitor, ignore)
    assert cell.read_pruned() == {"tenth": 2, "step": 2, "metric": "accuracy", "score": 0.1}
    assert (cell.is_done, cell.read_score()) == (True, 0.1)
    assert (cell.run.directory / PRUNED).exists()
    cell.pruning.kind = "none"
    assert not cell.is_done, "continues without pruning"


@pytest.mark.parametrize("damage", [{"tenth": None}, {"score": "high"}, {"score": True}, {"metric": 3}, {"tenth": 2.5}])
def test_damaged_state_of_a_stopped_training_is_none(pair, damage) -> None:
    cell, _ = pair
    cell.run.directory.mkdir(parents=True)
    state = {"tenth": 2, "step": 2, "metric": "accuracy", "score": 0.1}
    (cell.run.directory / PRUNED).write_text(json.dumps(state))
    assert cell.read_pruned() == state
    (cell.run.directory / PRUNED).write_text(json.dumps(state | damage))
    assert cell.read_pruned() is None


@pytest.mark.parametrize("steps", [None, "4", 0, True, 2.5])
def test_damaged_number_of_steps_is_refused(pair, steps) -> None:
    cell, _ = pair
    append_records(cell.run.directory, [Record("S", run={"steps": steps})])
    with pytest.raises(CompressError, match="steps"):
        cell.run.read_steps()


def test_failed_training_is_not_pruned(pair, monkeypatch) -> None:
    cell, monitor = pair

    def train(*_: Any, **__: Any) -> tuple[int, str]:
        write_scores(cell, 0.05, 0.1)
        return 1, "the loss is nan"

    monkeypatch.setattr(artifacts, "run_compress", train)
    with pytest.raises(CompressError, match="the loss is nan"):
        artifacts.train_cell(cell, monitor, ignore)
    assert cell.read_pruned() is None
