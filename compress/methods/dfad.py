"""DFAD: the student closes the gap to the teacher on images that a generator makes to open it.

Paper: Fang, Song, Shen, Wang, Chen, Song, "Data-Free Adversarial Distillation", 2019, arXiv 1912.11006.
Code: VainF/Data-Free-Adversarial-Distillation 053861f (read for facts).
G ends in tanh and a BatchNorm without weights, as the code's generator for small images; `dcgan` is its other one.
Differs: learning rates follow a cosine; in the code they are constant or fall in two steps. For segmentation, the code
sets the student's dropout to 0.5; here it is unchanged. While one model is updated, the others compute no gradients
(same result, less work).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Adam

from compress.config import setting
from compress.engine.run import Run
from compress.losses import logits
from compress.methods.fields import ALL_TASKS, SMALL_GENERATOR, Count, Positive, Weight
from compress.methods.generator_setup import create_standardized_generator, to_images


@dataclass
class DFAD:
    """The student closes the gap to the teacher's logits on images that a generator makes to open it."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    uses: ClassVar[tuple[str, ...]] = ("gradients",)
    batch_size: ClassVar[int] = 256

    student_steps: Count = setting(5, "Student steps per iteration, each on new images, before the generator's step.")
    log_gap: bool | None = setting(None, "Maximize log(1 + gap) instead of the gap; default: for segmentation.")
    lr: Positive = setting(0.1, "Learning rate of the student (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(5e-4, "Weight decay of the student.")
    lr_G: Positive = setting(1e-3, "Learning rate of the generator (Adam, cosine).")
    generator: str | None = setting(None, SMALL_GENERATOR)
    z_dim: Count = setting(256, "Dimensions of the noise.")
    width_G: Count = setting(64, "Channels of the generator's last hidden layer.")
    standardize_output: bool = setting(True, "End G in tanh and BatchNorm, as published, not in a sigmoid.")

    def setup(self, run: Run) -> None:
        self.T, self.rows = run.teacher, run.task.rows
        self.n, self.device = run.per_rank(run.batch_size), run.accelerator.device
        G = create_standardized_generator(self, run, standardize=self.standardize_output, tanh=True)
        self.G = run.add_trainable("G", G, optimizer=partial(Adam, lr=self.lr_G))
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        run.log_images("synthetic", partial(self.G.predict, run.fixed_noise(100, self.z_dim)))

    def generate(self) -> Tensor:
        return to_images(self.G(torch.randn(self.n, self.z_dim, device=self.device)))

    def step(self) -> dict[str, Tensor]:
        # S closes the gap to T on new images of G.
        loss_S = torch.zeros(())
        for _ in range(self.student_steps):
            with torch.no_grad():
                x = self.generate()
                t = self.rows(self.T(x))
            loss_S = logits.l1(self.rows(self.S(x)), t)
            self.S.optimization_step(loss_S)

        # G makes images on which the gap is wide.
        x = self.generate()
        output_T = self.T(x)
        gap = logits.l1(self.rows(self.S.forward_frozen(x)), self.rows(output_T))
        log_gap = output_T.ndim > 2 if self.log_gap is None else self.log_gap
        loss_G = -gap.log1p() if log_gap else -gap
        self.G.optimization_step(loss_G)
        return {"G": loss_G, "S": loss_S}
