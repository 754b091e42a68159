"""Ranges of activations on real images, by ONNX Runtime's calibrators with bounded memory.

A calibrator sees one batch at a time. For each tensor it keeps two numbers (minmax) or one histogram of fixed width
(percentile, entropy). The ranges depend on network and images alone; `static` turns them into scales.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from onnxruntime.quantization import calibrate as ort

from compress.errors import first_line
from exporters.errors import ExportError
from exporters.runtimes.onnxruntime import create_session, runtime_errors

CalibrationMethod = Literal["minmax", "percentile", "entropy"]
Calibrator = Literal["auto", "minmax", "percentile", "entropy"]
#: Methods that "auto" compares; it takes the one closest to fp32. Entropy is not among them, because ONNX Runtime
#: searches its thresholds in Python, which takes longer than everything else together.
AUTO_METHODS: tuple[CalibrationMethod, ...] = ("minmax", "percentile")
Batch = NDArray[Any]
#: Returns the calibration images anew at each call: float32 [n, 3, h, w] in [0, 1], or uint8 [n, h, w, 3] if the file
#: takes uint8. Sizes of batches may differ where the file leaves them open.
BatchFunction = Callable[[], Iterable[Batch]]
#: name of a tensor -> (smallest, largest) value that int8 represents
Ranges = dict[str, tuple[float, float]]

PERCENTILE = 99.99  #: percentage of values inside the range; half of the rest is clipped at either end
#: Bins of a histogram over -a...a, where a is the largest |value|. Entropy tries every range of whole bins in Python,
#: which takes a second per tensor with as many bins as percentile has.
BINS: dict[CalibrationMethod, int] = {"percentile": 2048, "entropy": 512}
LEVELS = 128  #: bins that entropy merges to, so it keeps at least a quarter of the range
INPUT_TYPES = {"tensor(float)": np.dtype(np.float32), "tensor(uint8)": np.dtype(np.uint8)}


@dataclass(frozen=True)
class Calibration:
    """Ranges of activations."""

    method: CalibrationMethod
    ranges: Ranges
    images: int  #: number of images


def calibrate(
    model: Path,
    batches: BatchFunction,
    method: CalibrationMethod,
    *,
    tensors: Collection[str] | None = None,
    extremes: Calibration | None = None,
) -> Calibration:
    """Compute the ranges of float32 tensors of an ONNX file on all images.

    Args:
        model: The fp32 file.
        batches: Returns the calibration images.
        method: "minmax", "percentile" or "entropy".
        tensors: Names of the tensors; None: all.
        extremes: A minmax calibration of the same model and images. Percentile and entropy need it to lay out their
            histograms; without it, one more pass over the images is made.

    Raises:
        ExportError: There are no images, or they are not finite or not what the file takes.
    """
    if extremes is None:
        extremes = collect_ranges(model, batches, "minmax", tensors, None)
    return extremes if method == "minmax" else collect_ranges(model, batches, method, tensors, extremes)


def collect_ranges(
    model: Path,
    batches: BatchFunction,
    method: CalibrationMethod,
    tensors: Collection[str] | None,
    extremes: Calibration | None,
) -> Calibration:
    """Make one pass over the images."""
    images = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        with translate_errors(model):
            calibrator = CALIBRATORS[method](model, Path(directory) / "augmented.onnx", tensors)
        if extremes is not None:
            calibrator.collector = create_collector(method, extremes.ranges)
        name, dtype = image_input(calibrator.infer_session.get_inputs())
        for batch in validated_batches(batches, dtype, model):
            images += len(batch)
            with translate_errors(model):
                calibrator.collect_data(SingleBatchReader({name: batch}))
            del batch  # before the next one is made
        if not images:
            raise no_images_error(model)
        with translate_errors(model):
            ranges = extract_ranges(calibrator.compute_data())
    if extremes is not None and method == "percentile":
        ranges = widen_ranges(ranges, extremes.ranges)
    return Calibration(method, require_finite(ranges, model), images)


def no_images_error(model: Path) -> ExportError:
    return ExportError(f"{model.name}: found no calibration images, expected at least one, better some dozen.")


@contextlib.contextmanager
def translate_errors(model: Path) -> Iterator[None]:
    """Silence ONNX Runtime's calibrators and turn their exceptions into ExportError."""
    try:
        with silence_quantizer():
            yield
    except runtime_errors() as error:
        raise ExportError(
            f"{model.name}: does not run on the calibration images ({first_line(error)}); give images as the file "
            "takes them."
        ) from error


def image_input(inputs: Sequence[Any]) -> tuple[str, np.dtype[Any]]:
    """Return name and type of the only input."""
    if len(inputs) != 1 or inputs[0].type not in INPUT_TYPES:
        found = ", ".join(f"{each.name}: {each.type}" for each in inputs)
        raise ExportError(f"found inputs {found}; expected one, of float32 or uint8 images.")
    return inputs[0].name, INPUT_TYPES[inputs[0].type]


def validated_batches(batches: BatchFunction, dtype: np.dtype[Any], model: Path) -> Iterator[Batch]:
    """Yield the non-empty batches; none is held while the next one is made."""
    number = -1
    for batch in batches():
        number += 1  # enumerate would hold the batch
        if batch.dtype != dtype:
            raise ExportError(f"{model.name}: found calibration images of type {batch.dtype}, expected {dtype}.")
        if dtype == np.float32 and not np.isfinite(batch).all():
            raise ExportError(
                f"{model.name}: found NaN or infinity in batch {number} of the calibration images; remove the damaged "
                "images."
            )
        if batch.size:
            yield batch
        del batch


class SingleBatchReader(ort.CalibrationDataReader):
    """One batch, in the form that ONNX Runtime's calibrators take."""

    def __init__(self, feed: dict[str, Batch]) -> None:
        self.remaining = [feed]

    def get_next(self) -> dict[str, Batch] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.remaining.pop() if self.remaining else None


class SelectiveCalibrator(ort.CalibraterBase):
    """A calibrator of selected tensors, ready to collect."""

    collector: ort.HistogramCollector | None

    def __init__(self, model: Path, augmented: Path, tensors: Collection[str] | None, **settings: Any) -> None:
        super().__init__(model, augmented_model_path=str(augmented), **settings)
        self.selected = tensors
        self.augment_graph()
        self.create_inference_session()

    def select_tensors_to_calibrate(self, model: Any) -> tuple[set[str], dict[str, Any]]:
        tensors, infos = super().select_tensors_to_calibrate(model)
        return (tensors if self.selected is None else tensors & set(self.selected)), infos


class MinMaxCalibrator(SelectiveCalibrator, ort.MinMaxCalibrater):
    """Smallest and largest value. (Its own max_intermediate_outputs drops what it collected, in version 1.31.)"""


class PercentileCalibrator(SelectiveCalibrator, ort.PercentileCalibrater):
    """Percentiles of the values, not of their magnitudes: zero need not be in the middle."""


class EntropyCalibrator(SelectiveCalibrator, ort.EntropyCalibrater):
    """Range with the smallest Kullback-Leibler divergence between the histogram and itself in LEVELS bins."""


CALIBRATORS: dict[CalibrationMethod, Callable[[Path, Path, Collection[str] | None], Any]] = {
    "minmax": MinMaxCalibrator,
    "percentile": PercentileCalibrator,
    "entropy": EntropyCalibrator,
}


def create_collector(method: CalibrationMethod, ranges: Ranges) -> ort.HistogramCollector:
    """Return a collector with empty histograms as wide as the extremes.

    By default it lays them out by the first batch and adds bins of that width for later ones, without limit if the
    values of the first batch are small.
    """
    bins = BINS[method]
    collector = ort.HistogramCollector(method, False, bins, LEVELS, PERCENTILE, "same")
    for name, (low, high) in ranges.items():
        limit = np.float32(max(abs(low), abs(high)))
        edges = np.linspace(-limit, limit, bins + 1, dtype=np.float32)
        collector.histogram_dict[name] = (np.zeros(bins, np.int64), edges, np.float32(low), np.float32(high), limit)
    return collector


def extract_ranges(data: ort.TensorsData) -> Ranges:
    """Return one (smallest, largest) pair per tensor."""
    ends = {name: [float(np.squeeze(end)) for end in each.range_value] for name, each in data.items()}
    return {name: (low, high) for name, (low, high) in ends.items()}


def widen_ranges(ranges: Ranges, extremes: Ranges) -> Ranges:
    """Move the upper ends to the outer edge of their bins: ONNX Runtime takes the inner edge, which may be zero."""
    wider = {}
    for name, (low, high) in ranges.items():
        smallest, largest = extremes[name]
        bin_width = 2 * max(abs(smallest), abs(largest)) / BINS["percentile"]
        wider[name] = (low, min(high + bin_width, largest))
    return wider


def require_finite(ranges: Ranges, model: Path) -> Ranges:
    for name, ends in ranges.items():
        if not np.isfinite(ends).all():
            raise ExportError(f"{model.name}: {name} is not finite on the calibration images; check model and images.")
    return ranges


class ReferenceOutputs:
    """Some images and a file's outputs for them, to measure the error of other files."""

    def __init__(self, model: Path, batches: BatchFunction, images: int) -> None:
        """Run the file on the first batches that together hold at least `images` images."""
        session = create_session(model)
        self.name, dtype = image_input(session.get_inputs())
        self.batches: list[Batch] = []
        for batch in validated_batches(batches, dtype, model):
            self.batches.append(batch)
            if sum(map(len, self.batches)) >= images:
                break
        self.outputs = [self.run_session(session, batch) for batch in self.batches]

    def run_session(self, session: InferenceSession, batch: Batch) -> list[NDArray[Any]]:
        return [np.asarray(output) for output in session.run(None, {self.name: batch})]

    def relative_error(self, model: Path) -> float:
        """Return the root of the squared error of a file's outputs relative to their squares.

        For a file with labels alone, return the share of other labels. Infinite if an output is not finite.
        """
        session = create_session(model)
        error = scale = 0.0
        is_float: list[int] = []
        for batch, expected in zip(self.batches, self.outputs, strict=True):
            actual = self.run_session(session, batch)
            is_float = [i for i, output in enumerate(expected) if np.issubdtype(output.dtype, np.floating)]
            for i in is_float or range(len(expected)):
                x, y = np.float64(expected[i]), np.float64(actual[i])
                error += float(((x - y) ** 2).sum() if is_float else (x != y).sum())
                scale += float((x**2).sum() if is_float else x.size)
        share = error / scale if scale else error
        return (float(np.sqrt(share)) if is_float else share) if np.isfinite(share) else np.inf


@contextlib.contextmanager
def silence_quantizer() -> Iterator[None]:
    """Suppress the progress and command-line advice that ONNX Runtime's quantization prints and logs."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
