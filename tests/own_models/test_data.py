"""Own data as users have it: what is read, under which label, and what is said about the rest; counted by hand."""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli.invoking import read_error, read_result, run
from PIL import Image
from torch import Tensor, nn

import compress
from compress.errors import CompressError, UsageError
from compress.evaluation import EvaluationResult
from compress.models import register_module

STEP = 20


class GrayLevel(nn.Module):
    """Predicts class k for an image of gray STEP * k: a model whose answers need no reference."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.arange(classes) * float(STEP) / 255)

    def forward(self, x: Tensor) -> Tensor:
        return -((x.mean((1, 2, 3))[:, None] - self.levels) ** 2)


def save_gray(path: Path, label: int) -> None:
    """Save an image that `GrayLevel` takes for class `label`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (STEP * label,) * 3).save(path)


def save_classes(folder: Path, labels: Mapping[str, int], count: int = 2) -> Path:
    """Save `count` images in every directory: name -> the class that the model predicts for them."""
    for name, label in labels.items():
        for i in range(count):
            save_gray(folder / name / f"{i}.png", label)
    return folder


def evaluate(classes: int, data: Path | str, **options: Any) -> tuple[EvaluationResult, str]:
    """Return the result and all status lines."""
    lines: list[str] = []
    result = compress.evaluate(GrayLevel(classes), str(data), image_size=(8, 8), progress=lines.append, **options)
    return result, "\n".join(lines)


# Folders.


def test_folder_called_train_beside_classes_is_a_class(tmp_path):
    save_classes(tmp_path, {"bus": 0, "plane": 1, "train": 2})
    result, said = evaluate(3, tmp_path, class_names=["bus", "plane", "train"])
    assert (result.images, result.metrics["accuracy"]) == (6, 1.0)
    assert "train" in said
    assert len(compress.open_images(str(tmp_path))) == 6


def test_splits_are_read_and_said(tmp_path):
    save_classes(tmp_path / "train", {"cat": 1, "dog": 0})  # wrong on purpose
    save_classes(tmp_path / "val", {"cat": 0, "dog": 1}, count=3)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "notes.txt").write_text("no image")
    result, said = evaluate(2, tmp_path, class_names=["cat", "dog"])
    assert (result.images, result.metrics["accuracy"]) == (6, 1.0)
    assert "val is read" in said
    assert len(compress.open_images(str(tmp_path), labeled=True)) == 4


def test_train_alone_is_nothing_to_validate_on(tmp_path):
    save_classes(tmp_path / "train", {"cat": 0, "dog": 1})
    with pytest.raises(UsageError):
        evaluate(2, tmp_path)
    assert evaluate(2, tmp_path / "train")[0].metrics["accuracy"] == 1.0


# Labels.


def test_numbered_folders_of_unknown_order_ask(tmp_path):
    save_classes(tmp_path, {"1": 0, "2": 1, "10": 2})
    command = ("eval", register_module(GrayLevel(3)), "--data", tmp_path, "--image-size", "8", "--json")
    assert "--label-order" in read_error(run(*command), 2)
    assert read_result(run(*command, "--label-order", "number"))["metrics"]["accuracy"] == 1.0
    # as text 10 comes before 2, so two of three classes are exchanged
    assert read_result(run(*command, "--label-order", "text"))["metrics"]["accuracy"] == pytest.approx(1 / 3)
    assert read_result(run(*command, "--class-names", "1,2,10"))["metrics"]["accuracy"] == 1.0


def test_some_numbered_classes_are_not_shifted(tmp_path):
    save_classes(tmp_path, {"1": 0, "2": 1, "3": 2})  # the model has seen 1 to 4
    with pytest.raises(UsageError, match="--class-names"):
        evaluate(4, tmp_path)
    assert evaluate(4, tmp_path, class_names=["1", "2", "3", "4"])[0].metrics["accuracy"] == 1.0
    assert evaluate(3, tmp_path)[0].metrics["accuracy"] == 1.0  # all classes: both orders agree


def test_distill_asks_for_the_order_of_numbered_folders(tmp_path):
    save_classes(tmp_path / "val", {"1": 0, "2": 1, "10": 2})
    with pytest.raises(UsageError, match="--label-order"):
        compress.distill(
            GrayLevel(3), student="wrn16_1", unlabeled="embedded/photos", validation=str(tmp_path / "val"), method="kd",
            steps=1, batch_size=2, image_size=(8, 8), output_dir=tmp_path / "run", settings={"data.views": 1},
        )  # fmt: skip
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_names_are_compared_after_normalization(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Café")  # as file systems of macOS store it
    save_classes(tmp_path, {decomposed: 1, "STRASSE": 0})
    assert evaluate(2, tmp_path, class_names=["straße", "café"])[0].metrics["accuracy"] == 1.0


# Files that are not read.


def test_pictures_that_are_not_read_are_counted_by_ending(tmp_path):
    save_classes(tmp_path, {"a": 0, "b": 1})
    for name in ("a/1.HEIC", "a/2.heic", "b/raw.CR2", "b/notes.txt"):
        (tmp_path / name).write_bytes(b"\x00")
    (tmp_path / "b" / "photo").write_bytes((tmp_path / "b" / "0.png").read_bytes())
    result, said = evaluate(2, tmp_path)
    assert result.images == 4
    assert "4 files (2 .heic, 1 without an ending, 1 .cr2)" in said


def test_images_that_a_run_wrote_are_no_input(tmp_path):
    save_classes(tmp_path, {"a": 0, "b": 1})
    run_dir = tmp_path / "runs" / "mine"
    run_dir.mkdir(parents=True)
    (run_dir / "compress-run.json").write_text('{"schema": 1, "identity": {}}')
    for name in ("compress-images/mosaics-0000100.png", "compress-pool/0 a/0-0000001.png", "compress-pool.png"):
        save_gray(run_dir / name, 1)
    result, said = evaluate(2, tmp_path)
    assert (result.images, result.metrics["accuracy"]) == (4, 1.0)
    assert "left out 3 images" in said
    save_gray(run_dir / "holiday.png", 1)  # of the user
    assert len(compress.open_images(str(tmp_path))) == 5
    assert len(compress.open_images(str(run_dir / "compress-pool"))) == 1  # asked for by its name


def test_images_of_earlier_releases_are_no_input(tmp_path):
    save_gray(tmp_path / "mine" / "1.png", 0)
    run_dir = tmp_path / "run"
    save_gray(run_dir / "images" / "mosaics-0000100.png", 1)
    save_gray(run_dir / "images" / "cat.png", 1)
    save_gray(run_dir / "pool" / "0 a" / "0-0000001.png", 1)
    assert len(compress.open_images(str(tmp_path))) == 4  # without the recipe of a run, they are the user's
    (run_dir / "recipe.yaml").write_text("# 2026-12-01 13:18 UTC; python 3.11.7, compress-distill 0.1.0\ntask: {}\n")
    assert len(compress.open_images(str(tmp_path))) == 2


@pytest.mark.parametrize(("bad", "is_allowed"), [(1, True), (2, False)])
def test_one_bad_picture_is_allowed_in_a_small_folder(tmp_path, bad, is_allowed):
    save_classes(tmp_path, {"a": 0, "b": 1}, count=3)
    for i in range(bad):
        (tmp_path / "a" / f"{i}.png").write_bytes(b"no picture")
    if is_allowed:
        result, _ = evaluate(2, tmp_path)
        assert (result.images, result.unreadable, result.metrics["accuracy"]) == (5, 1, 1.0)
        with pytest.raises(CompressError):
            evaluate(2, tmp_path, max_unreadable=0.0)
    else:
        with pytest.raises(CompressError):
            evaluate(2, tmp_path)


# Shards.


def encode(label: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (STEP * label,) * 3).save(buffer, kind)
    return buffer.getvalue()


def write_shard(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


def test_shards_take_the_main_picture_and_the_class_file(tmp_path):
    members: dict[str, bytes] = {}
    for i, label in enumerate((0, 2, 1)):
        members |= {
            f"{i:03d}.seg.png": encode(3), f"{i:03d}.txt": b"3", f"{i:03d}.png": encode(3),
            f"{i:03d}.jpg": encode(label, "JPEG"), f"{i:03d}.cls": str(label).encode(),
        }  # fmt: skip
    members["003.heic"] = b"\x00"
    result, said = evaluate(3, write_shard(tmp_path / "data.tar", members))
    assert (result.images, result.metrics["accuracy"]) == (3, 1.0)
    assert "left 6 files (3 .png, 3 .seg.png)" in said
    assert "1 file (1 .heic)" in said


# Values.


def save_deep(path: Path, label: int, white: float, kind: type, tags: dict[int, Any] | None = None) -> None:
    """Save a grayscale file whose value `white` is white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((8, 8), white * STEP * label / 255).astype(kind)
    Image.fromarray(values).save(path, **({} if tags is None else {"tiffinfo": tags}))


@pytest.mark.parametrize(
    ("ending", "white", "kind", "tags"),
    [
        ("tif", 4095, np.uint16, {281: 4095}),  # 12 bits, declared: MaxSampleValue
        ("png", 65535, np.uint16, None),
        ("tif", 1.0, np.float32, {}),
        ("tif", 1000.0, np.float32, {340: 0.0, 341: 1000.0}),  # declared: SMinSampleValue, SMaxSampleValue
    ],
)
def test_deep_images_are_scaled_by_what_they_declare(tmp_path, ending, white, kind, tags):
    for label in (1, 2, 3):
        save_deep(tmp_path / str(label) / f"x.{ending}", label, white, kind, tags)
    result, _ = evaluate(4, tmp_path, class_names=["0", "1", "2", "3"])
    assert (result.images, result.metrics["accuracy"]) == (3, 1.0)


@pytest.mark.parametrize(
    ("ending", "white", "kind"), [("png", 4095, np.uint16), ("tif", 4095, np.uint16), ("tif", 255.0, np.float32)]
)
def test_deep_images_of_unknown_range_are_refused(tmp_path, ending, white, kind):
    for label in (1, 2, 3):
        save_deep(tmp_path / str(label) / f"x.{ending}", label, white, kind)
    with pytest.raises(CompressError):
        evaluate(4, tmp_path, class_names=["0", "1", "2", "3"])


def test_notes_are_status_lines_and_no_part_of_the_result(tmp_path):
    save_classes(tmp_path / "test", {"a": 0, "b": 1})
    save_classes(tmp_path / "train", {"a": 0, "b": 1})
    result = run("eval", register_module(GrayLevel(2)), "--data", tmp_path, "--image-size", "8", "--json")
    assert json.loads(result.stdout)["images"] == 4
    assert "test is read" in result.stderr
