"""An ONNX file as the teacher, by the command line: what needs answers only runs, all else is refused at once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from invoking import TEACHER, answer, files, refusal, run

from profiles.record import as_json, read_records

#: two steps that fit into a second
TINY = ("--steps", "2", "--batch-size", "8", "--precision", "32", "--device", "cpu", "--set", "data.views=1")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, clothes) -> Path:
    """The shipped teacher as `compress export` writes it."""
    path = tmp_path_factory.mktemp("exported") / "teacher.onnx"
    answer(run("export", TEACHER, "--images", clothes, "--exporter", "torchscript", "--out", path, "--json"))
    return path


def distill(teacher: object, method: str, photos: Path, out: Path, *more: object):
    return run("distill", "--teacher", teacher, "--method", method, "--ood", photos, "--out", out, *TINY, *more)


@pytest.mark.parametrize("method", ["kd", "balanced", "dfnd"])
def test_a_student_learns_from_the_file_what_it_learns_from_the_network(method, teacher, photos, clothes, tmp_path):
    made = [
        answer(distill(model, method, photos, tmp_path / name, "--val", clothes, "--json"))
        for name, model in (("file", teacher), ("network", TEACHER))
    ]
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("file", "network")]
    file, network = ([json.loads(line) for line in part] for part in lines)
    assert [line["S"] for line in file if line["kind"] == "train"] == pytest.approx(
        [line["S"] for line in network if line["kind"] == "train"], rel=1e-3
    )
    assert made[0]["steps"] == made[1]["steps"] == 2


def test_the_student_knows_its_teacher_by_hash_and_takes_its_names_and_normalisation(teacher, photos, tmp_path):
    answer(distill(teacher, "kd", photos, tmp_path / "run", "--json"))
    card = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    (known,) = card["provenance"]["teachers"]
    assert known["model"] == str(teacher)
    assert known["sha256"] == hashlib.sha256(teacher.read_bytes()).hexdigest()
    assert (card["grey"], len(card["class_names"]), len(card["mean"])) == (True, 10, 1)


@pytest.mark.parametrize(("method", "wanted"), [("mosaic", "gradients"), ("fitnet", "features")])
def test_a_method_that_looks_inside_is_refused_before_anything_is_spent(
    method, wanted, teacher, photos, tmp_path, monkeypatch
):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    said = refusal(distill(teacher, method, photos, tmp_path / "run"), 2)
    assert said == (
        f"method {method} needs the teacher's {wanted}, and an ONNX file gives answers only; use kd or balanced, which "
        "need no more."
    )
    assert files(tmp_path) == set()


def test_its_cost_is_estimated_without_the_teacher(teacher, photos, tmp_path):
    hidden, shown = (
        answer(distill(model, "kd", photos, tmp_path / "x", "--dry-run", "--json")) for model in (teacher, TEACHER)
    )
    assert 0 < hidden["flops_per_step"] < shown["flops_per_step"]
    assert "the teacher's are not known" in distill(teacher, "kd", photos, tmp_path / "x", "--dry-run").stdout


def test_what_cannot_be_counted_is_not_called_nothing(teacher):
    from compress.cli.results import model_record
    from compress.models.loading import load_model

    record = model_record(*load_model(str(teacher)), name="Teacher", role="teacher")
    assert (record.macs, record.flops, record.params, record.macs_torch) == (None, None, None, None)
    assert record.metrics["accuracy"] > 0.9, "its card came along"


@pytest.mark.slow
def test_a_report_leaves_open_what_is_not_known_of_it(teacher, photos, tmp_path):
    answer(distill(teacher, "kd", photos, tmp_path / "run", "--report", "--json"))
    records = [as_json(record) for record in read_records(tmp_path / "run")]
    assert [record["role"] for record in records] == ["teacher", "student"]
    assert (records[0]["macs"], records[0]["params"], records[0]["latencies"]) == (None, None, [])
    assert records[1]["latencies"]


def test_it_is_inspected_with_how_it_sees_data(teacher, photos):
    found = answer(run("inspect", teacher, "--ood", photos, "--ood-samples", 8, "--json"))
    assert (found["format"], found["classes"], found["params"], found["ood"]["shift"]) == ("ONNX", 10, None, None)
    text = run("inspect", teacher).stdout
    assert "ONNX" in text
    assert "all finite" not in text, "nobody has looked"


def test_it_is_measured_as_before(teacher, clothes):
    of_file, of_network = (
        answer(run("eval", model, "--data", clothes, "--json"))["metrics"] for model in (teacher, TEACHER)
    )
    assert of_file == of_network


def test_a_file_that_is_none_and_one_to_be_trained_further_are_refused(teacher, photos, tmp_path):
    (tmp_path / "t.onnx").write_bytes(b"no")
    said = refusal(distill(tmp_path / "t.onnx", "kd", photos, tmp_path / "run"), 1)
    assert said.startswith(f"{tmp_path / 't.onnx'}: cannot be loaded as ONNX")
    assert "no such file" in refusal(distill(tmp_path / "u.onnx", "kd", photos, tmp_path / "run"), 2)
    more = ("--set", f"student.weights={teacher}")
    assert "cannot be trained further" in refusal(distill(TEACHER, "kd", photos, tmp_path / "run", *more), 2)
