"""Ranges that an engine is asked for, against what the file leaves open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_cases as cases
import pytest
from engine_cases import engine_of

from exporters.errors import ExportError
from exporters.tensorrt.metadata import ShapeProfile, TensorSpec
from exporters.tensorrt.options import ShapeRanges, create_profile


def test_a_profile_is_what_the_file_fixes_and_ranges_for_what_it_leaves_open() -> None:
    shapes = ShapeRanges((1, 2, 4), ((8, 9), (16, 17), (32, 33)))
    images = TensorSpec(("n", 3, "h", "w"), "float32")
    assert create_profile(Path("net.onnx"), images, shapes) == ShapeProfile(
        (1, 3, 8, 9), (2, 3, 16, 17), (4, 3, 32, 33)
    )
    images = TensorSpec(("n", "h", "w", 3), "uint8")
    assert create_profile(Path("net.onnx"), images, shapes) == ShapeProfile(
        (1, 8, 9, 3), (2, 16, 17, 3), (4, 32, 33, 3)
    )
    images = TensorSpec((2, 3, 8, 8), "float32")
    assert create_profile(Path("net.onnx"), images, ShapeRanges((2, 2, 2))).opt == (2, 3, 8, 8)


def test_open_channels_are_refused() -> None:
    with pytest.raises(ExportError, match="leaves the channels open"):
        create_profile(Path("net.onnx"), TensorSpec((1, "c", 8, 8), "float32"), ShapeRanges())


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"batch": (1, 8, 4)}, "batch: found 1:8:4"),
        ({"batch": (0, 1, 1)}, "batch: found 0:1:1"),
        ({"size": ((8, 8), (16, 4), (16, 16))}, "width: found 8:4:16"),
    ],
)
def test_ranges_that_are_none_are_refused(wish: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        ShapeRanges(**wish)


def test_shapes_that_the_file_contradicts_are_refused_in_one_sentence(tmp_path: Path) -> None:
    source = cases.classifier(tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=r"net\.onnx: its height is fixed to 8, asked for 16;"):
        engine_of(source, ShapeRanges(cases.BATCH, (16, 10)))
    with pytest.raises(ExportError, match="its batch is fixed to 2, asked for 1:8:64"):
        engine_of(cases.classifier(tmp_path / "fixed.onnx", batch=2))


def test_a_size_that_is_open_and_not_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="leaves the height open, and no range was given"):
        engine_of(cases.segmenter(tmp_path / "maps.onnx"))
