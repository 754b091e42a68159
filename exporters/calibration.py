"""Which values run through a network on real images: ONNX Runtime's calibrators, fed so that memory does not grow.

A calibrator sees one batch at a time and keeps of it two numbers (minmax) or one histogram of fixed width (percentile,
entropy) for each tensor. Ranges are of the network and its images alone; what a scheme makes of them is in `int8`.
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

from exporters.failure import ExportError, first_line
from exporters.runtime import FAILURES, open_session

Method = Literal["minmax", "percentile", "entropy"]
Calibrator = Literal["auto", "minmax", "percentile", "entropy"]
#: a calibrator that is none of the others: it takes the one of these that answers closest to fp32. Entropy is not among
#: them: ONNX Runtime searches its thresholds in Python, which takes longer than all the rest together
AUTO: tuple[Method, ...] = ("minmax", "percentile")
Batch = NDArray[Any]
#: makes the calibration images anew at each call: float32 [n, 3, h, w] in [0, 1], or uint8 [n, h, w, 3] where the file
#: takes bytes; the sizes of two batches may differ where the file leaves them open
Batches = Callable[[], Iterable[Batch]]
#: name of a tensor -> (lowest, highest) value that int8 shall tell from its neighbours
Ranges = dict[str, tuple[float, float]]

PERCENTILE = 99.99  #: share of the values, in percent, that stay inside; half of the rest goes at either end
#: of a histogram over -a...a, where a is the greatest |value|. Entropy looks at every range that is a whole number of
#: bins wide, in Python: a second a tensor with as many bins as percentile has
BINS: dict[Method, int] = {"percentile": 2048, "entropy": 512}
LEVELS = 128  #: that entropy merges bins to: the least that it cuts to is a quarter of the range
TYPES = {"tensor(float)": np.dtype(np.float32), "tensor(uint8)": np.dtype(np.uint8)}


@dataclass(frozen=True)
class Calibration:
    """What was found on the images."""

    method: Method
    ranges: Ranges
    images: int  #: that were seen


def calibrate(
    model: Path,
    batches: Batches,
    method: Method,
    *,
    tensors: Collection[str] | None = None,
    extremes: Calibration | None = None,
) -> Calibration:
    """The ranges of the float32 tensors (or of those in `tensors`) of an ONNX file on all images.

    Percentile and entropy need the extremes first, to lay their histograms: give a minmax calibration of the same model
    and images as `extremes`, or a pass over the images more is made. Raises ExportError for images that are none, not
    finite, of another type than the file takes or of a shape that it does not run on.
    """
    if extremes is None:
        extremes = run(model, batches, "minmax", tensors, None)
    return extremes if method == "minmax" else run(model, batches, method, tensors, extremes)


def run(
    model: Path, batches: Batches, method: Method, tensors: Collection[str] | None, extremes: Calibration | None
) -> Calibration:
    images = 0
    with tempfile.TemporaryDirectory() as folder:
        with speaking_of(model):
            calibrater = CALIBRATERS[method](model, Path(folder) / "augmented.onnx", tensors)
        if extremes is not None:
            calibrater.collector = collector(method, extremes.ranges)
        name, kind = taken(calibrater.infer_session.get_inputs())
        for batch in checked(batches, kind, model):
            images += len(batch)
            with speaking_of(model):
                calibrater.collect_data(Once({name: batch}))
            del batch  # before the next one is made
        if not images:
            raise no_images(model)
        with speaking_of(model):
            ranges = found(calibrater.compute_data())
    if extremes is not None and method == "percentile":
        ranges = outer(ranges, extremes.ranges)
    return Calibration(method, finite(ranges, model), images)


def no_images(model: Path) -> ExportError:
    return ExportError(f"{model.name}: found no images to calibrate on; expected some dozen, at least one.")


@contextlib.contextmanager
def speaking_of(model: Path) -> Iterator[None]:
    """ONNX Runtime's calibrators, silent, and with one sentence for what they raise."""
    try:
        with quiet():
            yield
    except FAILURES as error:
        raise ExportError(
            f"{model.name}: does not run on the calibration images ({first_line(error)}); "
            "give images as the file takes them."
        ) from error


def taken(inputs: Sequence[Any]) -> tuple[str, np.dtype[Any]]:
    """Name and type of the one input."""
    if len(inputs) != 1 or inputs[0].type not in TYPES:
        kinds = ", ".join(f"{each.name}: {each.type}" for each in inputs)
        raise ExportError(f"found inputs {kinds}; expected one, of float32 or uint8 images.")
    return inputs[0].name, TYPES[inputs[0].type]


def checked(batches: Batches, kind: np.dtype[Any], model: Path) -> Iterator[Batch]:
    """The batches one by one; none is held while the next is made."""
    number = -1
    for batch in batches():
        number += 1  # enumerate would hold the batch
        if batch.dtype != kind:
            raise ExportError(f"{model.name}: found calibration images of type {batch.dtype}, expected {kind}.")
        if kind == np.float32 and not np.isfinite(batch).all():
            raise ExportError(
                f"{model.name}: found NaN or infinity in batch {number} of the calibration images; "
                "take out the images that are damaged."
            )
        if batch.size:
            yield batch
        del batch


class Once(ort.CalibrationDataReader):
    """One batch, as ONNX Runtime's calibrators want to be fed."""

    def __init__(self, feed: dict[str, Batch]) -> None:
        self.left = [feed]

    def get_next(self) -> dict[str, Batch] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.left.pop() if self.left else None


class Chosen(ort.CalibraterBase):
    """A calibrator of some tensors only, ready to collect."""

    collector: ort.HistogramCollector | None

    def __init__(self, model: Path, augmented: Path, tensors: Collection[str] | None, **settings: Any) -> None:
        super().__init__(model, augmented_model_path=str(augmented), **settings)
        self.chosen = tensors
        self.augment_graph()
        self.create_inference_session()

    def select_tensors_to_calibrate(self, model: Any) -> tuple[set[str], dict[str, Any]]:
        tensors, infos = super().select_tensors_to_calibrate(model)
        return (tensors if self.chosen is None else tensors & set(self.chosen)), infos


class MinMax(Chosen, ort.MinMaxCalibrater):
    """Called once a batch it merges ranges. (Its own max_intermediate_outputs drops what it collected, in 1.31.)"""


class Percentile(Chosen, ort.PercentileCalibrater):
    """Of the values themselves, not of their magnitude: zero need not be in the middle."""


class Entropy(Chosen, ort.EntropyCalibrater):
    """The range that loses least information, as Kullback-Leibler divergence of the histogram in LEVELS from itself."""


CALIBRATERS: dict[Method, Callable[[Path, Path, Collection[str] | None], Any]] = {
    "minmax": MinMax,
    "percentile": Percentile,
    "entropy": Entropy,
}


def collector(method: Method, ranges: Ranges) -> ort.HistogramCollector:
    """A collector with empty histograms that reach as far as the values do.

    Left to itself it lays them by the first batch and adds bins of that width for later ones, without end if the first
    batch had little in it.
    """
    bins = BINS[method]
    made = ort.HistogramCollector(method, False, bins, LEVELS, PERCENTILE, "same")
    for name, (low, high) in ranges.items():
        reach = np.float32(max(abs(low), abs(high)))
        edges = np.linspace(-reach, reach, bins + 1, dtype=np.float32)
        made.histogram_dict[name] = (np.zeros(bins, np.int64), edges, np.float32(low), np.float32(high), reach)
    return made


def found(data: ort.TensorsData) -> Ranges:
    """One (lowest, highest) a tensor."""
    ends = {name: [float(np.squeeze(end)) for end in each.range_value] for name, each in data.items()}
    return {name: (low, high) for name, (low, high) in ends.items()}


def outer(ranges: Ranges, extremes: Ranges) -> Ranges:
    """The upper ends moved to the outer edge of their bins: ONNX Runtime takes the inner one, which may be zero."""
    wider = {}
    for name, (low, high) in ranges.items():
        least, most = extremes[name]
        wider[name] = (low, min(high + 2 * max(abs(least), abs(most)) / BINS["percentile"], most))
    return wider


def finite(ranges: Ranges, model: Path) -> Ranges:
    for name, ends in ranges.items():
        if not np.isfinite(ends).all():
            raise ExportError(f"{model.name}: {name} is not finite on the calibration images; check model and images.")
    return ranges


class Reference:
    """Some images and the file's own answers to them, to tell how far another file departs from it."""

    def __init__(self, model: Path, batches: Batches, images: int) -> None:
        """Of the first batches, as many as hold `images`."""
        session = open_session(model, "cpu", None)
        self.name, kind = taken(session.get_inputs())
        self.asked: list[Batch] = []
        for batch in checked(batches, kind, model):
            self.asked.append(batch)
            if sum(map(len, self.asked)) >= images:
                break
        self.answers = [self.ask(session, batch) for batch in self.asked]

    def ask(self, session: InferenceSession, batch: Batch) -> list[NDArray[Any]]:
        return [np.asarray(answer) for answer in session.run(None, {self.name: batch})]

    def departure(self, model: Path) -> float:
        """The candidate's error at the outputs as a share of their size, root of the squares' sum; 0 is none.

        Of a file that answers with labels alone, the share that differs. Infinite for answers that are not finite.
        """
        session = open_session(model, "cpu", None)
        error = scale = 0.0
        for batch, right in zip(self.asked, self.answers, strict=True):
            said = self.ask(session, batch)
            floats = [i for i, answer in enumerate(right) if np.issubdtype(answer.dtype, np.floating)]
            for i in floats or range(len(right)):
                here, there = np.float64(right[i]), np.float64(said[i])
                error += float(((here - there) ** 2).sum() if floats else (here != there).sum())
                scale += float((here**2).sum() if floats else here.size)
        share = error / scale if scale else error
        return (float(np.sqrt(share)) if floats else share) if np.isfinite(share) else np.inf


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ONNX Runtime's quantisation prints its progress and logs advice for its own command line."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
