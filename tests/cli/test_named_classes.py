"""Labeled directories are matched with the model's classes by name, or by order."""

from __future__ import annotations

from pathlib import Path

import pytest
from invoking import TEACHER, read_result, run

from compress.data import open_images
from compress.models.loading import load_model

EACH = 6


def write(at: Path, folders: dict[int, str]) -> None:
    """The first test images of the classes, each in its folder."""
    images = open_images("embedded/fashion", root=None, split="val", labeled=True)
    assert images.labels is not None
    for label, name in folders.items():
        (at / name).mkdir(parents=True)
        for i in (images.labels == label).nonzero()[0][:EACH]:
            images.read_image(int(i)).save(at / name / f"{i}.png")


@pytest.mark.parametrize("leave_out", [[], [0, 3]])
@pytest.mark.parametrize("called", ["by their names", "as a pool's"])
def test_directories_match_class_names(tmp_path: Path, called, leave_out) -> None:
    _, card = load_model(TEACHER)
    assert card.class_names is not None
    assert card.class_names != sorted(card.class_names)
    names = {i: name.replace("/", "-") for i, name in enumerate(card.class_names) if i not in leave_out}
    if called == "as a pool's":
        names = {i: f"{i} {name}" for i, name in names.items()}
    write(tmp_path / "val", names)
    found = run("eval", TEACHER, "--data", tmp_path / "val", "--json")
    assert read_result(found)["metrics"]["accuracy"] > 0.75
    missing = f"{card.class_names[0]}, {card.class_names[3]}"
    assert (missing in found.stderr) == bool(leave_out)


def test_other_directory_names_match_by_order(tmp_path: Path) -> None:
    write(tmp_path / "val", {i: f"class-{i}" for i in range(10)})
    found = run("eval", TEACHER, "--data", tmp_path / "val", "--json")
    assert read_result(found)["metrics"]["accuracy"] > 0.75
    assert "class-0" in found.stderr
    (tmp_path / "val" / "class-9").rename(tmp_path / "gone")
    found = run("eval", TEACHER, "--data", tmp_path / "val")
    assert found.exit_code == 2
    assert "9" in found.stderr
