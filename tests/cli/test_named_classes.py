"""Labelled folders that are named as the model's classes are measured as those, in whatever order they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from invoking import TEACHER, answer, run

from compress.data import open_images
from compress.models.loading import load_model

EACH = 6


def write(at: Path, folders: dict[int, str]) -> None:
    """The first test images of the classes, each in its folder."""
    images = open_images("embedded/fashion", root=None, split="val", labelled=True)
    assert images.labels is not None
    for label, name in folders.items():
        (at / name).mkdir(parents=True)
        for i in (images.labels == label).nonzero()[0][:EACH]:
            images.read(int(i)).save(at / name / f"{i}.png")


@pytest.mark.parametrize("leave_out", [[], [0, 3]])
@pytest.mark.parametrize("called", ["by their names", "as a pool's"])
def test_the_score_is_that_of_the_classes_the_folders_are_named_after(tmp_path: Path, called, leave_out) -> None:
    _, card = load_model(TEACHER)
    assert card.class_names is not None
    assert card.class_names != sorted(card.class_names)
    names = {i: name.replace("/", "-") for i, name in enumerate(card.class_names) if i not in leave_out}
    if called == "as a pool's":
        names = {i: f"{i} {name}" for i, name in names.items()}
    write(tmp_path / "val", names)
    found = run("eval", TEACHER, "--data", tmp_path / "val", "--json")
    assert answer(found)["metrics"]["accuracy"] > 0.75
    said = f"no images of {len(leave_out)} of the model's 10 classes ({card.class_names[0]}, {card.class_names[3]})"
    assert (said in found.stderr) == bool(leave_out)


def test_folders_that_are_named_otherwise_are_counted_and_taken_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "val", {i: f"class-{i}" for i in range(10)})
    found = run("eval", TEACHER, "--data", tmp_path / "val", "--json")
    assert answer(found)["metrics"]["accuracy"] > 0.75
    assert "not named as the model's classes; by their order class-0 is" in found.stderr
    (tmp_path / "val" / "class-9").rename(tmp_path / "gone")
    found = run("eval", TEACHER, "--data", tmp_path / "val")
    assert found.exit_code == 2
    assert "found 9 classes, expected the model's 10" in found.stderr
