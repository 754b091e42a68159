"""int8 within an accuracy budget: the layers that suffer most stay in fp32, as few as keep the score.

Layers are ranked by what each of them, quantised alone, does to the answers of a few images. That is the question
itself and not a stand-in for it: a layer's own rounding error (ONNX Runtime's qdq_loss_debug has it) says little of
what becomes of it behind normalisations and sums. It costs a file and a few images a layer; above RANKED layers
neighbours are ranked together. Then 0, 1, 2, 4, ... layers are kept until the score holds, and the last step is halved
back. That is about twice log2(layers) scores, which may each cost a whole data set, and one calibration for all.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporters.calibration import Batches, Calibrator, Reference
from exporters.failure import RejectedError
from exporters.int8 import Quantised, Subject, Target, calibrated

RANKED = 64  #: layers, or groups of neighbours, that are quantised alone
IMAGES = 8  #: calibration images, or few more, on which they are


@dataclass(frozen=True)
class Attempt:
    """One file that was scored."""

    kept: tuple[str, ...]  #: names of the layers in fp32
    score: float


@dataclass(frozen=True)
class Budgeted:
    """The file that keeps to the budget, and how it was found."""

    quantised: Quantised
    score: float  #: of the file
    reference_score: float  #: of fp32
    max_drop: float
    attempts: tuple[Attempt, ...]  #: in order; the file's own is among them
    sensitivity: dict[str, float]  #: layer -> departure of the answers with it alone in int8; empty if none was kept


def within_budget(
    source: Path,
    draft: Path,
    batches: Batches,
    score: Callable[[Path], float],
    reference_score: float,
    max_drop: float,
    *,
    target: Target = "ort-cpu",
    calibrator: Calibrator = "auto",
) -> Budgeted:
    """Write `source` to `draft` as int8 that scores at most `max_drop` below `reference_score`.

    `score`: of an .onnx file, higher is better, in the unit of `max_drop`. `batches`, `target`, `calibrator`: as of
    `quantise`. Raises ExportError as `quantise` does, and with the figures where the score does not hold even with one
    layer in int8; nothing is at `draft` then.
    """
    with calibrated(source, batches, target=target, calibrator=calibrator) as subject:
        search = Search(subject, draft, score, reference_score - max_drop)
        if not search.holds(0):
            search.rank(Reference(source, batches, IMAGES))
            search.settle()
        if search.best is None:
            raise RejectedError(rejection(search, reference_score, max_drop))
        quantised, found = search.best
        return Budgeted(quantised, found, reference_score, max_drop, tuple(search.attempts), dict(search.sensitivity))


class Search:
    """For the smallest number of layers, of those that suffer most, that must stay in fp32."""

    def __init__(self, subject: Subject, draft: Path, score: Callable[[Path], float], least: float) -> None:
        self.subject, self.draft, self.score, self.least = subject, draft, score, least
        self.order: list[str] = []  # layers, the most sensitive first
        self.sensitivity: dict[str, float] = {}
        self.attempts: list[Attempt] = []
        self.best: tuple[Quantised, float] | None = None

    def holds(self, kept: int) -> bool:
        """Whether the score does with the first `kept` layers in fp32; what does is at the draft then."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.draft.name
            quantised = self.subject.write(path, self.order[:kept])
            found = float(self.score(path))
            self.attempts.append(Attempt(quantised.kept, found))
            if not found >= self.least:
                return False
            shutil.copyfile(path, self.draft)
        self.best = quantised, found
        return True

    def rank(self, reference: Reference) -> None:
        """Layers by the departure that they cause alone; those of a group, in the order of the graph, together."""
        groups = np.array_split(np.array(self.subject.layers), min(len(self.subject.layers), RANKED))
        ranked: list[tuple[float, list[str]]] = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.draft.name
            for group in groups:
                names = [str(name) for name in group]
                self.subject.put(path, names)
                ranked.append((reference.departure(path), names))
        ranked.sort(key=lambda entry: -entry[0])
        self.order = [name for _, names in ranked for name in names]
        self.sensitivity = {name: departure for departure, names in ranked for name in names}

    def settle(self) -> None:
        """Keep 1, 2, 4, ... layers, all but one at most; then fewer again as far as the score holds."""
        fails, kept, most = 0, 1, len(self.order) - 1
        while kept <= most and not self.holds(kept):
            fails, kept = kept, min(2 * kept, most) if kept < most else most + 1
        while self.best is not None and kept - fails > 1:
            middle = (fails + kept) // 2
            if self.holds(middle):
                kept = middle
            else:
                fails = middle


def rejection(search: Search, reference_score: float, max_drop: float) -> str:
    """Why int8 is rejected, to be said after whose it is."""
    first, last = search.attempts[0], search.attempts[-1]
    layers = len(search.subject.layers)
    fewer = f" and {last.score:g} with {layers - len(last.kept)} of them" if last is not first else ""
    return (
        f"accuracy: fp32 scores {reference_score:g}, int8 {first.score:g} with all {layers} "
        f"layers{fewer}, expected at most {max_drop:g} less; calibrate on images more like those scored, or allow more "
        "with --max-drop."
    )
