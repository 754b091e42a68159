"""Bad input: one sentence with the datum at fault, nothing on standard output, the right exit code."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from invoking import TEACHER, TINY, distill, list_files, read_error, read_result, run
from PIL import Image

import compress.files


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Tripwire:
    """An object whose pickle creates a directory when it is loaded."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("EXECUTED",))


# Files.


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "nope.pt"],
        ["eval", "nope.onnx", "--data", "embedded/fashion"],
        ["export", "nope"],
        ["bench", "nope.pt"],
        ["profile", "nope.pt"],
        ["report", "nope"],
        ["distill", "--teacher", "nope.pt", "--ood", "embedded/photos", "--steps", "1"],
        ["distill", "--teacher", TEACHER, "--ood", "nope", "--steps", "1"],
        ["distill", "--recipe", "nope.yaml"],
        ["train", "--data", "nope", "--steps", "1"],
    ],
    ids=" ".join,
)
def test_missing_file_is_named(here, command) -> None:
    assert "nope" in read_error(run(*command), 2)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_truncated_checkpoint_is_named(here, suffix) -> None:
    from safetensors.torch import save_file

    state, path = {"fc.weight": torch.randn(10, 64)}, here / f"whole.{suffix}"
    if suffix == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    cut = here / f"cut.{suffix}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for command in (["inspect", cut], ["distill", "--teacher", cut, "--ood", "embedded/photos", "--steps", "1"]):
        assert f"cut.{suffix}" in read_error(run(*command), 1)


@pytest.mark.parametrize("name", ["pickled.pt", "pickled.pkl"])
def test_code_in_pickle_never_runs(here, photos, name) -> None:
    if name.endswith(".pt"):
        torch.save({"state_dict": Tripwire()}, name)
    else:
        Path(name).write_bytes(pickle.dumps(Tripwire(), protocol=2))
    for result in (run("inspect", name), run("export", name), distill(teacher=name, ood=photos, out="out")):
        error = read_error(result, 1)
        assert name in error
        assert "--trust-pickle" in error
    assert not Path("EXECUTED").exists()


def test_tripwire_pickle_would_run(here) -> None:
    torch.save({"state_dict": Tripwire()}, "pickled.pt")
    torch.load("pickled.pt", weights_only=False)
    assert Path("EXECUTED").exists()


# Classes and data.


def test_other_class_count_is_refused(here, photos) -> None:
    error = read_error(distill("--classes", 7, ood=photos, out="out"), 2)
    assert "10" in error
    assert "7" in error


def test_validation_classes_are_checked_first(here, photos) -> None:
    for name in "abc":
        (here / "three" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(here / "three" / name / "x.png")
    result = distill("--val", here / "three", "--set", "data.views=3", ood=photos, out="out")
    assert "3" in read_error(result, 2)
    assert str(photos) not in result.stderr
    assert "3" in read_error(run("eval", TEACHER, "--data", here / "three"), 2)


def test_labels_are_required_to_measure(here, photos) -> None:
    assert str(photos) in read_error(run("eval", TEACHER, "--data", photos), 2)
    assert str(photos) in read_error(run("train", "--data", photos, "--steps", 1), 2)


def test_directories_without_images_are_refused(here) -> None:
    (here / "texts").mkdir()
    (here / "texts" / "a.txt").write_text("no image")
    assert "texts" in read_error(distill(ood="texts", out="out"), 2)
    (here / "broken").mkdir()
    for i in range(3):
        (here / "broken" / f"{i}.png").write_bytes(b"not an image")
    assert "0.png" in read_error(distill(ood="broken", out="out"), 1)
    assert not (here / "out").exists()  # a second try with other data is not "another recipe"


# Names and options.


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--student", "wrn16_l"], "'wrn16_"),
        (["--student", "timm/resnet81"], "'resnet18'"),
        (["--student", "torchvision/mobilenetv2"], "'mobilenet_v2'"),
        (["--method", "mosiac"], "'mosaic'"),
        (["--method", "qqq"], "qqq"),
        (["--set", "method.lcoal=1"], "'local'"),
        (["--set", "local=1"], "'method.local'"),
        (["--set", "training.stpes=1"], "'steps'"),
        (["--teachr", "x"], "--teacher"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_misspelled_name_suggests_nearest(here, photos, arguments, hint) -> None:
    assert hint in read_error(distill(*arguments, ood=photos, out="out"), 2)


@pytest.mark.parametrize(
    ("text", "location", "hint"),
    [
        ("method:\n  lcoal: 1\n", "my.yaml:2: method.lcoal", "'local'"),
        ("training:\n  stpes: 2\n", "my.yaml:2: training.stpes", "'steps'"),
        ("training:\n  steps: many\n", "my.yaml:2: training.steps", "'many'"),
        ("method:\n  name: mosiac\n", "my.yaml:2: method.name", "'mosaic'"),
        ("trainign: {steps: 2}\n", "my.yaml:1: trainign", "'training'"),
    ],
)  # fmt: skip
def test_recipe_error_names_file_and_line(here, photos, text, location, hint) -> None:
    Path("my.yaml").write_text(text)
    error = read_error(run("distill", "--teacher", TEACHER, "--ood", photos, "--recipe", "my.yaml"), 2)
    assert location in error
    assert hint in error


@pytest.mark.parametrize(
    ("arguments", "datum"),
    [
        (["--time-limit", "10m"], "time_limit"),
        (["--epochs", "1"], "epochs"),
        (["--time-limit", "soon"], "soon"),
        (["--devices", "0"], "--devices"),
        (["--devices", "two"], "--devices"),
        (["--device", "tpu"], "tpu"),
        (["--seed", "-1"], "--seed"),
        (["--precision", "16"], "16"),
        (["--resume"], "out"),
        (["--ood-subset", "1000"], "1000"),
        pytest.param(["--device", "cuda"], "GPU", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_option_is_named(here, photos, arguments, datum) -> None:
    assert datum in read_error(distill(*arguments, ood=photos, out="out"), 2)


def test_missing_option_is_named() -> None:
    assert "--teacher" in read_error(run("distill"), 2)
    assert "--ood" in read_error(run("distill", "--teacher", TEACHER), 2)
    assert "--data" in read_error(run("train", "--steps", 1), 2)


@pytest.mark.parametrize("method", ["dafl", "zskt", "dfad", "dfq"])
def test_epochs_without_images_are_refused(here, method) -> None:
    error = read_error(run("distill", "--teacher", TEACHER, "--method", method, "--epochs", 2, "--out", "out"), 2)
    assert "training.epochs" in error
    assert method in error
    assert not (here / "out").exists()


# Output.


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_unwritable_output_is_named(here, photos, out) -> None:
    (here / "file").write_text("in the way")
    assert read_error(distill(ood=photos, out=out), 1).startswith(out)
    arguments = ["export", TEACHER, "--images", photos, "--exporter", "torchscript", "--out", "file/model.onnx"]
    assert "file" in read_error(run(*arguments), 1)
    assert (here / "file").read_text() == "in the way"


@pytest.mark.slow
def test_full_disk_keeps_last_checkpoint(tmp_path, photos, monkeypatch) -> None:
    run_dir = tmp_path / "out"
    schedule = ["--steps", 3, "--set", "training.save_every=1", "--set", "training.evaluate_every=100"]
    sync = os.fsync

    def full(handle: int) -> None:
        if len(list(run_dir.glob("checkpoints/step-*.json"))) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(compress.files.os, "fsync", full)
        assert str(run_dir) in read_error(distill(*schedule, ood=photos, out=run_dir), 1)
    left = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert left == [f"step-00000000{i}.{end}" for i in (1, 2) for end in ("json", "rank0.pt")]
    read_result(distill(*schedule, "--resume", "--json", ood=photos, out=run_dir))
    read_result(distill(*schedule, "--json", ood=photos, out=tmp_path / "undisturbed"))
    weights = [(tmp_path / name / "last" / "model.safetensors").read_bytes() for name in ("out", "undisturbed")]
    assert weights[0] == weights[1]


# A directory that contains a run.


@pytest.fixture
def run_dir(first_run, tmp_path) -> Path:
    return Path(shutil.copytree(first_run[0], tmp_path / "run"))


@pytest.mark.slow
def test_other_recipe_in_directory_is_refused(run_dir, photos, clothes) -> None:
    before = {name: (run_dir / name).read_bytes() for name in list_files(run_dir) - {".lock"}}
    error = read_error(distill("--val", clothes, "--seed", 3, ood=photos, out=run_dir), 2)
    assert "training.seed" in error
    assert {name: (run_dir / name).read_bytes() for name in list_files(run_dir) - {".lock"}} == before


def test_fresh_replaces_only_the_run(run_dir, photos, clothes) -> None:
    (run_dir / "notes.txt").write_text("mine")
    before = {name: (run_dir / name).read_bytes() for name in list_files(run_dir) - {".lock"}}
    command = ("--val", clothes, "--seed", 3, "--fresh", "--json")
    assert "notes.txt" in read_error(distill(*command, ood=photos, out=run_dir), 2)
    assert {name: (run_dir / name).read_bytes() for name in before} == before
    (run_dir / "notes.txt").unlink()
    read_result(distill(*command, ood=photos, out=run_dir))
    assert "seed: 3" in (run_dir / "recipe.yaml").read_text()


def test_failed_fresh_keeps_old_run(run_dir, clothes, tmp_path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_bytes(b"not an image")
    read_error(distill("--val", clothes, "--fresh", ood=tmp_path / "broken", out=run_dir), 1)
    assert (run_dir / "last" / "model.safetensors").exists()


def test_finished_run_is_not_trained_again(run_dir, first_run, photos, clothes) -> None:
    again = read_result(distill("--val", clothes, "--resume", "--json", ood=photos, out=run_dir))
    assert (again["metrics"], again["steps"]) == (first_run[1]["metrics"], 2)


def test_locked_directory_names_process(run_dir, photos, clothes) -> None:
    with open(run_dir / ".lock", "r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.truncate(0)
        other.write("4711")
        other.flush()
        assert "4711" in read_error(distill("--val", clothes, ood=photos, out=run_dir), 2)


# Tracebacks.


@pytest.mark.parametrize(
    "arguments", [["inspect", "nope.pt"], ["distill", "--teacher", TEACHER, "--ood", "nope", *TINY]]
)
def test_debug_adds_traceback(here, arguments) -> None:
    result = run(*arguments, "--debug")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.strip().splitlines()[-1] == f"Error: {read_error(run(*arguments), 2)}"


def test_bug_is_reported_without_traceback(monkeypatch) -> None:
    import compress.inspection

    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(compress.inspection, "inspect_model", broken)
    result = run("inspect", TEACHER)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: internal error: ZeroDivisionError")
    assert result.stderr.count("\n") == 1
