"""RKD: the student preserves the teacher's distances and angles between images.

Paper: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068; as the baseline "RKD" of
MosaicKD's Table 1.
Code: HobbitLong/RepDistiller, distiller_zoo/RKD.py (read for facts: weights 25 and 50 on the penultimate features,
summed with cross entropy of weight 1, no KL). The settings of Table 1 are not published.
Differs: without labels, KL replaces the cross entropy. Learning rate, batch and epochs are those of Table 1's KD.
Distances come from differences, not from inner products, which cancel. Two images that coincide have no angle and no
gradient (the code divides by 1e-12). Angles use the first 512 images of a larger batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import SGD

from compress.config import setting
from compress.engine.hooks import capture_activations, find_classifier
from compress.engine.run import Run
from compress.errors import UsageError
from compress.losses import logits, relations
from compress.methods.fields import IMAGE_TASKS, Positive, Weight

MAX_ANGLE_IMAGES = 512  #: n images have n³ angles


@dataclass
class RKD:
    """The student matches the teacher's predictions, and its distances and angles between images."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("unlabeled",)
    tasks: ClassVar[tuple[str, ...]] = IMAGE_TASKS
    batch_size: ClassVar[int] = 128

    distance: Weight = setting(25.0, "Weight of the distances.")
    angle: Weight = setting(50.0, "Weight of the angles.")
    kl: Weight = setting(1.0, "Weight of the softened predictions.")
    relate: Literal["features", "logits"] = setting(
        "features",
        "Compare penultimate features, or logits (any teacher).",
    )
    temperature: Positive = setting(5.0, "Temperature of the softened predictions.")
    lr: Positive = setting(0.1, "Learning rate of the student (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(1e-4, "Weight decay of the student.")
    augment: bool = setting(True, "Random crop (4 pixels) and flip.")

    @property
    def uses(self) -> tuple[str, ...]:
        return ("features",) if self.relate == "features" else ()

    def setup(self, run: Run) -> None:
        if run.batch_size // run.accelerator.world_size < 2:
            raise UsageError(
                f"training.batch_size: found {run.batch_size} for {run.accelerator.world_size} processes, expected two "
                "or more images per process, because RKD compares them."
            )
        self.T, self.rows = run.teacher, run.task.rows
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        if self.relate == "features":
            self.classifier_T, _ = find_classifier(self.T.net, run.example_input())
            self.classifier_S, _ = find_classifier(self.S.net, run.example_input())
        self.data = run.stream("unlabeled", "unlabeled", augment=self.augment)

    def step(self) -> dict[str, Tensor]:
        x = next(self.data)
        if self.relate == "features":
            with torch.no_grad(), capture_activations(self.T.net, self.classifier_T, capture_inputs=True) as inputs_T:
                t = self.rows(self.T(x))
            with capture_activations(self.S.net, self.classifier_S, capture_inputs=True) as inputs_S:
                s = self.rows(self.S(x))
            e_t, e_s = inputs_T[self.classifier_T], inputs_S[self.classifier_S]
        else:
            with torch.no_grad():
                e_t = self.T(x)
            e_s = self.S(x)
            s, t = self.rows(e_s), self.rows(e_t)

        loss_S = (
            self.kl * logits.kl(s, t, self.temperature)
            + self.distance * relations.distance(e_s, e_t)  # L_RKD-D
            + self.angle * relations.angle(e_s[:MAX_ANGLE_IMAGES], e_t[:MAX_ANGLE_IMAGES])  # L_RKD-A
        )
        self.S.optimization_step(loss_S)
        return {"S": loss_S}
