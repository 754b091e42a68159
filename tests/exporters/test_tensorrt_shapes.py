"""Shape ranges of an engine combined with the open axes of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_files as cases
import pytest
from engine_files import engine_of

from exporters.errors import ExportError
from exporters.tensorrt.metadata import ShapeProfile, TensorSpec
from exporters.tensorrt.options import ShapeRanges, create_profile


def test_profile_combines_file_and_ranges() -> None:
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


def test_open_channels_raise() -> None:
    with pytest.raises(ExportError, match="open channels"):
        create_profile(Path("net.onnx"), TensorSpec((1, "c", 8, 8), "float32"), ShapeRanges())


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"batch": (1, 8, 4)}, "batch: found 1:8:4"),
        ({"batch": (0, 1, 1)}, "batch: found 0:1:1"),
        ({"size": ((8, 8), (16, 4), (16, 16))}, "width: found 8:4:16"),
    ],
)
def test_invalid_ranges_raise(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        ShapeRanges(**wish)


def test_shapes_contradicting_file(tmp_path: Path) -> None:
    source = cases.classifier(tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=r"net\.onnx: found height 8, expected 16"):
        engine_of(source, ShapeRanges(cases.BATCH, (16, 10)))
    with pytest.raises(ExportError, match="found batch 2, expected 1:8:64"):
        engine_of(cases.classifier(tmp_path / "fixed.onnx", batch=2))


def test_open_size_without_range(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="open height"):
        engine_of(cases.segmenter(tmp_path / "maps.onnx"))
