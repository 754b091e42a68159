"""Segmentation examples of a run: diverse images, predicted by the run's own models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.analysis.segmentation_examples import choose_diverse_images, predict_examples
from compress.data import open_images
from compress.data.cache import build_cache
from compress.models.card import ModelCard
from compress.training.launch import run_training
from compress.training.recipes import resolve_config
from compress.training.results import RunResult, overall_metrics
from profiles.records import read_records
from profiles.report.build import write_run_report
from profiles.report.overlays import IMAGE, load_overlays


def masks_with(*classes: tuple[int, ...]) -> np.ndarray:
    """Return one mask per tuple, with a row of each of its classes and 255 elsewhere."""
    masks = np.full((len(classes), 16, 16), 255, dtype=np.int64)
    for i, present in enumerate(classes):
        for row, c in enumerate(present):
            masks[i, row] = c
    return masks


def test_each_segment_gives_one_image():
    chosen = choose_diverse_images(masks_with(*[(0,)] * 50), 1)
    assert [i // 10 for i in chosen] == [0, 1, 2, 3, 4]
    assert all(3 <= i % 10 <= 6 for i in chosen[1:])


def test_all_classes_are_shown_if_possible():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sets: list[tuple[int, ...]] = [(0,)] * 40
        for segment, rare in enumerate(rng.permutation(np.arange(1, 11)).reshape(5, 2)):
            sets[8 * segment + int(rng.integers(8))] = (0, *map(int, rare))
        masks = masks_with(*sets)
        chosen = choose_diverse_images(masks, 11)
        assert set(np.unique(masks[chosen])) == {*range(11), 255}
        assert chosen == choose_diverse_images(masks, 11)


def test_tiny_objects_do_not_count():
    masks = np.zeros((2, 64, 64), dtype=np.int64)
    masks[0, 0, 0] = 1
    masks[1, :4] = 1
    assert choose_diverse_images(masks, 2, count=1) == [1]


def test_few_images_are_all_chosen():
    assert choose_diverse_images(masks_with((0,), (255,), (1,)), 2) == [0, 1, 2]


def test_examples_of_the_demo_show_all_classes(tmp_path: Path):
    images = open_images("embedded/fashion-scenes", split="val", labeled=True).subsample(60)
    cache = build_cache(images, image_size=(64, 64), folder=tmp_path)
    card = ModelCard("deeplab_wrn16_1", 11, (64, 64), task="segmentation", class_names=images.class_names)

    class Brightest(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x[:, :1].repeat(1, 8, 1, 1) - 1], 1)

    examples = predict_examples(cache, {"brightest": Brightest()}, card)
    assert {c for c in range(11) if (examples.truth == c).any()} == set(range(11))
    assert np.array_equal(examples.predictions["brightest"], examples.images.argmax(-1))
    assert examples.class_names == images.class_names


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    """Six bright squares of class 1 on a dark background of class 0, with an ignored border."""
    folder = tmp_path_factory.mktemp("squares")
    for part in ("train", "val"):
        for i in range(6):
            at = np.random.default_rng(i).integers(2, 20, 2)
            mask = np.zeros((40, 40), dtype=np.uint8)
            mask[at[0] : at[0] + 12, at[1] : at[1] + 12] = 1
            image = np.stack([200 * mask + 20] * 3, 2).astype(np.uint8)
            mask[[0, -1]] = 255
            for kind, array in (("images", image), ("masks", mask)):
                (folder / part / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / part / kind / f"{i}.png")
    (folder / "classes.txt").write_text("background\nsquare\n")
    return folder


def train(output_dir: Path, squares: Path, **arguments: object) -> RunResult:
    config, method = resolve_config(
        student="deeplab_wrn16_1", validation=str(squares), steps=2, batch_size=4, device="cpu", precision="32",
        settings={"data.views": 1}, **arguments,
    )  # fmt: skip
    result = run_training(config, method, output_dir=output_dir)
    assert result is not None
    return result


def test_run_saves_examples_of_its_models(tmp_path: Path, squares: Path, photos: Path):
    teacher = train(tmp_path / "t", squares, labeled=str(squares), image_size=(32, 32), method="supervised")
    assert teacher.overlays == tmp_path / "t" / IMAGE
    alone = load_overlays(tmp_path / "t")
    assert list(alone.predictions) == ["Supervised deeplab_wrn16_1"]
    student = train(tmp_path / "kd", squares, teacher=str(teacher.best), unlabeled=str(photos), method="kd")
    both = load_overlays(tmp_path / "kd")
    assert list(both.predictions) == ["teacher", "KD deeplab_wrn16_1"]
    assert np.array_equal(both.images, alone.images)
    assert np.array_equal(both.predictions["teacher"], alone.predictions["Supervised deeplab_wrn16_1"])
    assert both.truth.max() == 255
    assert set(overall_metrics(student.metrics)) == {"miou", "pixel_accuracy"}
    assert "iou/square" in student.metrics
    (record,) = read_records(tmp_path / "kd")
    assert set(record.run["history"][-1]) == {"step", "seconds", "miou", "pixel_accuracy"}
    text = write_run_report(tmp_path / "kd", [tmp_path / "kd"]).markdown.read_text()
    assert text.count(f"<{IMAGE}>") == 1
    assert "| square | " in text
