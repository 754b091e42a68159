"""DeepInversion: noise is optimized, pixel by pixel, into images that resemble the teacher's training data.

Paper: Yin, Molchanov, Alvarez, Li, Mallya, Hoiem, Jha, Kautz, "Dreaming to Distill: Data-Free Knowledge Transfer via
DeepInversion", CVPR 2020, arXiv 1912.08795. `adv` is the competition of Adaptive DeepInversion; 0 is DeepInversion.
Code: NVlabs/DeepInversion and zju-vipa/DataFree, whose script for CIFAR-10 gives the settings (read for facts).
Differs: the divergence of the competition is neither clamped nor reversed (`losses/inversion.py`). The best batch is
copied; the codes for CIFAR store a reference, so their best batch is the last one. Images are rounded to 8 bits, not
truncated. Crops of the pool are padded by reflection, not with black. Images are drawn from the pool with replacement.
Learning rate and resolution are constant; the paper's ImageNet runs have a schedule and may start at half size.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Adam

from compress.config import setting
from compress.engine.augmentation import random_roll
from compress.engine.hooks import capture_batchnorm_stats
from compress.engine.run import Run
from compress.engine.synthesis import BestBatch, synthesis_step
from compress.engine.trainable import InnerLoop
from compress.losses import inversion, logits, priors
from compress.methods.fields import Count, Fraction, Positive, Weight
from compress.models.network import Network


@dataclass
class DeepInversion:
    """Noise is optimized, pixel by pixel, into images like the teacher's data, from which the student learns."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    batch_size: ClassVar[int] = 256

    cross_entropy: Weight = setting(1.0, "Weight of the cross entropy with the target class of each image.")
    bn: Weight = setting(10.0, "Weight of the teacher's BatchNorm statistics, a sum of norms over its layers.")
    adv: Weight = setting(1.0, "Weight of the divergence of student and teacher, which the images maximize (Adaptive).")
    tv: Weight = setting(1e-3, "Weight of the total variation, by norms over the batch.")
    tv_l1: Weight = setting(0.0, "Weight of the total variation, by mean absolute differences.")
    l2: Weight = setting(0.0, "Weight of the mean norm of the images.")
    jitter: Fraction = setting(0.125, "Maximum random shift of the images, as share of their side.")
    images_per_synthesis: Count = setting(256, "Images per synthesis, summed over processes.")
    iterations: Count = setting(1000, "Optimization steps per synthesis.")
    student_steps: Count = setting(400, "Student steps per synthesis.")
    lr_x: Positive = setting(0.1, "Learning rate of the pixels, in standard deviations of the teacher's data (Adam).")
    temperature: Positive = setting(20.0, "Temperature of the softened predictions that the student matches.")
    lr: Positive = setting(0.1, "Learning rate of the student (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(1e-4, "Weight decay of the student.")

    @property
    def uses(self) -> tuple[str, ...]:
        return ("gradients", "batchnorm") if self.bn else ("gradients",)

    def setup(self, run: Run) -> None:
        self.run, self.T, self.accelerator = run, run.teacher, run.accelerator
        assert isinstance(self.T.net, Network)
        self.mean, self.std = self.T.net.normalize.mean, self.T.net.normalize.std
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        self.pool, self.scaler = run.create_pool(), run.create_scaler("synthesis")

    def actions_at(self, step: int) -> tuple[bool, bool]:
        return step % self.student_steps == 0, True

    def step(self) -> dict[str, Tensor]:
        return synthesis_step(self, self.run.step)

    def sample_noise(self) -> Tensor:
        n, channels = self.run.per_rank(self.images_per_synthesis), self.mean.shape[1]
        v = torch.randn(n, channels, *self.run.task.image_size, device=self.accelerator.device)
        return v.contiguous(memory_format=torch.channels_last).requires_grad_()

    def to_images(self, v: Tensor) -> Tensor:
        """Convert pixels in units of the teacher's normalization to images in [0, 1]."""
        return (self.mean + self.std * v).expand(-1, 3, -1, -1)

    def synthesize(self) -> Tensor:
        # Adam optimizes the pixels of noise into images of random classes.
        v, best = self.sample_noise(), BestBatch()
        y = torch.randint(self.run.task.classes, (len(v),), device=v.device)
        adam = Adam([v], lr=self.lr_x, betas=(0.5, 0.99))
        loop = InnerLoop("the images", self.accelerator, adam, scaler=self.scaler)
        for _ in self.run.progress_range(self.iterations, "synthesis"):
            loss = self.synthesis_loss(v, y)
            best.update(loss, self.to_images(v))
            loop.optimization_step(loss)
            with torch.no_grad():
                v.copy_((self.to_images(v).clamp(0, 1)[:, : v.shape[1]] - self.mean) / self.std)
        self.pool.add(best.tensors[0], y)
        return best.loss

    def synthesis_loss(self, v: Tensor, y: Tensor) -> Tensor:
        """Loss of images that should be like T's training data, of classes `y`, and hard for S."""
        x = random_roll(self.to_images(v), int(self.jitter * min(v.shape[2:])))
        with capture_batchnorm_stats(self.T.net) if self.bn else nullcontext([]) as stats:
            t = self.T(x)
        loss = self.cross_entropy * self.run.task.supervised_loss(t, y)
        if self.bn:
            loss = loss + self.bn * priors.batchnorm(stats)  # R_feature
        if self.tv or self.tv_l1 or self.l2:
            variation = self.tv * inversion.total_variation_l2(v) + self.tv_l1 * inversion.total_variation_l1(v)
            loss = loss + variation + self.l2 * inversion.image_l2(v)  # R_prior
        if self.adv:
            loss = loss + self.adv * (1 - inversion.jensen_shannon(self.S.forward_eval(x), t))  # R_compete
        return loss

    def train_student(self) -> Tensor:
        # S imitates T on images of the pool.
        with torch.no_grad():
            x = self.pool.sample(self.run.per_rank(self.run.batch_size))
            t = self.T(x)
        loss_S = logits.kl(self.S(x), t, self.temperature)
        self.S.optimization_step(loss_S)
        return loss_S
