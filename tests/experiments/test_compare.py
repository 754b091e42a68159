"""`run_comparison` and `plan_comparison`: runs, ranking, what is made only once, and failures."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from torchvision import datasets, transforms

from compress import config
from compress.data import register_dataset
from compress.errors import UsageError
from compress.experiments import ComparisonConfig, plan_comparison, resolve_comparison_config, run_comparison
from compress.models import load_model, register_module
from profiles.records import FILE, read_records, record_to_json

TEACHER = "embedded/fashion_wrn16_2"


def create_config(photos: Path | None, clothes: Path, **settings: Any) -> ComparisonConfig:
    given = {
        "teachers.0.model": TEACHER, "data.unlabeled": None if photos is None else str(photos),
        "data.validation": str(clothes), "data.views": 1, "student": "wrn16_1", "methods": ["kd"], "training.steps": 2,
        "training.batch_size": 8, "training.precision": "32", "training.device": "cpu", "seeds": 1,
    }  # fmt: skip
    return resolve_comparison_config(**{**given, **settings})


def test_comparison_trains_and_ranks_methods(trainings, photos, clothes, tmp_path) -> None:
    out, names = tmp_path / "out", ["kd", "mosaic", "supervised"]
    comparison = create_config(photos, clothes, methods=names, seeds=2, **{"data.labeled": str(clothes)})
    comparison.methods = {"kd": {}, "mosaic": {"width_G": 8, "width_D": 8}, "supervised": {}}
    result = run_comparison(comparison, output_dir=out, command="compress compare")
    assert trainings.take_run_names() == [f"{name}-{seed}" for seed in (0, 1) for name in names]
    methods = {one.method: one for one in result.methods}
    means = [one.mean for one in result.methods]
    assert means == sorted(means, reverse=True)
    assert {one.name for one in result.methods} == {"KD", "MosaicKD", "Supervised"}
    assert [methods[name].is_reference for name in names] == [False, False, True]
    assert methods["mosaic"].learns_from == ["images", "gradients"]
    assert methods["supervised"].learns_from == ["labels"]
    assert methods["mosaic"].settings == {"width_G": 8, "width_D": 8}
    assert result.teacher is not None
    assert result.teacher.score > 0.5
    for one in result.methods:
        assert [run.seed for run in one.runs] == [0, 1]
        for run in one.runs:
            record = record_to_json(read_records(out / f"{one.method}-{run.seed}")[0])
            assert run.last == record["run"]["last"]["accuracy"] == run.history[-1].score
            assert run.images_per_s == record["run"]["images_per_s"]
            assert run.peak_bytes == record["run"]["peak_bytes"]
    written = json.loads((out / "compare.json").read_text())
    assert [one["method"] for one in written["methods"]] == [one.method for one in result.methods]
    with open(out / "compare.csv", newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == [one.method for one in result.methods]
    assert {path.suffix for path in result.files.values()} == {".html", ".md", ".csv", ".json", ".svg", ".png"}
    page = (out / "compare.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    recipes = {name: config.load_yaml(out / f"{name}-0" / "recipe.yaml") for name in names}
    for section in ("task", "student", "training"):
        assert recipes["kd"].get(section) == recipes["mosaic"].get(section) == recipes["supervised"].get(section)
    assert recipes["mosaic"].get("method.width_G") == 8
    assert recipes["kd"].get("method.width_G") is None
    assert [recipes[name].get("data.labeled") for name in names] == [None, None, str(clothes)]
    assert [recipes[name].get("data.unlabeled") for name in names] == [str(photos), str(photos), None]
    assert [len(recipes[name].get("teachers")) for name in names] == [1, 1, 0]


@pytest.mark.slow
def test_finished_runs_are_kept(trainings, photos, clothes, tmp_path) -> None:
    out = tmp_path / "out"
    first = run_comparison(create_config(photos, clothes, seeds=2), output_dir=out)
    assert trainings.take_run_names() == ["kd-0", "kd-1"]
    again = run_comparison(create_config(photos, clothes, seeds=2), output_dir=out)
    assert trainings.take_run_names() == []
    assert again.methods == first.methods
    (out / "kd-1" / FILE).unlink()
    more = run_comparison(create_config(photos, clothes, seeds=3), output_dir=out)
    assert trainings.take_run_names() == ["kd-1", "kd-2"]
    assert [run.seed for run in more.methods[0].runs] == [0, 1, 2]
    changed = create_config(photos, clothes)
    changed.methods = {"kd": {"temperature": 2.0}}
    with pytest.raises(UsageError, match=r"kd-0.*method\.temperature"):
        run_comparison(changed, output_dir=out)
    (out / "kd-1" / FILE).write_text("{\n")
    (failed,) = run_comparison(create_config(photos, clothes, seeds=2), output_dir=out).failed
    assert failed.seed == 1


@pytest.mark.slow
def test_same_steps_follow_first_seed(trainings, photos, clothes, tmp_path) -> None:
    out, settings = tmp_path / "out", {"training.steps": None, "training.time_limit": 1.0, "same_steps": True}
    result = run_comparison(create_config(photos, clothes, seeds=2, **settings), output_dir=out)
    steps = [read_records(out / f"kd-{seed}")[-1].run["steps"] for seed in (0, 1)]
    assert steps[0] == steps[1] > 0
    recipes = [config.load_yaml(out / f"kd-{seed}" / "recipe.yaml") for seed in (0, 1)]
    assert [one.get("training.time_limit") for one in recipes] == [1.0, None]
    assert len(result.methods[0].runs) == 2
    trainings.calls.clear()
    run_comparison(create_config(photos, clothes, seeds=2, **settings), output_dir=out)
    assert trainings.take_run_names() == []


@pytest.mark.slow
def test_failed_run_keeps_others(trainings, photos, clothes, tmp_path) -> None:
    settings = {"methods": ["broken:Broken", "kd"], "seeds": 2}
    result = run_comparison(create_config(photos, clothes, **settings), output_dir=tmp_path / "out")
    assert [one.method for one in result.methods] == ["kd"]
    assert [(one.name, one.seed) for one in result.failed] == [("Broken", 0), ("Broken", 1)]
    assert {one.error for one in result.failed} == {"broken: it never works."}
    assert len(trainings.take_run_names()) == 4
    run_comparison(create_config(photos, clothes, **settings), output_dir=tmp_path / "out")
    assert trainings.take_run_names() == ["broken-Broken-0", "broken-Broken-1"]


def test_same_steps_without_first_seed_fails(trainings, photos, clothes, tmp_path) -> None:
    settings = {"training.steps": None, "training.time_limit": 1.0, "same_steps": True}
    comparison = create_config(photos, clothes, methods=["broken:Broken"], seeds=2, **settings)
    failed = run_comparison(comparison, output_dir=tmp_path / "out").failed
    assert [one.seed for one in failed] == [0, 1]
    assert trainings.take_run_names() == ["broken-Broken-0"]


def test_plan_lists_skipped_methods(clothes, tmp_path) -> None:
    names = ["supervised", "kd", "dafl"]
    plan = plan_comparison(create_config(None, clothes, methods=names, seeds=3), output_dir=tmp_path / "out")
    assert [one.name for one in plan.skipped] == ["Supervised", "KD"]
    assert [one.method for one in plan.methods] == ["dafl"]
    assert plan.runs == 3
    assert plan.seconds == pytest.approx(3 * plan.methods[0].seconds_per_run)
    with pytest.raises(UsageError, match="Supervised"):
        plan_comparison(create_config(None, clothes, methods=names[:2]), output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_teacher_without_batchnorm_skips_methods(photos, clothes, tmp_path, monkeypatch) -> None:
    (tmp_path / "bare.py").write_text(
        "from torch import nn\n"
        "def net(classes): return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(4, classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"teachers.0.model": "bare:net", "task.classes": 10, "task.image_size": [32, 32]}
    comparison = create_config(photos, clothes, methods=["kd", "dfq"], **settings)
    assert [one.name for one in plan_comparison(comparison, output_dir=tmp_path / "out").skipped] == ["DFQ"]
    sys.modules.pop("bare", None)


@pytest.mark.parametrize(
    "setting",
    [{"student": "wrn16_l"}, {"data.validation": "nope"}, {"data.labeled": "nope"}, {"data.unlabeled": "nope"}],
)
def test_impossible_comparison_is_refused(photos, clothes, tmp_path, setting) -> None:
    with pytest.raises(UsageError, match=re.escape(next(iter(setting.values())))):
        run_comparison(create_config(photos, clothes, **setting), output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_python_objects_are_trained_in_process(photos, clothes, tmp_path) -> None:
    images = datasets.ImageFolder(str(clothes), transforms.ToTensor())
    objects = {
        "teachers.0.model": register_module(load_model(TEACHER)[0]), "data.validation": register_dataset(images),
        "task.image_size": [32, 32],
    }  # fmt: skip
    comparison = create_config(photos, clothes, **objects)
    with pytest.raises(UsageError, match="workers"):
        run_comparison(comparison, output_dir=tmp_path / "out", workers=2)
    result = run_comparison(comparison, output_dir=tmp_path / "out")
    assert [len(one.runs) for one in result.methods] == [1]
