"""CMI: model inversion with a contrastive loss that makes each new image differ from all earlier ones.

Paper: Fang, Song, Wang, Shen, Wang, Song, "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI
2021, arXiv 2105.08584.
Code: zju-vipa/CMI, its script for CIFAR-10 from scratch (read for facts).
Differs: for teachers whose BatchNorm layers have more than 4096 input channels in total, the outputs of their stages
are compared (the code does so for ResNet-34 only, and omits the last stage). Images are rounded to 8 bits, not
truncated. Crops are padded by reflection, not with black. Images of the pool are drawn with replacement. The bank
accepts any number of images. The anchors of the contrast, whose gradient the code discards, are computed without one
(same result).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from compress.config import setting
from compress.engine.augmentation import random_crop_flip, random_resized_crop
from compress.engine.hooks import capture_batchnorm_stats, capture_instance_means, find_stages
from compress.engine.memory_bank import MemoryBank
from compress.engine.run import Run
from compress.engine.schedules import constant
from compress.engine.synthesis import BestBatch, synthesis_step
from compress.engine.trainable import InnerLoop, TrainableModel
from compress.losses import inversion, logits, priors
from compress.methods.fields import SMALL_GENERATOR, Count, Positive, Weight
from compress.methods.generator_setup import create_generator, to_images
from compress.models.generators import init_dcgan_weights, square_side

MAX_FEATURES = 4096  #: above, the outputs of the stages are compared instead of the inputs of all BatchNorm layers


@dataclass
class CMI:
    """A new generator inverts the teacher for every batch, whose images must differ from all earlier ones."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    uses: ClassVar[tuple[str, ...]] = ("gradients", "features", "batchnorm")
    batch_size: ClassVar[int] = 128

    cross_entropy: Weight = setting(1.0, "Weight of the cross entropy with the target class of each image.")
    bn: Weight = setting(1.0, "Weight of the teacher's BatchNorm statistics, a sum of norms over its layers.")
    adv: Weight = setting(0.5, "Weight of the divergence of student and teacher if their classes agree (maximized).")
    contrast: Weight = setting(0.8, "Weight of the contrastive loss between images.")
    contrast_temperature: Positive = setting(0.1, "Temperature of the contrastive loss.")
    bank_size: Count = setting(40960, "Earlier images in the memory bank, summed over processes.")
    negatives: Count = setting(4096, "Images of the bank that an iteration compares with, per process.")
    embedding_dim: Count = setting(256, "Dimensions of the projection in which images are compared.")
    images_per_synthesis: Count = setting(256, "Images per synthesis, summed over processes.")
    iterations: Count = setting(200, "Optimization steps per synthesis.")
    student_steps: Count = setting(400, "Student steps per synthesis.")
    lr_G: Positive = setting(1e-3, "Learning rate of generator and noise (Adam, betas 0.5 and 0.999), and projection.")
    generator: str | None = setting(None, SMALL_GENERATOR)
    z_dim: Count = setting(256, "Dimensions of the noise.")
    width_G: Count = setting(64, "Channels of the generator's last hidden layer.")
    temperature: Positive = setting(20.0, "Temperature of the softened predictions that the student matches.")
    lr: Positive = setting(0.1, "Learning rate of the student (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(1e-4, "Weight decay of the student.")

    def setup(self, run: Run) -> None:
        square_side(run.task.image_size)
        self.run, self.T, self.accelerator = run, run.teacher, run.accelerator
        self.n = run.per_rank(self.images_per_synthesis)
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        self.heads: list[TrainableModel] = []
        self.capture_features = partial(capture_instance_means, self.T.net)
        if self.contrast:
            self.setup_contrast(run)
        self.pool, self.scaler = run.create_pool(), run.create_scaler("synthesis")

    def setup_contrast(self, run: Run) -> None:
        """Select the layers to compare, and create the projection H and the memory bank."""
        if self.feature_width(run) > MAX_FEATURES:
            stages = find_stages(self.T.net, run.example_input())
            self.capture_features = partial(capture_instance_means, self.T.net, *stages)
        D = self.feature_width(run)
        projection = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, self.embedding_dim))
        self.H = run.add_trainable("H", projection, optimizer=partial(Adam, lr=self.lr_G), schedule=constant)
        self.heads.append(self.H)
        self.bank = MemoryBank(run.per_rank(self.bank_size), 2 * D, run.accelerator)
        run.register("bank", self.bank, per_rank=True)

    def feature_width(self, run: Run) -> int:
        """Return the number of features of an image: one per channel of the compared layers."""
        with torch.no_grad(), self.capture_features() as means:
            self.T(run.example_input())
        return sum(mean.shape[1] for mean in means)

    def actions_at(self, step: int) -> tuple[bool, bool]:
        return step % self.student_steps == 0, True

    def step(self) -> dict[str, Tensor]:
        return synthesis_step(self, self.run.step)

    def create_fresh_generator(self) -> nn.Module:
        return self.accelerator.prepare(init_dcgan_weights(create_generator(self, self.run)))

    def synthesize(self) -> Tensor:
        # A new generator and its noise are optimized for one batch of images of random classes.
        device, best = self.accelerator.device, BestBatch()
        G, z = self.create_fresh_generator(), torch.randn(self.n, self.z_dim, device=device).requires_grad_()
        y = torch.randint(self.run.task.classes, (self.n,), device=device)
        adam = Adam([*G.parameters(), z], lr=self.lr_G, betas=(0.5, 0.999))
        loop = InnerLoop("the images", self.accelerator, adam, scaler=self.scaler)
        for _ in self.run.progress_range(self.iterations, "synthesis"):
            x = to_images(self.accelerator.forward(G, z))
            loss, features = self.synthesis_loss(x, y)
            best.update(loss, x, features)
            loop.optimization_step(loss, jointly_with=self.heads)
        images, features = best.tensors
        self.pool.add(images, y)
        if self.contrast:
            self.bank.add(features)
        return best.loss

    def synthesis_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of images that should be like T's training data, of classes `y`, and unlike other images.

        Returns:
            The loss, and the features [n, 2 * d] of a crop and of the whole of each image, for the bank.
        """
        whole, crop = random_crop_flip(x), random_resized_crop(x)
        with capture_batchnorm_stats(self.T.net) as stats, self.capture_features() as means_whole:
            t = self.T(whole)
        loss = self.cross_entropy * self.run.task.supervised_loss(t, y) + self.bn * priors.batchnorm(stats)
        if self.adv:
            loss = loss - self.adv * inversion.agreement_kl(self.S.forward_eval(whole), t)
        if not self.contrast:
            return loss, x.new_zeros(len(x), 0)
        with self.capture_features() as means_crop:
            self.T(crop)
        v_crop, v_whole = torch.cat(means_crop, 1), torch.cat(means_whole, 1)
        old_crop, old_whole = self.bank.sample(self.negatives).chunk(2, 1)
        views = self.H(torch.cat([v_crop, old_crop]))
        with torch.no_grad():
            anchors = self.H(torch.cat([v_whole, old_whole]))
        loss = loss + self.contrast * inversion.contrastive_loss(views, anchors, len(x), self.contrast_temperature)
        return loss, torch.cat([v_crop, v_whole], 1)

    def train_student(self) -> Tensor:
        # S imitates T on images of the pool.
        with torch.no_grad():
            x = self.pool.sample(self.run.per_rank(self.run.batch_size))
            t = self.T(x)
        loss_S = logits.kl(self.S(x), t, self.temperature)
        self.S.optimization_step(loss_S)
        return loss_S
