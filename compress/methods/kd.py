"""Knowledge distillation on unlabeled images.

Paper: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015; as the baseline "KD" of MosaicKD's
Table 1 (alpha 1, gamma 0, T 5, batch 128).
Differs: all images are normalized with the teacher's statistics, whatever data set they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import SGD

from compress.config import setting
from compress.engine.augmentation import color_jitter
from compress.engine.run import Run
from compress.engine.teacher_cache import cache_teacher_logits
from compress.losses import logits
from compress.methods.fields import ALL_TASKS, Positive, Weight


@dataclass
class KD:
    """The student matches the teacher's softened predictions on unlabeled images."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("unlabeled",)
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    uses: ClassVar[tuple[str, ...]] = ()
    batch_size: ClassVar[int] = 128

    temperature: Positive = setting(5.0, "Temperature of the softened predictions.")
    lr: Positive = setting(0.1, "Learning rate of the student (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(1e-4, "Weight decay of the student.")
    augment: bool = setting(True, "Random crop (4 pixels) and flip.")
    color_jitter: bool = setting(False, "Random colors, and flip half of the images.")
    cache_teacher_logits: bool = setting(False, "Compute teacher logits once per image; needs unchanged images.")

    def setup(self, run: Run) -> None:
        self.T = run.teacher
        self.rows = run.task.rows
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        self.data = run.stream("unlabeled", "unlabeled", augment=self.augment)
        self.cache = None
        if self.cache_teacher_logits:
            self.cache = cache_teacher_logits(run, "unlabeled", is_augmented=self.augment or self.color_jitter)

    def step(self) -> dict[str, Tensor]:
        x = color_jitter(next(self.data)) if self.color_jitter else next(self.data)
        with torch.no_grad():
            t = self.rows(self.T(x) if self.cache is None else self.cache(x, self.data.indices))
        loss_S = logits.kl(self.rows(self.S(x)), t, self.temperature)
        self.S.optimization_step(loss_S)
        return {"S": loss_S}
