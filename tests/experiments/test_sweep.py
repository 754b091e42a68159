"""`run_sweep` and `plan_sweep`: cells, files, what is made only once, and the report."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from compress.errors import UsageError
from compress.experiments import SweepConfig, plan_sweep, resolve_sweep_config, run_sweep
from compress.experiments.grid import build_grid, choose_calibration
from compress.methods import METHODS
from compress.training.launch import run_dir_lock
from profiles.records import read_records

TEACHER = "embedded/fashion_wrn16_2"


def create_config(photos: Path | None, clothes: Path, **settings: Any) -> SweepConfig:
    given = {
        "teachers.0.model": TEACHER, "data.unlabeled": None if photos is None else str(photos),
        "data.validation": str(clothes), "data.views": 1, "students": ["wrn16_1"], "methods": ["kd"],
        "precisions": ["fp32", "int8"], "training.steps": 2, "training.batch_size": 8, "training.precision": "32",
        "training.device": "cpu", "calibration_images": 8, "batch_sizes": [1], "duration": 0.02,
    }  # fmt: skip
    return resolve_sweep_config(**{**given, **settings})


@pytest.fixture(scope="module")
def sweep(trainings, photos, clothes, tmp_path_factory) -> tuple[SweepConfig, Path, Any]:
    """A sweep of one cell that works and one that fails: its config, directory and result."""
    output_dir = tmp_path_factory.mktemp("sweep") / "out"
    config = create_config(photos, clothes, methods=["kd", "broken:Broken"])
    result = run_sweep(config, output_dir=output_dir)
    trainings.calls.clear()
    return config, output_dir, result


def read_by_type(directory: Path) -> dict[tuple[str, str], Any]:
    return {(record.format, record.precision): record for record in read_records(directory)}


def test_sweep_reports_failed_cell(sweep) -> None:
    _, _, result = sweep
    assert result.failed == {"wrn16_1-broken-Broken-0": "broken: it never works."}
    good, bad = result.cells
    assert (good.cell, good.state, good.steps) == ("wrn16_1-kd-0", "finished", 2)
    assert (bad.state, bad.error, bad.files) == ("failed", "broken: it never works.", [])
    assert any("broken: it never works." in caveat for caveat in result.caveats)
    assert result.report["html"].exists()
    assert "KD wrn16_1" in result.best


def test_sweep_measures_every_file(sweep) -> None:
    _, output_dir, result = sweep
    student, teacher = read_by_type(output_dir / "wrn16_1-kd-0"), read_by_type(output_dir / "teacher")
    assert list(student) == [("", "fp32"), ("onnx", "fp32"), ("onnx", "int8")]
    assert list(teacher) == [("", "fp32"), ("onnx", "fp32")]
    for file in result.cells[0].files:
        record = student[file.format, file.precision]
        assert record.metrics == file.metrics
        assert record.size_bytes == file.bytes == file.path.stat().st_size
        assert record.export["parity"]["images"] > 0
        assert record.run["seed"] == 0
        assert record.macs == student["", "fp32"].macs < teacher["onnx", "fp32"].macs
        (latency,) = record.latencies
        assert (latency.batch_size, latency.precision, latency.runtime) == (1, file.precision, "onnxruntime")
    assert teacher["", "fp32"].metrics == teacher["onnx", "fp32"].metrics
    assert student["", "fp32"].latencies == []


def test_sweep_report_has_every_file(sweep, photos) -> None:
    _, output_dir, _ = sweep
    report = json.loads((output_dir / "report.json").read_text())
    rows = {(row["name"], row["format"], row["precision"]) for row in report["records"]}
    assert {("KD wrn16_1", "onnx", "int8"), ("KD wrn16_1", "onnx", "fp32"), ("Teacher wrn16_2", "onnx", "fp32")} <= rows
    assert any(str(photos) in caveat for caveat in report["caveats"]), "int8 was calibrated on the unlabeled images"


def test_second_call_repeats_only_failures(sweep, trainings) -> None:
    config, output_dir, _ = sweep
    timed = (output_dir / "timed.json").stat().st_mtime_ns
    assert run_sweep(config, output_dir=output_dir).failed
    assert trainings.take_run_names() == ["wrn16_1-broken-Broken-0"]
    assert (output_dir / "timed.json").stat().st_mtime_ns == timed
    plan = plan_sweep(resolve_sweep_config(output_dir=output_dir, allow_code=True), output_dir=output_dir)
    assert [cell.state for cell in plan.cells] == ["finished"]
    assert [(one.name, one.reason) for one in plan.skipped] == [("Broken", "broken: it never works.")]
    assert (plan.trainings, plan.artifacts) == (0, 2)


def test_locked_sweep_is_refused(sweep) -> None:
    config, output_dir, _ = sweep
    with run_dir_lock(output_dir), pytest.raises(UsageError, match="sweep"):
        run_sweep(config, output_dir=output_dir)


def test_changed_settings_are_refused(sweep, photos, clothes, trainings) -> None:
    _, output_dir, _ = sweep
    changed = create_config(photos, clothes)
    changed.methods = {"kd": {"temperature": 2.0}}
    with pytest.raises(UsageError, match=r"wrn16_1-kd-0.*method\.temperature"):
        run_sweep(changed, output_dir=output_dir)
    assert trainings.take_run_names() == []


@pytest.mark.slow
def test_added_precision_makes_only_its_files(sweep, photos, clothes, trainings, tmp_path) -> None:
    shutil.copytree(sweep[1], tmp_path / "out")
    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/*/files/*.onnx")}
    (tmp_path / "out" / "wrn16_1-kd-0" / "files" / "model.int8.onnx").unlink()
    config = create_config(photos, clothes, precisions=["fp32", "fp16", "int8"])
    result = run_sweep(config, output_dir=tmp_path / "out")
    assert trainings.take_run_names() == []
    assert {file.precision for file in result.cells[0].files} == {"fp32", "int8", "fp16"}
    changed = {file for file, before in files.items() if file.stat().st_mtime_ns != before}
    assert {file.name for file in changed} == {"model.int8.onnx"}
    assert [len(one.latencies) for one in read_by_type(tmp_path / "out" / "wrn16_1-kd-0").values()] == [0, 1, 1, 1]
    timed = json.loads((tmp_path / "out" / "timed.json").read_text())["request"]["files"]
    assert len(timed) == 4


@pytest.mark.slow
def test_rejected_file_is_listed_once(sweep, photos, clothes, tmp_path, monkeypatch) -> None:
    from exporters.parity import TOLERANCES, Tolerance

    shutil.copytree(sweep[1], tmp_path / "out")
    (tmp_path / "out" / "wrn16_1-kd-0" / "files" / "model.int8.onnx").unlink()
    monkeypatch.setitem(TOLERANCES, "int8", Tolerance(max_rel=0.0, max_disagreement=None))
    config = create_config(photos, clothes)
    (rejected,) = run_sweep(config, output_dir=tmp_path / "out").cells[0].rejected
    assert (rejected.format, rejected.precision) == ("onnx", "int8")
    outcome = (tmp_path / "out" / "wrn16_1-kd-0" / "files.json").stat().st_mtime_ns
    assert run_sweep(config, output_dir=tmp_path / "out").cells[0].rejected == [rejected]
    assert (tmp_path / "out" / "wrn16_1-kd-0" / "files.json").stat().st_mtime_ns == outcome


def test_shipped_recipe_plans_24_files(tmp_path) -> None:
    plan = plan_sweep(resolve_sweep_config("sweep-fashion"), output_dir=tmp_path / "out", workers=2)
    assert (plan.trainings, plan.artifacts, plan.workers) == (8, 24, 2)
    assert len({cell.student for cell in plan.cells}) == 4
    assert {cell.method for cell in plan.cells} == {"kd", "mosaic"}
    assert plan.cells[0].files == ["onnx fp32", "onnx fp16", "onnx int8"]
    assert plan.seconds == pytest.approx(8 * plan.cells[0].seconds)
    assert not (tmp_path / "out").exists()


def test_plan_orders_cells_by_seed(photos, clothes, tmp_path) -> None:
    settings = {"students": ["wrn16_1", "wrn40_1"], "seeds": 2, "training.steps": None, "training.time_limit": 60.0}
    config = create_config(photos, clothes, methods=["kd", "supervised"], **settings)
    plan = plan_sweep(config, output_dir=tmp_path / "out")
    assert [one.cell for one in plan.cells] == ["wrn16_1-kd-0", "wrn40_1-kd-0", "wrn16_1-kd-1", "wrn40_1-kd-1"]
    assert [(one.student, one.name) for one in plan.skipped] == [("wrn16_1", "Supervised"), ("wrn40_1", "Supervised")]
    assert plan.seconds == 240


def test_cells_have_settings_of_their_method(photos, clothes, tmp_path) -> None:
    config = create_config(photos, clothes, methods=["mosaic", "dafl"])
    config.methods = {"mosaic": {"bn": 10.0}, "dafl": {"z_dim": 64}}
    recipes = {cell.run.method: cell.run.train_config for cell in build_grid(config, tmp_path).cells}
    assert (recipes["mosaic"].method["bn"], recipes["dafl"].method["z_dim"]) == (10.0, 64)
    assert recipes["dafl"].data.unlabeled is None
    assert recipes["mosaic"].data.unlabeled == str(photos)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"students": ["deeplab_wrn16_1"]}, "segmentation"),
        ({"data.unlabeled": None}, "unlabeled"),
        ({"data.validation": "nope"}, "nope"),
        ({"teachers.0.model": "nope.pt"}, "nope.pt"),
    ],
)
def test_impossible_sweep_is_refused(photos, clothes, tmp_path, settings, named) -> None:
    with pytest.raises(UsageError, match=re.escape(named)):
        plan_sweep(create_config(photos, clothes, **settings), output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_calibration_needs_images(clothes) -> None:
    config = create_config(None, clothes)
    assert choose_calibration(config, METHODS["mosaic"]()) == "synthetic"
    assert choose_calibration(config, METHODS["deepinversion"]()) == "synthetic"
    with pytest.raises(UsageError, match="KD"):
        choose_calibration(config, METHODS["kd"]())
