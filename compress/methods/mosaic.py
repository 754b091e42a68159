"""MosaicKD: patches of out-of-domain images are assembled, like tiles, into samples of the teacher's domain.

Paper: Fang, Bao, Song, Wang, Xie, Shen, Song, "Mosaicking to Distill: Knowledge Distillation from Out-of-Domain Data",
NeurIPS 2021, arXiv 2110.15094; Algorithm 1.
Code: zju-vipa/MosaicKD a8d8e2c (read for facts).
Differs: real and synthetic images are both normalized as the teacher's (the code normalizes real ones by their own
statistics). D reads images scaled to [-1, 1]. While one model is updated, the others compute no gradients (same result,
less work). The balance term cannot be NaN. Incomplete batches are dropped. Every patch size is D's true receptive
field, and small patches see no padding (`models/discriminators.py`).
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from compress.config import setting
from compress.engine.augmentation import color_jitter
from compress.engine.ema import ExponentialMovingAverage
from compress.engine.hooks import capture_batchnorm_stats
from compress.engine.run import Run
from compress.engine.teacher_cache import cache_teacher_logits
from compress.engine.trainable import InnerLoop
from compress.errors import UsageError
from compress.losses import adversarial, logits, priors
from compress.methods.fields import ALL_TASKS, SHALLOW_GENERATOR, Count, CountOrZero, Fraction, Positive, Weight
from compress.methods.generator_setup import create_generator, to_images
from compress.models.discriminators import build_discriminator
from compress.models.generators import square_side


@dataclass
class MosaicKD:
    """A generator, a patch discriminator and the student learn from the frozen teacher and out-of-domain images."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("unlabeled",)
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    batch_size: ClassVar[int] = 256

    patch_size: Count | Literal["auto"] = setting(
        8,
        "Patch size of the discriminator in pixels: 1, 2, 4, 8, 10, 18, 22, or the image's side (Table 4); auto: "
        "selected before the run by the domain shift of the images.",
    )
    local: Weight = setting(1.0, "Weight of L_local, summed over an image's patches (Eq. 3); 0: no discriminator.")
    align: Weight = setting(1.0, "Weight of L_align, the teacher's entropy on mosaics (Eq. 4).")
    adv: Weight = setting(1.0, "Weight of the divergence of student and teacher, maximized by the generator (Eq. 7).")
    balance: Weight = setting(10.0, "Weight of the entropy of the mean prediction over a batch, in bits (appendix).")
    balance_per_pixel: bool = setting(False, "For segmentation, balance the classes at each pixel (not in the paper).")
    bn: Weight = setting(0.0, "Weight of the teacher's BatchNorm statistics (DeepInversion; not in the paper).")
    ema_G: Fraction = setting(
        0.0,
        "Decay of a moving average of the generator, which makes half of the student's mosaics (MAD; not in the "
        "paper); 0: none.",
    )
    meta_steps: CountOrZero = setting(0, "Steps of G's copy that adapts to the student (FastDFKD; not in the paper).")
    lr_z: Weight = setting(0.01, "Learning rate of the noise that adapts with that copy.")
    temperature: Positive = setting(1.0, "Temperature of the softened predictions that the student matches.")
    student_steps: Count = setting(5, "Student steps per iteration (k of Algorithm 1).")
    ood_fraction: Fraction = setting(0.5, "Share of out-of-domain images in the student's batches.")
    lr: Positive = setting(0.1, "Learning rate of the student (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(1e-4, "Weight decay of the student.")
    lr_G: Positive = setting(1e-3, "Learning rate of the generator (Adam, betas 0.5 and 0.999, cosine).")
    lr_D: Positive = setting(1e-3, "Learning rate of the discriminator (Adam, betas 0.5 and 0.999, cosine).")
    generator: str | None = setting(None, SHALLOW_GENERATOR)
    z_dim: Count = setting(100, "Dimensions of the noise.")
    width_G: Count = setting(64, "Channels of the generator's last hidden layer.")
    width_D: Count = setting(128, "Channels of the discriminator's first layer.")
    augment: bool = setting(True, "Random crop and flip of the student's out-of-domain images.")
    color_jitter: bool = setting(False, "Random colors and flips of the student's images (not in the paper).")
    cache_teacher_logits: bool = setting(False, "Compute logits of out-of-domain images once; needs unchanged images.")

    @property
    def uses(self) -> tuple[str, ...]:
        return ("gradients", "batchnorm") if self.bn else ("gradients",)

    def setup(self, run: Run) -> None:
        self.T, self.rows = run.teacher, run.task.rows
        self.n, self.accelerator = run.per_rank(run.batch_size), run.accelerator
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        adam = partial(Adam, betas=(0.5, 0.999))
        G = create_generator(self, run, small="shallow")
        self.G = run.add_trainable("G", G, optimizer=partial(adam, lr=self.lr_G * (self.meta_steps or 1)))
        self.scaler = run.create_scaler("meta step") if self.meta_steps else None
        self.ema = ExponentialMovingAverage(self.G.net, self.ema_G) if self.ema_G else None
        if self.ema is not None:
            # Like G, the average normalizes by the batch: averaged running statistics do not match its weights.
            self.ema.net.train()
            run.register("ema of G", self.ema)
        if self.local:
            if self.patch_size == "auto":
                raise UsageError("method.patch_size: found auto, expected a number; only a training run resolves auto.")
            D = build_discriminator(self.patch_size, square_side(run.task.image_size), width=self.width_D)
            self.D = run.add_trainable("D", D, optimizer=partial(adam, lr=self.lr_D))
            self.real = run.stream("real", "unlabeled")
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        ood = round(run.batch_size * self.ood_fraction / (1 - self.ood_fraction))
        self.ood = run.stream("ood", "unlabeled", batch_size=ood, augment=self.augment) if ood else None
        self.cache = None
        if self.cache_teacher_logits and self.ood:
            self.cache = cache_teacher_logits(run, "unlabeled", is_augmented=self.augment or self.color_jitter)
        run.log_images("mosaics", partial(self.G.predict, run.fixed_noise(100, self.z_dim)))

    def sample_noise(self, n: int) -> Tensor:
        return torch.randn(n, self.z_dim, device=self.accelerator.device)

    def generate(self, G: nn.Module, z: Tensor) -> Tensor:
        return to_images(self.accelerator.forward(G, z))

    def student_batch(self, G: nn.Module) -> Tensor:
        """Return new mosaics, followed by out-of-domain images."""
        if self.ema is None:
            parts = [self.generate(G, self.sample_noise(self.n))]
        else:
            n_ema = self.n // 2
            parts = [
                self.generate(G, self.sample_noise(self.n - n_ema)),
                self.generate(self.ema.net, self.sample_noise(n_ema)),
            ]
        x = torch.cat(parts if self.ood is None else [*parts, next(self.ood)])
        return color_jitter(x) if self.color_jitter else x

    def teacher_logits(self, x: Tensor) -> Tensor:
        """Return T's logits of a student batch; those of out-of-domain images come from the cache if there is one."""
        if self.cache is None or self.ood is None:
            return self.T(x)
        return torch.cat([self.T(x[: self.n]), self.cache(x[self.n :], self.ood.indices)])

    def generator_loss(self, x: Tensor) -> Tensor:
        """Loss of images that should be mosaics of real patches for which T is confident and S is wrong."""
        with capture_batchnorm_stats(self.T.net) if self.bn else nullcontext([]) as stats:
            output_T = self.T(x)
        s, t = self.rows(self.S.forward_frozen(x)), self.rows(output_T)
        per_position = self.balance_per_pixel or t.ndim > output_T.ndim  # several labels: balance each
        loss = (
            self.align * logits.entropy(t)  # Eq. 4
            - self.adv * logits.kl(s, t)  # Eq. 7
            # appendix, in bits
            - self.balance * logits.marginal_entropy(t, per_position=per_position) / math.log(2)
        )
        if self.local:
            loss = loss + self.local * adversarial.real(self.D.forward_frozen(x))  # Eq. 3
        if self.bn:
            loss = loss + self.bn * priors.batchnorm(stats)
        return loss

    def meta_step(self, z: Tensor) -> tuple[Tensor, nn.Module]:
        """Optimize a copy of G and its noise for a few steps; G follows the sum of the copy's gradients.

        FastDFKD's first-order meta-learning, with L_local as its prior.

        Returns:
            The last loss, and the copy.
        """
        G_copy, z = copy.deepcopy(self.G.net), z.clone().requires_grad_()
        lr = self.G.optimizer.param_groups[0]["lr"] / self.meta_steps
        groups = [
            {"params": list(G_copy.parameters()), "lr": lr},
            {"params": [z], "lr": self.lr_z * lr / self.lr_G},
        ]
        adam = Adam(groups, betas=(0.5, 0.999))
        loop = InnerLoop("G", self.accelerator, adam, nets=[G_copy], scaler=self.scaler)
        gradients, loss = [torch.zeros_like(p) for p in G_copy.parameters()], torch.zeros(())
        for _ in range(self.meta_steps):
            loss = self.generator_loss(self.generate(G_copy, z))
            loop.optimization_step(loss)
            for total, parameter in zip(gradients, G_copy.parameters(), strict=True):
                assert parameter.grad is not None
                total += parameter.grad
        self.G.apply_gradients(gradients)
        for buffer, adapted in zip(self.G.net.buffers(), G_copy.buffers(), strict=True):
            buffer.copy_(adapted)
        return loss, G_copy

    def step(self) -> dict[str, Tensor]:
        z = self.sample_noise(self.n)
        x = self.generate(self.G.net, z)
        losses = {}
        if self.local:
            # D distinguishes patches of real images from those of mosaics.
            judged_fake, judged_real = self.D(x.detach()), self.D(next(self.real))
            losses["D"] = self.local / 2 * (adversarial.fake(judged_fake) + adversarial.real(judged_real))  # Eq. 3
            self.D.optimization_step(losses["D"])

        # G assembles real patches into images for which T is confident and S is wrong.
        G = self.G.net
        if self.meta_steps:
            losses["G"], G = self.meta_step(z)
        else:
            losses["G"] = self.generator_loss(x)
            self.G.optimization_step(losses["G"])
        if self.ema is not None:
            self.ema.update(self.G.net)

        # S imitates T on mosaics and on out-of-domain images.
        loss_S = torch.zeros(())
        for _ in range(self.student_steps):
            with torch.no_grad():
                x = self.student_batch(G)
                t = self.rows(self.teacher_logits(x))
            loss_S = logits.kl(self.rows(self.S(x)), t, self.temperature)
            self.S.optimization_step(loss_S)
        return {**losses, "S": loss_S}
