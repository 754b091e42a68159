"""An ONNX file as the teacher: methods that need logits only run, others are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from invoking import TEACHER, list_files, read_error, read_result, run

from profiles.records import read_records, record_to_json

#: two steps that fit into a second
TINY = ("--steps", "2", "--batch-size", "8", "--precision", "32", "--device", "cpu", "--set", "data.views=1")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, clothes) -> Path:
    """The shipped teacher as `compress export` writes it."""
    path = tmp_path_factory.mktemp("exported") / "teacher.onnx"
    read_result(run("export", TEACHER, "--images", clothes, "--exporter", "torchscript", "--out", path, "--json"))
    return path


def distill(teacher: object, method: str, photos: Path, out: Path, *more: object):
    return run("distill", "--teacher", teacher, "--method", method, "--ood", photos, "--out", out, *TINY, *more)


@pytest.mark.parametrize("method", ["kd", "balanced", "dfnd"])
def test_onnx_teacher_trains_like_network(method, teacher, photos, clothes, tmp_path):
    made = [
        read_result(distill(model, method, photos, tmp_path / name, "--val", clothes, "--json"))
        for name, model in (("file", teacher), ("network", TEACHER))
    ]
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("file", "network")]
    file, network = ([json.loads(line) for line in part] for part in lines)
    assert [line["S"] for line in file if line["kind"] == "train"] == pytest.approx(
        [line["S"] for line in network if line["kind"] == "train"], rel=1e-3
    )
    assert made[0]["steps"] == made[1]["steps"] == 2


def test_student_records_hash_of_onnx_teacher(teacher, photos, tmp_path):
    read_result(distill(teacher, "kd", photos, tmp_path / "run", "--json"))
    card = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    (known,) = card["provenance"]["teachers"]
    assert known["model"] == str(teacher)
    assert known["sha256"] == hashlib.sha256(teacher.read_bytes()).hexdigest()
    assert (card["grayscale"], len(card["class_names"]), len(card["mean"])) == (True, 10, 1)


@pytest.mark.parametrize(("method", "wanted"), [("mosaic", "gradients"), ("fitnet", "features")])
def test_methods_beyond_logits_are_refused(method, wanted, teacher, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    error = read_error(distill(teacher, method, photos, tmp_path / "run"), 2)
    assert method in error
    assert wanted in error
    assert list_files(tmp_path) == set()


def test_cost_excludes_onnx_teacher(teacher, photos, tmp_path):
    hidden, shown = (
        read_result(distill(model, "kd", photos, tmp_path / "x", "--dry-run", "--json")) for model in (teacher, TEACHER)
    )
    assert 0 < hidden["flops_per_step"] < shown["flops_per_step"]
    assert (hidden["is_teacher_counted"], shown["is_teacher_counted"]) == (False, True)


def test_uncounted_teacher_has_no_flops(teacher):
    from compress.models.loading import load_model
    from compress.training.results import create_model_record

    record = create_model_record(*load_model(str(teacher)), name="Teacher", role="teacher")
    assert (record.macs, record.flops, record.params, record.macs_torch) == (None, None, None, None)
    assert record.metrics["accuracy"] > 0.9, "its card came along"


@pytest.mark.slow
def test_report_omits_unknown_cost(teacher, photos, tmp_path):
    read_result(distill(teacher, "kd", photos, tmp_path / "run", "--report", "--json"))
    records = [record_to_json(record) for record in read_records(tmp_path / "run")]
    assert [record["role"] for record in records] == ["teacher", "student"]
    assert (records[0]["macs"], records[0]["params"], records[0]["latencies"]) == (None, None, [])
    assert records[1]["latencies"]


def test_onnx_teacher_is_inspected_with_data(teacher, photos):
    found = read_result(run("inspect", teacher, "--ood", photos, "--ood-samples", 8, "--json"))
    assert (found["format"], found["card"]["classes"], found["params"]) == ("ONNX", 10, None)
    assert found["unlabeled"]["shift"] is None
    assert "ONNX" in run("inspect", teacher).stdout


def test_onnx_teacher_scores_as_network(teacher, clothes):
    of_file, of_network = (
        read_result(run("eval", model, "--data", clothes, "--json"))["metrics"] for model in (teacher, TEACHER)
    )
    assert of_file == of_network


def test_unusable_onnx_teacher_is_refused(teacher, photos, tmp_path):
    (tmp_path / "t.onnx").write_bytes(b"no")
    assert "t.onnx" in read_error(distill(tmp_path / "t.onnx", "kd", photos, tmp_path / "run"), 1)
    assert "u.onnx" in read_error(distill(tmp_path / "u.onnx", "kd", photos, tmp_path / "run"), 2)
    more = ("--set", f"student.weights={teacher}")
    assert str(teacher) in read_error(distill(TEACHER, "kd", photos, tmp_path / "run", *more), 2)
