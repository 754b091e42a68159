"""Balanced: knowledge distillation on images sampled so that the teacher predicts all classes equally often.

Paper: Nayak, Mopuri, Chakraborty, "Effectiveness of Arbitrary Transfer Sets for Data-free Knowledge Distillation", WACV
2021, arXiv 2011.09113; as the baseline "Balanced" of MosaicKD's Table 1. Its settings are not published: temperature,
learning rate, batch and epochs are those of its KD. No code was found.
Differs: the sampling is our own. Each epoch repeats an image in inverse proportion to the number of images of its
predicted class, so no image is excluded. Repeats are capped, because the three images of a rare class would otherwise
occur hundreds of times. Classes that the teacher never predicts are reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float64, Int64
from pydantic import Field
from torch import Tensor
from torch.optim import SGD

from compress.config import setting
from compress.engine.augmentation import color_jitter
from compress.engine.run import Run
from compress.engine.teacher_cache import predict_with_teacher
from compress.losses import logits
from compress.methods.fields import Positive, Weight

MAX_NAMED_CLASSES = 5


@dataclass
class Balanced:
    """The student matches the teacher's softened predictions on images balanced over the predicted classes."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("unlabeled",)
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    uses: ClassVar[tuple[str, ...]] = ()
    batch_size: ClassVar[int] = 128

    max_repeats: Annotated[float, Field(ge=1)] = setting(50.0, "Maximum repeats of an image per epoch; 1 is plain KD.")
    temperature: Positive = setting(5.0, "Temperature of the softened predictions.")
    lr: Positive = setting(0.1, "Learning rate of the student (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(1e-4, "Weight decay of the student.")
    augment: bool = setting(True, "Random crop (4 pixels) and flip.")
    color_jitter: bool = setting(False, "Random colors, and flip half of the images.")

    def setup(self, run: Run) -> None:
        self.T, self.rows = run.teacher, run.task.rows
        labels = predict_with_teacher(run, "unlabeled").labels
        counts = labels.bincount(minlength=run.task.classes)
        repeats = class_repeats(counts, self.max_repeats)
        for message in shortage_messages(counts, repeats, run.task.class_names):
            run.display.print_line(message)
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        self.data = run.stream("unlabeled", "unlabeled", augment=self.augment, repeats=repeats[labels])

    def step(self) -> dict[str, Tensor]:
        x = color_jitter(next(self.data)) if self.color_jitter else next(self.data)
        with torch.no_grad():
            t = self.rows(self.T(x))
        loss_S = logits.kl(self.rows(self.S(x)), t, self.temperature)
        self.S.optimization_step(loss_S)
        return {"S": loss_S}


def class_repeats(counts: Int64[Tensor, " c"], max_repeats: float) -> Float64[Tensor, " c"]:
    """Compute how often an image of each class occurs per epoch.

    Repeats are proportional to 1 / count and capped at `max_repeats`; 0 for a class without images. The other classes
    share what a capped class leaves, so an epoch has as many images as the data set.
    """
    repeats, is_open = torch.zeros(len(counts), dtype=torch.float64), counts > 0
    left = counts.sum().double()
    while True:
        share = left / is_open.sum() / counts.double()
        capped = is_open & (share > max_repeats)
        if not capped.any():
            return torch.where(is_open, share, repeats)
        repeats[capped] = max_repeats
        left -= max_repeats * counts[capped].sum()
        is_open &= ~capped


def shortage_messages(
    counts: Int64[Tensor, " c"], repeats: Float64[Tensor, " c"], names: list[str] | None
) -> list[str]:
    """Return messages about the classes that cannot be balanced."""
    sampled = counts * repeats
    absent = (counts == 0).nonzero()[:, 0].tolist()
    rare = ((counts > 0) & (sampled < sampled.max() * 0.999)).nonzero()[:, 0].tolist()
    messages = []
    if absent:
        messages.append(
            f"The teacher predicts {len(absent)} of its {len(counts)} classes for none of these images, so they cannot "
            f"be balanced: {join_class_names(absent, names)}."
        )
    if rare:
        messages.append(
            f"The teacher predicts {len(rare)} classes so rarely that method.max_repeats limits them: "
            f"{join_class_names(rare, names)}."
        )
    return messages


def join_class_names(classes: list[int], names: list[str] | None) -> str:
    """Join the first class names, and count the rest."""
    more = f" and {len(classes) - MAX_NAMED_CLASSES} more" if len(classes) > MAX_NAMED_CLASSES else ""
    return ", ".join(names[c] if names else f"class {c}" for c in classes[:MAX_NAMED_CLASSES]) + more
