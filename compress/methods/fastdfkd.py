"""FastDFKD: a meta-learned generator that adapts to a new batch of images in a few steps.

Paper: Fang, Mo, Wang, Song, Bei, Zhang, Song, "Up to 100x Faster Data-Free Knowledge Distillation", AAAI 2022, arXiv
2112.06253.
Code: zju-vipa/Fast-Datafree 0dcecbc, its script for WRN-40-2 -> WRN-16-1 in ten steps (read for facts).
Differs: the adversarial term starts with the student's first step (in the code, one synthesis earlier). The reset of G
applies to its first linear and its first BatchNorm layer (the code intends these, and by mistake names all). Images are
rounded to 8 bits, not truncated. Crops are padded by reflection, not with black. Images of the pool are drawn with
replacement. The student's learning rate falls at every step, to 0 instead of 2e-4.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from compress.config import setting
from compress.engine.augmentation import random_crop_flip
from compress.engine.hooks import BatchNormStats, RunningStats, capture_batchnorm_stats
from compress.engine.run import Run
from compress.engine.schedules import constant
from compress.engine.synthesis import BestBatch, synthesis_step
from compress.engine.trainable import InnerLoop
from compress.losses import inversion, logits, priors
from compress.methods.fields import SMALL_GENERATOR, Count, CountOrZero, Fraction, Positive, Weight
from compress.methods.generator_setup import create_generator, to_images

REPTILE_SCALE = 67  #: factor of Reptile's difference of weights, as published


@dataclass
class FastDFKD:
    """A generator is meta-learned, so that a copy of it inverts the teacher for each batch in a few steps."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    batch_size: ClassVar[int] = 256

    cross_entropy: Weight = setting(0.4, "Weight of the cross entropy with the target class of each image.")
    bn: Weight = setting(10.0, "Weight of the teacher's BatchNorm statistics, a sum of norms over its layers.")
    bn_momentum: Fraction = setting(0.9, "Share of earlier batches in the compared statistics.")
    adv: Weight = setting(1.1, "Weight of the divergence of student and teacher if their classes agree (maximized).")
    images_per_synthesis: Count = setting(256, "Images per synthesis, summed over processes.")
    iterations: Count = setting(10, "Optimization steps per synthesis (k).")
    student_steps: Count = setting(400, "Student steps per synthesis.")
    warmup: CountOrZero = setting(20, "Syntheses before the student's first step, one per step of the run.")
    reset: CountOrZero = setting(120, "Number of syntheses after warm-up until G's first layers are reset; 0: never.")
    reptile: bool = setting(False, "Move G toward its copy's weights (Reptile), not along summed gradients (MAML).")
    lr_G: Positive = setting(2e-3, "Learning rate of G's copy (Adam, betas 0.5 and 0.999); G's is k times as large.")
    lr_z: Weight = setting(0.01, "Learning rate of the noise.")
    generator: str | None = setting(None, SMALL_GENERATOR)
    z_dim: Count = setting(256, "Dimensions of the noise.")
    width_G: Count = setting(64, "Channels of the generator's last hidden layer.")
    temperature: Positive = setting(20.0, "Temperature of the softened predictions that the student matches.")
    lr: Positive = setting(0.2, "Learning rate of the student (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(1e-4, "Weight decay of the student.")

    @property
    def uses(self) -> tuple[str, ...]:
        return ("gradients", "batchnorm") if self.bn else ("gradients",)

    def setup(self, run: Run) -> None:
        self.run, self.T, self.accelerator = run, run.teacher, run.accelerator
        self.n = run.per_rank(self.images_per_synthesis)
        adam = partial(Adam, lr=self.lr_G * self.iterations, betas=(0.5, 0.999))
        self.G = run.add_trainable("G", create_generator(self, run), optimizer=adam, schedule=constant)
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        self.running_stats = RunningStats(self.bn_momentum)
        run.register("running stats", self.running_stats, per_rank=True)
        self.pool, self.scaler = run.create_pool(), run.create_scaler("synthesis")

    def actions_at(self, step: int) -> tuple[bool, bool]:
        student_step = step - self.warmup
        return student_step < 0 or student_step % self.student_steps == 0, student_step >= 0

    def step(self) -> dict[str, Tensor]:
        return synthesis_step(self, self.run.step)

    def synthesize(self) -> Tensor:
        if self.reset and self.run.step == self.warmup + (self.reset - 1) * self.student_steps:
            self.reset_first_layers()
        # A copy of G and its noise are optimized for one batch of images of random classes; G follows.
        device, best = self.accelerator.device, BestBatch()
        G_copy, z = copy.deepcopy(self.G.net), torch.randn(self.n, self.z_dim, device=device).requires_grad_()
        y = torch.randint(self.run.task.classes, (self.n,), device=device)
        groups = [{"params": list(G_copy.parameters()), "lr": self.lr_G}, {"params": [z], "lr": self.lr_z}]
        adam = Adam(groups, betas=(0.5, 0.999))
        loop = InnerLoop("the images", self.accelerator, adam, nets=[G_copy], scaler=self.scaler)
        gradients = [torch.zeros_like(p) for p in G_copy.parameters()]
        stats: list[BatchNormStats] = []
        for _ in self.run.progress_range(self.iterations, "synthesis"):
            x = to_images(self.accelerator.forward(G_copy, z))
            loss, stats = self.synthesis_loss(x, y)
            best.update(loss, x)
            loop.optimization_step(loss)
            for total, parameter in zip(gradients, G_copy.parameters(), strict=True):
                assert parameter.grad is not None
                total += parameter.grad  # first-order MAML
        if self.reptile:
            pairs = zip(self.G.net.parameters(), G_copy.parameters(), strict=True)
            gradients = [REPTILE_SCALE * (p - adapted).detach() for p, adapted in pairs]
        self.G.apply_gradients(gradients)
        self.running_stats.update(stats)
        self.pool.add(best.tensors[0], y)
        return best.loss

    def synthesis_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[BatchNormStats]]:
        """Loss of images that should be like T's training data, of classes `y`, and hard for S.

        Returns:
            The loss, and the input statistics of T's BatchNorm layers.
        """
        x = random_crop_flip(x)
        with capture_batchnorm_stats(self.T.net) if self.bn else nullcontext([]) as stats:
            t = self.T(x)
        loss = self.cross_entropy * self.run.task.supervised_loss(t, y)
        if self.bn:
            loss = loss + self.bn * priors.batchnorm(self.running_stats.blend(stats))
        if self.adv and self.run.step >= self.warmup:
            loss = loss - self.adv * inversion.agreement_kl(self.S.forward_eval(x), t)
        return loss, stats

    def reset_first_layers(self) -> None:
        """Reset the weights of G's first linear and first BatchNorm layer, equally on every process."""
        generator = torch.Generator().manual_seed(self.run.schedule.seed)
        with torch.no_grad():
            for kind in (nn.Linear, nn.BatchNorm2d):
                layer = next(module for module in self.G.net.modules() if isinstance(module, kind))
                layer.weight.copy_(0.02 * torch.randn(layer.weight.shape, generator=generator))
                layer.bias.zero_()

    def train_student(self) -> Tensor:
        # S imitates T on images of the pool.
        with torch.no_grad():
            x = self.pool.sample(self.run.per_rank(self.run.batch_size))
            t = self.T(x)
        loss_S = logits.kl(self.S(x), t, self.temperature)
        self.S.optimization_step(loss_S)
        return loss_S
