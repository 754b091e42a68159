"""int8, fp16 and bf16 within an accuracy budget: the most sensitive layers stay in fp32, as few as the score needs.

Layers are ranked by the error of the outputs on a few images with each layer alone converted. A layer's own rounding
error (ONNX Runtime's qdq_loss_debug reports it) is no substitute, because it does not show what normalizations and sums
behind the layer make of it. Ranking costs one file and a few images per layer; above MAX_GROUPS layers, neighbors are
ranked together. Then 0, 1, 2, 4, ... layers are kept until the score is sufficient, and the last step is bisected. That
is about twice log2(layers) scores, each possibly on a whole data set, and one calibration for all.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from exporters.errors import RejectedError
from exporters.quantization.calibration import BatchFunction, ReferenceOutputs
from exporters.quantization.float16 import Float16Result
from exporters.quantization.static import QuantizationResult

MAX_GROUPS = 64  #: layers, or groups of neighbors, that are converted alone
RANKING_IMAGES = 8  #: number of images (or a few more) for the ranking


class PrecisionSession(Protocol):
    """A file of which others are made that keep different layers in fp32."""

    source: Path

    @property
    def precision(self) -> str:
        """Precision of the other layers."""
        ...

    @property
    def layers(self) -> Sequence[str]: ...

    def write(self, path: Path, keep: Collection[str] = ()) -> QuantizationResult | Float16Result:
        """Convert all layers except those to keep. Raise ExportError if none is left."""
        ...

    def write_layers(self, path: Path, layers: Collection[str]) -> QuantizationResult | Float16Result:
        """Convert these layers."""
        ...


@dataclass(frozen=True)
class ScoredAttempt:
    """One file that was scored."""

    kept_fp32: tuple[str, ...]  #: names of the layers in fp32
    score: float  #: of the file


@dataclass(frozen=True)
class MixedPrecisionResult:
    """The file within the budget, and how it was found."""

    result: QuantizationResult | Float16Result  #: the file
    kept_fp32: tuple[str, ...]  #: names of its layers in fp32
    score: float  #: of the file
    reference_score: float  #: of fp32
    max_drop: float  #: largest allowed difference of the scores
    attempts: tuple[ScoredAttempt, ...]  #: scored files in order; one of them is the result
    sensitivity: dict[str, float]  #: layer -> error of the outputs with it alone converted; empty if none is in fp32


def quantize_within_budget(
    session: PrecisionSession,
    path: Path,
    batches: BatchFunction,
    score: Callable[[Path], float],
    reference_score: float,
    max_drop: float,
) -> MixedPrecisionResult:
    """Write the file with the fewest layers in fp32 that scores at most `max_drop` below the reference.

    Args:
        session: Makes files that keep different layers in fp32.
        path: The file to write.
        batches: Returns the images on which layers are ranked.
        score: Returns the score of an .onnx file, higher is better; NaN for a file that must not be used.
        reference_score: Score of the fp32 file.
        max_drop: Largest difference of the scores.

    Raises:
        RejectedError: The score is too low even with one layer converted. No file is written.
        ExportError: A file cannot be written.
    """
    search = LayerSearch(session, path, score, reference_score - max_drop)
    if not search.meets_budget(0):
        search.rank_layers(ReferenceOutputs(session.source, batches, RANKING_IMAGES))
        search.bisect()
    if search.best is None:
        raise RejectedError(rejection_message(search, reference_score, max_drop))
    result, attempt = search.best
    return MixedPrecisionResult(
        result=result,
        kept_fp32=attempt.kept_fp32,
        score=attempt.score,
        reference_score=reference_score,
        max_drop=max_drop,
        attempts=tuple(search.attempts),
        sensitivity=dict(search.sensitivity),
    )


class LayerSearch:
    """Search for the smallest number of the most sensitive layers that must stay in fp32."""

    def __init__(self, session: PrecisionSession, path: Path, score: Callable[[Path], float], min_score: float) -> None:
        self.session, self.path, self.score, self.min_score = session, path, score, min_score
        self.ranking: list[str] = []  # layers, the most sensitive first
        self.sensitivity: dict[str, float] = {}
        self.attempts: list[ScoredAttempt] = []
        self.best: tuple[QuantizationResult | Float16Result, ScoredAttempt] | None = None

    def meets_budget(self, count: int) -> bool:
        """Score a file with the first `count` layers in fp32, and copy it to the path if the score is sufficient."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            path = Path(directory) / self.path.name
            result = self.session.write(path, self.ranking[:count])
            kept = tuple(name for name in self.session.layers if name in result.kept_fp32)
            attempt = ScoredAttempt(kept, float(self.score(path)))
            self.attempts.append(attempt)
            if not attempt.score >= self.min_score:
                return False
            for file in Path(directory).iterdir():  # weights may lie beside the file
                shutil.copyfile(file, self.path.parent / file.name)
        self.best = result, attempt
        return True

    def rank_layers(self, reference: ReferenceOutputs) -> None:
        """Rank layers by the error that they cause alone; the layers of a group have one rank."""
        groups = np.array_split(np.array(self.session.layers), min(len(self.session.layers), MAX_GROUPS))
        ranked: list[tuple[float, list[str]]] = []
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            path = Path(directory) / self.path.name
            for group in groups:
                names = [str(name) for name in group]
                self.session.write_layers(path, names)
                ranked.append((reference.relative_error(path), names))
        ranked.sort(key=lambda entry: -entry[0])
        self.ranking = [name for _, names in ranked for name in names]
        self.sensitivity = {name: error for error, names in ranked for name in names}

    def bisect(self) -> None:
        """Keep 1, 2, 4, ... layers, at most all but one; then fewer again while the score is sufficient."""
        insufficient, kept, largest = 0, 1, len(self.ranking) - 1
        while kept <= largest and not self.meets_budget(kept):
            insufficient, kept = kept, min(2 * kept, largest) if kept < largest else largest + 1
        while self.best is not None and kept - insufficient > 1:
            middle = (insufficient + kept) // 2
            if self.meets_budget(middle):
                kept = middle
            else:
                insufficient = middle


def rejection_message(search: LayerSearch, reference_score: float, max_drop: float) -> str:
    first, last = search.attempts[0], search.attempts[-1]
    precision, layers = search.session.precision, len(search.session.layers)
    fewer = f" and {format_score(last)} with {layers - len(last.kept_fp32)} of them" if last is not first else ""
    remedy = "calibrate on images more like those scored, or allow" if precision == "int8" else "allow"
    return (
        f"accuracy: found {precision} {format_score(first)} with all {layers} layers{fewer}, expected at most "
        f"{max_drop:g} below the {reference_score:g} of fp32; {remedy} more with --max-drop."
    )


def format_score(attempt: ScoredAttempt) -> str:
    return "no score (beyond its tolerance)" if math.isnan(attempt.score) else f"{attempt.score:g}"
