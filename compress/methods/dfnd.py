"""DFND: distillation on the in-the-wild images with the most confident teacher predictions, treated as noisy labels.

Paper: Chen, Guo, Xu, Li, Xu, Xu, Wang, "Learning Student Networks in the Wild", CVPR 2021.
Code: huawei-noah/Data-Efficient-Model-Compression, DFND (read for facts; as released it does not run, because a name in
its loss is undefined). It keeps 600,000 of ImageNet's 1.28 million images, a share of 0.47.
Differs: all images are normalized as the teacher's (the code uses ImageNet's statistics, and tests with CIFAR's). The
student's learning rate follows a cosine, not steps of a tenth at 40 and 80 %. Probabilities through Q stay logarithms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD, Adam

from compress.config import setting
from compress.engine.run import Run
from compress.engine.schedules import constant
from compress.engine.teacher_cache import predict_with_teacher
from compress.errors import UsageError
from compress.losses import logits
from compress.methods.fields import Positive, Weight


@dataclass
class DFND:
    """The student matches a confident teacher, while a matrix learns the noise of the teacher's labels."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("unlabeled",)
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    uses: ClassVar[tuple[str, ...]] = ()
    batch_size: ClassVar[int] = 256

    keep_images: Positive = setting(0.47, "Most confident images to keep: a share up to 1, a number above.")
    teacher_accuracy: Annotated[float, Field(gt=0, lt=1)] = setting(
        0.95,
        "Teacher's accuracy on its own data, Q's diagonal.",
    )
    noisy_labels: Weight = setting(1.0, "Weight of the cross entropy with the teacher's labels through Q.")
    temperature: Positive = setting(4.0, "Temperature of the softened predictions.")
    lr: Positive = setting(0.1, "Learning rate of the student (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(5e-4, "Weight decay of the student.")
    lr_Q: Positive = setting(1e-3, "Learning rate of Q (Adam, constant).")
    augment: bool = setting(True, "Random crop (4 pixels) and flip.")

    def setup(self, run: Run) -> None:
        self.T, self.rows = run.teacher, run.task.rows
        repeats = select_confident(predict_with_teacher(run, "unlabeled").confidence, self.keep_images)
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        Q = NoiseAdaptation(run.task.classes, self.teacher_accuracy)
        self.Q = run.add_trainable("Q", Q, optimizer=partial(Adam, lr=self.lr_Q), schedule=constant)
        self.data = run.stream("unlabeled", "unlabeled", augment=self.augment, repeats=repeats)

    def step(self) -> dict[str, Tensor]:
        x = next(self.data)
        with torch.no_grad():
            t = self.rows(self.T(x))
        s = self.rows(self.S(x))
        # S matches T's softened predictions, and its labels as far as Q trusts them.
        loss_S = logits.kl(s, t, self.temperature)
        loss_Q = self.Q(s, t.argmax(1)).mean()
        self.S.optimization_step(loss_S + self.noisy_labels * loss_Q, jointly_with=[self.Q])
        return {"S": loss_S, "Q": loss_Q}


class NoiseAdaptation(nn.Module):
    """Q: row i contains the probabilities of the teacher's labels for images of class i.

    The diagonal is `accuracy`; the rest of a row is a learned softmax, uniform at first.
    """

    eye: Tensor

    def __init__(self, classes: int, accuracy: float) -> None:
        super().__init__()
        self.accuracy = accuracy
        self.off_diagonal = nn.Parameter(torch.zeros(classes, classes))  # its diagonal is unused and constant
        self.register_buffer("eye", torch.eye(classes, dtype=torch.bool), persistent=False)

    def log_matrix(self) -> Float[Tensor, "c c"]:
        """Return the logarithm of Q."""
        masked = self.off_diagonal.float().masked_fill(self.eye, -math.inf)
        return (masked.log_softmax(1) + math.log1p(-self.accuracy)).masked_fill(self.eye, math.log(self.accuracy))

    def forward(self, student: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return −log Σ_i p_i Q_iy, p = softmax(student), y the teacher's label; >= 0, in nats."""
        log_p = student.float().log_softmax(1)
        return -torch.logsumexp(log_p + self.log_matrix().T[labels], 1)


def select_confident(confidence: Float64[Tensor, " m"], keep: float) -> Float64[Tensor, " m"]:
    """Return 1 for the images of highest confidence, that is of lowest cross entropy with their own label, else 0.

    Ties are resolved by order.

    Raises:
        UsageError: If there are fewer images than `keep`.
    """
    images = len(confidence)
    count = max(1, round(keep * images)) if keep <= 1 else round(keep)
    if count > images:
        raise UsageError(f"method.keep_images: found {count}, expected at most {images}, or a share up to 1.")
    selected = torch.zeros(images, dtype=torch.float64)
    selected[confidence.argsort(descending=True, stable=True)[:count]] = 1
    return selected
