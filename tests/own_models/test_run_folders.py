"""Nothing of the user's is lost or mixed: what a run deletes, replaces and continues."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.invoking import list_files, read_error, read_result, run
from click.testing import Result
from fixtures.runs.make_runs import HERE
from PIL import Image

import compress
from compress.errors import UsageError
from compress.models.registry import build_model
from compress.own_files import list_run_files
from profiles.records import Record, append_records

DARK, BRIGHT = 40, 215
STEPS = ("--steps", 2, "--batch-size", 4, "--precision", 32, "--device", "cpu", "--set", "data.views=1")


def save_teacher(path: Path, shift: float = 0.0) -> str:
    """Save the state dict of a network that tells dark from bright images; return its sha256.

    `shift` is added to both logits: another file with the same predictions.
    """
    torch.manual_seed(0)
    state = build_model("wrn16_1", classes=2).state_dict()
    torch.save(state, path)
    network, _ = compress.load_model(path)
    with torch.no_grad():
        dark, bright = (network(torch.full((1, 3, 32, 32), level / 255))[0] for level in (DARK, BRIGHT))
    weight, bias = (next(key for key, value in state.items() if value.shape == shape) for shape in ((2, 64), (2,)))
    if bright[1] - bright[0] < dark[1] - dark[0]:  # class 1 is to be the bright one
        state[weight], dark, bright = state[weight].flip(0), dark.flip(0), bright.flip(0)
    difference = float((dark + bright).diff() / 2)
    state[bias] = torch.tensor([difference, 0.0]) + shift
    torch.save(state, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_images(folder: Path, level: int, count: int = 4) -> Path:
    """Save images of noise around a gray level."""
    noise = np.random.default_rng(level)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(noise.integers(level - 10, level + 10, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A working directory with a teacher, training images and labeled images."""
    save_teacher(tmp_path / "teacher.pt")
    save_images(tmp_path / "photos", 128)
    save_images(tmp_path / "val" / "a", DARK)
    save_images(tmp_path / "val" / "b", BRIGHT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def distill(*arguments: object, teacher: object = "teacher.pt", ood: object = "photos", out: object = "run") -> Result:
    command = ("distill", "--teacher", teacher, "--ood", ood, "--method", "kd", "--student", "wrn16_1")
    return run(*command, "--val", "val", *STEPS, "--out", out, *arguments, "--json")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_files(folder)}


def teacher_hash(run_dir: Path) -> str:
    return json.loads((run_dir / "best" / "config.json").read_text())["provenance"]["teachers"][0]["sha256"]


# What --fresh removes.


def test_fresh_in_a_folder_of_the_user_deletes_nothing(home):
    for name in ("best/model.pt", "checkpoints/mine.pt", "images/holiday.png", "metrics.jsonl", "recipe.yaml"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(b"mine")
    before = contents(home)
    read_error(distill("--fresh", out="."), 2)
    read_error(distill(out="."), 2)
    assert {name: content for name, content in contents(home).items() if name != ".lock"} == before


@pytest.mark.parametrize("name", ["best", "checkpoints", "metrics.jsonl"])
def test_run_does_not_begin_where_a_file_of_the_user_has_its_name(home, name):
    (home / "run").mkdir()
    (home / "run" / name).write_bytes(b"mine")
    read_error(distill(), 2)
    assert (home / "run" / name).read_bytes() == b"mine"


def test_fresh_replaces_a_run_but_not_files_of_the_user(home):
    read_result(distill())
    (home / "run" / "compress-images").mkdir(exist_ok=True)
    mine = home / "run" / "compress-images" / "holiday.png"
    shutil.copy("photos/0.png", mine)
    before = contents(home / "run")
    assert "holiday.png" in read_error(distill("--fresh", "--steps", 1), 2)
    assert contents(home / "run") == before
    mine.rename(home / "holiday.png")
    assert read_result(distill("--fresh", "--steps", 1))["steps"] == 1
    assert (home / "run" / "records.jsonl").read_text().count("\n") == 1


@pytest.mark.slow
def test_everything_that_a_run_writes_is_known_as_its_own(home):
    settings = ("--method", "mosaic", "--set", "method.width_G=8", "--set", "method.width_D=8", "--export", "onnx")
    read_result(distill(*settings, "--report"))
    assert list_run_files(home / "run")[1] == []
    assert (home / "run" / "compress-mosaics.png").exists()
    read_result(distill("--fresh"))
    left = list_files(home / "run")
    assert {"student.onnx", "report.html", "compress-mosaics.png"}.isdisjoint(left)
    for older in ("kd", "mosaic-segmentation"):
        assert list_run_files(HERE / "0.1.0" / older)[1] == []


def test_fresh_keeps_teacher_and_data_inside(home):
    read_result(distill())
    for arguments in ({"teacher": "run/best"}, {"teacher": "run"}, {"ood": "run"}):
        before = contents(home / "run")
        read_error(distill("--fresh", **arguments), 2)
        assert contents(home / "run") == before


# Which run it is.


def test_changed_teacher_is_refused(home):
    first = teacher_hash(read_result(distill()) and home / "run")
    assert first == hashlib.sha256((home / "teacher.pt").read_bytes()).hexdigest()
    os.rename("teacher.pt", "old.pt")
    second = save_teacher(home / "teacher.pt", shift=1.0)
    before = contents(home / "run")
    assert "teacher" in read_error(distill(), 2)
    assert "teacher" in read_error(distill("--resume"), 2)
    assert contents(home / "run") == before
    read_result(distill("--fresh"))
    assert teacher_hash(home / "run") == second != first


def test_changed_data_are_refused(home):
    read_result(distill())
    Image.new("RGB", (8, 8)).save(home / "photos" / "new.png")
    assert "unlabeled" in read_error(distill(), 2)
    (home / "photos" / "new.png").unlink()
    read_result(distill())
    (home / "val" / "a" / "0.png").rename(home / "val" / "b" / "9.png")
    assert "validation" in read_error(distill(), 2)


def test_moved_teacher_and_data_continue(home):
    read_result(distill())
    record = (home / "run" / "best" / "model.safetensors").read_bytes()
    (home / "moved").mkdir()
    shutil.move("teacher.pt", "moved/t.pt")
    shutil.move("photos", "moved/photos")
    read_result(distill("--resume", teacher="moved/t.pt", ood=home / "moved" / "photos"))
    assert (home / "run" / "best" / "model.safetensors").read_bytes() == record
    assert "moved/t.pt" in (home / "run" / "recipe.yaml").read_text()


def test_run_of_an_earlier_release_with_another_teacher_is_refused(home, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    shutil.copytree(HERE / "0.1.0", home / "older")
    monkeypatch.chdir(home / "older")
    card = json.loads(Path("kd/best/config.json").read_text())
    card["provenance"]["teachers"][0]["sha256"] = "0" * 64
    Path("kd/best/config.json").write_text(json.dumps(card))
    from fixtures.runs.make_runs import RUNS

    with pytest.raises(UsageError, match="teacher"):
        compress.distill(**RUNS["kd"], output_dir="kd", resume=True)


# Experiments.


def compare(*arguments: object, teacher: object = "teacher.pt") -> Result:
    command = ("compare", "--teacher", teacher, "--ood", "photos", "--val", "val", "--methods", "kd", "--seeds", 1)
    return run(*command, "--student", "wrn16_1", *STEPS, "--out", "all", *arguments, "--json")


@pytest.mark.slow
def test_comparison_of_another_teacher_is_refused(home):
    first = read_result(compare())
    shutil.copy("teacher.pt", "copy.pt")
    assert read_result(compare(teacher="copy.pt"))["methods"][0]["mean"] == first["methods"][0]["mean"]
    save_teacher(home / "teacher.pt", shift=1.0)
    before = (home / "all" / "compare.json").read_bytes()
    assert "teacher" in read_error(compare(), 2)
    assert (home / "all" / "compare.json").read_bytes() == before
    shutil.rmtree("all/kd-0")  # the measurements of the first teacher are left
    assert "teacher" in read_error(compare(), 2)


@pytest.mark.parametrize("name", ["compare.html", "compare.png", "compare.json"])
def test_comparison_does_not_replace_files_of_the_user(home, name):
    (home / "all").mkdir()
    (home / "all" / name).write_bytes(b"mine")
    read_error(compare(), 2)
    assert list_files(home / "all") == {name}


def test_report_does_not_replace_a_chart_of_the_user(home):
    records = [
        Record(name, "student", architecture=name, metrics={"accuracy": 0.5}, flops=flops, run={"steps": 1})
        for name, flops in (("a", 10**9), ("b", 10**8))
    ]
    append_records(home / "results", records)
    made = read_result(run("report", "results", "--out", "made", "--json"))
    chart = next(path.name for path in Path(made["html"]).parent.glob("*.svg"))
    (home / "out").mkdir()
    (home / "out" / chart).write_bytes(b"mine")
    read_error(run("report", "results", "--out", "out"), 2)
    assert list_files(home / "out") == {chart}
    read_result(run("report", "results", "--out", "made", "--json"))  # its own files are replaced


def test_sweep_of_another_teacher_is_refused(home):
    config = {
        "teachers": [{"model": "teacher.pt"}], "methods": ["kd"], "students": ["wrn16_1"],
        "data": {"unlabeled": "photos", "validation": "val"}, "training": {"steps": 1},
    }  # fmt: skip
    (home / "mine.yaml").write_text(json.dumps(config))
    command = ("sweep", "mine.yaml", "--out", "sweep", "--dry-run", "--json")
    assert read_result(run(*command))["trainings"] == 1
    stored = {"teachers.0.model": "0" * 64, "data.validation": "0" * 64}
    teacher = Record("Teacher", "teacher", metrics={"accuracy": 1.0}, run={"identity": stored})
    append_records(home / "sweep" / "teacher", [teacher])
    assert "teacher" in read_error(run(*command), 2)
