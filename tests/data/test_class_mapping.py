"""Folders of labeled images map to the model's classes by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from compress.data import open_images
from compress.data.cache import build_cache
from compress.data.class_mapping import map_labels, match_class_names, match_class_numbers
from compress.errors import UsageError

MODEL = ["cat", "Dog", "T-shirt/top"]


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (["Dog", "T-shirt/top", "cat"], MODEL, [1, 2, 0]),
        (["dog", "tshirt-top"], MODEL, [1, 2]),
        (["dog", "wolf"], MODEL, None),
        (["dog", "DOG"], MODEL, None),
        (["a", "A"], ["A", "a"], [1, 0]),
        (["STRASSE", "cafe\u0301"], ["café", "straße"], [1, 0]),
        (["\uff43\uff41\uff54"], MODEL, [0]),
        (["c"], ["C", "C++"], [0]),
        (["c-"], ["C", "C++"], None),
        (["n01440764", "n01443537"], None, None),
        (["n01440764", "n01443537"], ["tench", "goldfish"], None),
    ],
)
def test_folder_names_determine_classes(names, known, expected) -> None:
    assert match_class_names(names, known) == expected


@pytest.mark.parametrize(
    ("names", "classes", "order", "expected"),
    [
        (["0 cat", "2 T-shirt-top"], 3, None, [0, 2]),
        (["00", "01", "07"], 10, None, [0, 1, 7]),
        (["00", "01", "07"], 12, None, [0, 1, 7]),
        (["1", "2", "3"], 3, None, [0, 1, 2]),
        (["1", "2", "10"], 3, "number", [0, 1, 2]),
        (["1", "2", "10"], 3, "text", [0, 2, 1]),
        (["0", "10"], 12, "number", [0, 10]),
        (["0", "10", "2"], 12, "text", [0, 2, 4]),
        (["1", "01"], 3, None, None),
        (["1", "cat"], 3, None, None),
        (["7", "8"], 3, None, None),
    ],
)
def test_numbers_of_folders_determine_classes(names, classes, order, expected) -> None:
    assert match_class_numbers(names, classes, order, are_indices=False, spec="x") == expected


@pytest.mark.parametrize(("names", "classes"), [(["1", "2", "10"], 3), (["0", "10"], 12), (["1", "2", "3"], 4)])
def test_ambiguous_numbers_are_refused(names, classes) -> None:
    with pytest.raises(UsageError):
        match_class_numbers(names, classes, None, are_indices=False, spec="x")


def test_numbers_of_a_pool_are_those_of_the_classes() -> None:
    assert match_class_numbers(["1", "2", "3"], 4, None, are_indices=True, spec="x") == [1, 2, 3]


def folder(at: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (at / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(at / name / "a.png")
    return at


def labels(at: Path, tmp_path: Path, classes: int, known: list[str] | None) -> tuple[dict[int, int], list[str]]:
    """Gray level -> label, and the progress lines."""
    images = open_images(str(at), root=None, split="val", labeled=True)
    cached = build_cache(images, image_size=(8, 8), folder=tmp_path / "cache", views=1, progress=lambda _: None)
    lines: list[str] = []
    mapped = map_labels(cached, classes, known, spec="mine", progress=lines.append)
    assert mapped.labels is not None
    return dict(zip(mapped.pixels[:, 0, 0, 0].tolist(), mapped.labels.tolist(), strict=True)), lines


def test_labels_are_model_classes(tmp_path: Path) -> None:
    at = folder(tmp_path / "x", ["t-shirt top", "dog"])
    mapping, (line,) = labels(at, tmp_path, 3, MODEL)
    assert mapping == {0: 2, 10: 1}
    assert "cat" in line


def test_unknown_names_use_folder_order(tmp_path: Path) -> None:
    names = ["class10", "class2", "Class3"]
    at = folder(tmp_path / "x", names)
    reference = ImageFolder(str(at)).class_to_idx
    mapping, (line,) = labels(at, tmp_path, 3, MODEL)
    assert mapping == {10 * i: reference[name] for i, name in enumerate(names)}
    assert "Class3 is cat" in line
    with pytest.raises(UsageError, match=r"mine: found 3 .* 4"):
        labels(at, tmp_path, 4, [*MODEL, "owl"])


def test_numeric_folders_sort_by_value(tmp_path: Path) -> None:
    at = folder(tmp_path / "x", [str(i) for i in range(11)])
    assert open_images(str(at), labeled=True).class_names == [str(i) for i in range(11)]
    with pytest.raises(UsageError, match="--label-order"):
        labels(at, tmp_path, 11, None)
