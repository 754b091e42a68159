"""Calibration: ranges of the activations, in bounded memory."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters.errors import ExportError
from exporters.quantization.calibration import CALIBRATORS, ReferenceOutputs, calibrate

METHODS = ("minmax", "percentile", "entropy")


def network(path: Path, *, gain: float = 1.0, labels: bool = False) -> Path:
    """images [n, 3, h, w] -> "mixed" by a 1x1 convolution -> "positive" -> output."""
    weight = gain * np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["mixed"]),
        helper.make_node("Relu", ["mixed"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["labels"], axis=1),
    ]
    last = ("labels", TensorProto.INT64) if labels else ("logits", TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes if labels else nodes[:3],
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info(*last, ["n", None, 1, 1])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def mixed(path: Path, images: NDArray) -> NDArray:
    weight = numpy_helper.to_array(onnx.load(path).graph.initializer[0])[:, :, 0, 0]
    return np.einsum("oi,nihw->nohw", weight, images)


def pictures(count: int, size: int = 8, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, 3, size, size), dtype=np.float32)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return network(tmp_path_factory.mktemp("calibration") / "net.onnx")


def test_minmax_covers_all_batches(file: Path) -> None:
    batches = [pictures(3, 8, 1), pictures(1, 12, 2), 2 * pictures(2, 5, 3)]
    result = calibrate(file, lambda: batches, "minmax")
    values = np.concatenate([mixed(file, batch).ravel() for batch in batches])
    assert (result.method, result.images) == ("minmax", 6)
    assert result.ranges["mixed"] == pytest.approx((values.min(), values.max()), rel=1e-5)
    assert result.ranges["positive"] == pytest.approx((0, values.max()), rel=1e-5)
    assert result.ranges["images"] == pytest.approx((min(b.min() for b in batches), max(b.max() for b in batches)))


def test_percentile_clips_both_ends_equally(file: Path) -> None:
    images = pictures(40, 32)
    result = calibrate(file, lambda: np.split(images, 8), "percentile")
    values = mixed(file, images)
    bin_width = 2 * np.abs(values).max() / 2048
    for end, percent in zip(result.ranges["mixed"], (0.005, 99.995), strict=True):
        assert end == pytest.approx(np.percentile(values, percent), abs=2 * float(bin_width))


def test_dark_first_batch_does_not_matter(file: Path) -> None:
    dim, bright = 1e-6 * pictures(4), pictures(4)
    first = calibrate(file, lambda: [dim, bright], "percentile").ranges["mixed"]
    last = calibrate(file, lambda: [bright, dim], "percentile").ranges["mixed"]
    assert first == last


def test_percentile_contains_its_share(file: Path) -> None:
    """With one pixel a thousand times as bright as the others, all others lie in the bin at zero."""
    images = pictures(40, 32)
    images[0, :, 0, 0] = 3000
    low, high = calibrate(file, lambda: np.split(images, 8), "percentile").ranges["images"]
    assert (low <= 0.01, high >= 0.99) == (True, True)
    assert high < 10


def test_entropy_keeps_quarter_to_all(file: Path) -> None:
    images = np.random.default_rng(0).standard_cauchy((8, 3, 16, 16)).astype(np.float32)
    least, most = calibrate(file, lambda: [images], "minmax").ranges["mixed"]
    low, high = calibrate(file, lambda: [images], "entropy").ranges["mixed"]
    reach = max(-least, most)
    assert least <= low < high <= most
    assert max(-low, high) < 0.5 * reach, "nearly all values are small, so the few large ones are cut off"
    assert max(-low, high) >= 0.24 * reach


@pytest.mark.slow
@pytest.mark.parametrize("method", ["minmax", "percentile"])  # entropy collects as percentile does
def test_memory_independent_of_image_count(file: Path, method) -> None:
    alive: set[int] = set()
    most: list[int] = []

    def batches(count: int) -> Iterator[NDArray]:
        for number in range(count):
            batch = pictures(2, 64, number)
            alive.add(number)
            weakref.finalize(batch, alive.discard, number)
            most.append(len(alive))
            yield batch
            del batch

    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            calibrate(file, lambda: batches(count), method)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # loads the libraries
    few, many = peak(8), peak(64)
    assert max(most) == 1, "a batch was still held when the next was made"
    assert many < few + pictures(2, 64, 0).nbytes, "56 more batches cost less than one"
    assert not alive


def test_only_selected_tensors_are_calibrated(file: Path) -> None:
    assert set(calibrate(file, lambda: [pictures(1)], "minmax", tensors={"mixed"}).ranges) == {"mixed"}


def test_known_extremes_save_a_pass(file: Path) -> None:
    passes = []

    def batches() -> list[NDArray]:
        passes.append(1)
        return [pictures(4)]

    extremes = calibrate(file, batches, "minmax")
    known = calibrate(file, batches, "percentile", extremes=extremes)
    assert len(passes) == 2
    assert known == calibrate(file, batches, "percentile")
    assert len(passes) == 4


@pytest.mark.parametrize(
    ("batches", "datum"),
    [
        ([], r"net\.onnx"),
        ([np.zeros((0, 3, 8, 8), np.float32)], r"net\.onnx"),
        ([pictures(2), np.full((1, 3, 8, 8), np.nan, np.float32)], "batch 1"),
        ([pictures(2).astype(np.float64)], "float64, expected float32"),
        ([np.zeros((2, 8, 8, 3), np.uint8)], "uint8, expected float32"),
        ([np.zeros((2, 5, 8, 8), np.float32)], "calibration images"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_invalid_calibration_images_raise(file: Path, method, batches, datum) -> None:
    with pytest.raises(ExportError, match=datum):
        calibrate(file, lambda: batches, method)


def test_overflow_names_tensor(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"mixed|positive|logits"):
        calibrate(network(tmp_path / "loud.onnx", gain=1e38), lambda: [1e3 * pictures(1)], "minmax")


def test_calibrators_are_silent(file: Path, capsys) -> None:
    def batches() -> Iterator[NDArray]:
        print("made")
        yield pictures(1)

    calibrate(file, batches, "percentile")
    assert capsys.readouterr().out == "made\nmade\n"


def test_relative_error_of_logits(file: Path, tmp_path: Path) -> None:
    images = [pictures(3), pictures(2, 11)]
    reference = ReferenceOutputs(file, lambda: images, 4)
    assert reference.relative_error(file) == 0
    assert reference.relative_error(network(tmp_path / "louder.onnx", gain=1.25)) == pytest.approx(0.25, rel=1e-5)
    assert reference.relative_error(network(tmp_path / "infinite.onnx", gain=np.inf)) == np.inf
    assert [len(batch) for batch in ReferenceOutputs(file, lambda: images, 3).batches] == [3]


def test_relative_error_of_labels(tmp_path: Path) -> None:
    images = pictures(16, 3) - 0.5
    right = network(tmp_path / "right.onnx", labels=True)
    wrong = network(tmp_path / "wrong.onnx", gain=-1.0, labels=True)
    means = np.maximum(mixed(right, images), 0).mean((2, 3)), np.maximum(-mixed(right, images), 0).mean((2, 3))
    expected = (means[0].argmax(1) != means[1].argmax(1)).mean()
    assert 0 < expected < 1 or expected == 1
    assert ReferenceOutputs(right, lambda: [images], 16).relative_error(wrong) == pytest.approx(expected)


def test_every_calibrator_has_a_name() -> None:
    assert set(CALIBRATORS) == set(METHODS)
