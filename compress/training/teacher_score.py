"""The teacher's score on the validation images, before a student is trained; a teacher near chance is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.data.batches import iter_batches
from compress.data.cache import ImageCache
from compress.data.predictions import call_in_halves
from compress.engine.accelerator import Accelerator
from compress.errors import CompressError
from compress.files import read_json_object, write_json
from compress.models.card import ModelCard
from compress.own_files import RUN_FILE
from compress.tasks import task_for_card
from compress.training.data import evaluation_batch_size

#: key of the score in the file that marks a run
TEACHER = "teacher_metrics"
#: a teacher is near chance below this share of the way from chance to no errors, and below twice chance
MIN_AGREEMENT, MIN_RATIO = 0.1, 2.0
#: fewer images are too few to stop a run; a warning is given
MIN_IMAGES = 50
#: standard deviations of the share of correct images that chance may explain
DEVIATIONS = 3.0


@dataclass(frozen=True)
class TeacherScore:
    """Scores of a teacher, and what predictions that ignore the image would reach."""

    metrics: dict[str, float]
    correct: float  #: share of correct decisions: images, labels or pixels
    chance: float  #: expected share if its predictions were shuffled among the images
    images: int

    @property
    def is_near_chance(self) -> bool:
        """Whether the predictions say hardly more about an image than shuffled ones, and too many images show it.

        Shuffled predictions are as good as a constant one if one class is predicted, and as 1/classes if all are.
        """
        halfway = (1 + self.chance) / 2
        upper = min(self.chance + MIN_AGREEMENT * (1 - self.chance), MIN_RATIO * self.chance)
        upper = max(upper, self.chance + DEVIATIONS * deviation(self.chance, self.images))
        return self.correct <= min(upper, halfway - DEVIATIONS * deviation(halfway, self.images))


def deviation(share: float, images: int) -> float:
    """Standard deviation of a share of `images`, binomial."""
    return math.sqrt(share * (1 - share) / max(images, 1))


def score_teacher(net: nn.Module, cache: ImageCache, card: ModelCard, accelerator: Accelerator) -> TeacherScore:
    """Score a network on labeled images, in float32 as `compress eval` does.

    Args:
        net: The teacher, in eval mode, on the device of the accelerator.
        cache: Validation images.
        card: Card of the teacher.
        accelerator: Device.
    """
    task, counts = task_for_card(card), DecisionCounts(max(card.classes, 2))
    height, width = cache.pixels.shape[1:3]
    target = torch.empty(0)

    def observe() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal target
        for images, target in iter_batches(cache, evaluation_batch_size((height, width))):
            yield accelerator.to_float_images(images), target

    def predict(images: Tensor) -> Tensor:
        output = call_in_halves(partial(net), images)
        threshold = card.decision_threshold
        decisions = output.argmax(1) if threshold is None else output.sigmoid() > threshold
        counts.add(decisions.cpu(), target)
        return output

    metrics = task.score(predict, observe())
    return TeacherScore(metrics, counts.correct, counts.chance, len(cache))


class DecisionCounts:
    """How often each class is true, predicted, and both."""

    def __init__(self, classes: int) -> None:
        self.true, self.predicted, self.both = (torch.zeros(classes, dtype=torch.float64) for _ in range(3))

    def add(self, predicted: Tensor, true: Tensor) -> None:
        """Count decisions of one batch; true labels outside of the classes are not scored."""
        classes = len(self.true)
        true, predicted = true.flatten().long(), predicted.flatten().long()
        scored = (true >= 0) & (true < classes)
        true, predicted = true[scored], predicted[scored]
        for total, labels in ((self.true, true), (self.predicted, predicted), (self.both, true[true == predicted])):
            total += torch.bincount(labels, minlength=classes)[:classes]

    @property
    def correct(self) -> float:
        """Share of correct decisions."""
        return float(self.both.sum() / self.true.sum().clamp_min(1))

    @property
    def chance(self) -> float:
        """Expected share of correct decisions if predictions and true classes were independent."""
        return float((self.true * self.predicted).sum() / self.true.sum().clamp_min(1) ** 2)


def require_useful_teacher(
    score: TeacherScore, spec: str, data: str, *, allow: bool, progress: Callable[[str], None]
) -> None:
    """Raise CompressError if a teacher is near chance; warn if that is allowed, or if there are few images."""
    if not score.is_near_chance:
        return
    name, value = next(iter(score.metrics.items()))
    message = (
        f"{spec}: found {name} {value:.4f} on {data} ({score.correct:.2%} correct; chance {score.chance:.2%}), so the "
        "teacher sees other images or classes than it was trained on. Check --image-size, --mean, --std, and the order "
        "of the classes (--class-names)"
    )
    if not allow and score.images >= MIN_IMAGES:
        raise CompressError(f"{message}; to train all the same, give --allow-bad-teacher.")
    progress(f"Warning: {message}.")


def read_teacher_metrics(run_dir: Path) -> dict[str, float] | None:
    """Return the scores of the teacher that a run has stored; None if there are none."""
    stored = read_json_object(run_dir / RUN_FILE).get(TEACHER)
    return {str(name): float(value) for name, value in stored.items()} if isinstance(stored, dict) else None


def store_teacher_metrics(run_dir: Path, metrics: dict[str, float]) -> None:
    """Store the scores of the teacher in the file that marks the run."""
    write_json(run_dir / RUN_FILE, {**read_json_object(run_dir / RUN_FILE), TEACHER: metrics})
