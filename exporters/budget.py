"""int8, fp16 and bf16 within an accuracy budget: the layers that suffer most stay in fp32, as few as keep the score.

Layers are ranked by what each of them, lowered alone, does to the answers of a few images. That is the question
itself and not a stand-in for it: a layer's own rounding error (ONNX Runtime's qdq_loss_debug has it) says little of
what becomes of it behind normalisations and sums. It costs a file and a few images a layer; above RANKED layers
neighbours are ranked together. Then 0, 1, 2, 4, ... layers are kept until the score holds, and the last step is halved
back. That is about twice log2(layers) scores, which may each cost a whole data set, and one calibration for all.
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

from exporters.calibration import Batches, Reference
from exporters.failure import RejectedError
from exporters.int8 import Quantised
from exporters.precision import Typed

RANKED = 64  #: layers, or groups of neighbours, that are lowered alone
IMAGES = 8  #: images, or few more, on which they are


class Subject(Protocol):
    """A file of which others are made that differ in the layers they keep in fp32."""

    source: Path

    @property
    def precision(self) -> str:
        """That the others go down to."""
        ...

    @property
    def layers(self) -> Sequence[str]: ...

    def write(self, draft: Path, keep: Collection[str] = ()) -> Quantised | Typed:
        """All layers but those to keep. Raises ExportError if none is left."""
        ...

    def put(self, draft: Path, layers: Collection[str]) -> Quantised | Typed:
        """These layers."""
        ...


@dataclass(frozen=True)
class Attempt:
    """One file that was scored."""

    kept: tuple[str, ...]  #: names of the layers in fp32
    score: float


@dataclass(frozen=True)
class Budgeted:
    """The file that keeps to the budget, and how it was found."""

    written: Quantised | Typed
    kept: tuple[str, ...]  #: layers that it has in fp32
    score: float  #: of the file
    reference_score: float  #: of fp32
    max_drop: float
    attempts: tuple[Attempt, ...]  #: in order; the file's own is among them
    sensitivity: dict[str, float]  #: layer -> departure of the answers with it alone lowered; empty if none was kept


def within_budget(
    subject: Subject,
    draft: Path,
    batches: Batches,
    score: Callable[[Path], float],
    reference_score: float,
    max_drop: float,
) -> Budgeted:
    """Write the file of `subject` with fewest layers in fp32 that scores at most `max_drop` below the reference.

    `score`: of an .onnx file, higher is better, in the unit of `max_drop`; NaN: it will not do. `batches`: images that
    layers are ranked on, as of `quantise`. Raises ExportError as the subject does, and with the figures where the score
    does not hold even with one layer lowered; nothing is at `draft` then.
    """
    search = Search(subject, draft, score, reference_score - max_drop)
    if not search.holds(0):
        search.rank(Reference(subject.source, batches, IMAGES))
        search.settle()
    if search.best is None:
        raise RejectedError(rejection(search, reference_score, max_drop))
    written, last = search.best
    attempts, sensitivity = tuple(search.attempts), dict(search.sensitivity)
    return Budgeted(written, last.kept, last.score, reference_score, max_drop, attempts, sensitivity)


class Search:
    """For the smallest number of layers, of those that suffer most, that must stay in fp32."""

    def __init__(self, subject: Subject, draft: Path, score: Callable[[Path], float], least: float) -> None:
        self.subject, self.draft, self.score, self.least = subject, draft, score, least
        self.order: list[str] = []  # layers, the most sensitive first
        self.sensitivity: dict[str, float] = {}
        self.attempts: list[Attempt] = []
        self.best: tuple[Quantised | Typed, Attempt] | None = None

    def holds(self, count: int) -> bool:
        """Whether the score does with the first `count` layers in fp32; what does is at the draft then."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.draft.name
            written = self.subject.write(path, self.order[:count])
            kept = tuple(name for name in self.subject.layers if name in written.kept)
            attempt = Attempt(kept, float(self.score(path)))
            self.attempts.append(attempt)
            if not attempt.score >= self.least:
                return False
            for file in Path(folder).iterdir():  # weights may lie beside it
                shutil.copyfile(file, self.draft.parent / file.name)
        self.best = written, attempt
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
    """Why a precision is rejected, to be said after whose it is."""
    first, last = search.attempts[0], search.attempts[-1]
    precision, layers = search.subject.precision, len(search.subject.layers)
    fewer = f" and {scored(last)} with {layers - len(last.kept)} of them" if last is not first else ""
    way_out = "calibrate on images more like those scored, or allow" if precision == "int8" else "allow"
    return (
        f"accuracy: fp32 scores {reference_score:g}, {precision} {scored(first)} with all {layers} "
        f"layers{fewer}, expected at most {max_drop:g} less; {way_out} more with --max-drop."
    )


def scored(attempt: Attempt) -> str:
    return "nothing (beyond its tolerance)" if math.isnan(attempt.score) else f"{attempt.score:g}"
