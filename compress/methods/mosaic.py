"""MosaicKD: patches of out-of-domain images re-assembled, like tiles, into samples of the teacher's domain.

Paper: Fang, Bao, Song, Wang, Xie, Shen, Song, "Mosaicking to Distill: Knowledge Distillation from Out-of-Domain Data",
NeurIPS 2021, arXiv 2110.15094; Algorithm 1.
Code: zju-vipa/MosaicKD a8d8e2c (read for facts).
Differs: one normalisation, the teacher's own, for real and synthetic images (the code gives real ones that of their own
set); D sees images scaled to [-1, 1]; while one player is updated the others take no gradients (same result, less
work); the balance term cannot be NaN; incomplete batches are dropped; every patch size is D's true receptive
field, and small patches see no padding (`models/discriminators.py`).
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD, Adam

from compress.engine.average import Average
from compress.engine.player import Draft
from compress.engine.recalled import recalled
from compress.engine.recolour import recolour
from compress.engine.run import Run
from compress.engine.taps import batchnorm_moments
from compress.errors import UsageError
from compress.losses import adversarial, logits, priors
from compress.models.discriminators import discriminator
from compress.models.generators import generator, side

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]


@dataclass
class MosaicKD:
    """Four players: a generator, a patch discriminator, the student, and the frozen teacher."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("unlabelled",)
    tasks: ClassVar[tuple[str, ...]] = ("classification", "segmentation")
    batch_size: ClassVar[int] = 256

    #: side in pixels of the patches D judges: 1, 2, 4, 8, 10, 18, 22, or the image's side (Table 4); auto: by how far
    #: the images are from the teacher's own, before the run begins
    patch: Count | Literal["auto"] = 8
    local: Weight = 1.0  #: weight of L_local, summed over the patches of an image (Eq. 3); 0 leaves D out
    align: Weight = 1.0  #: weight of L_align, the teacher's entropy on mosaics (Eq. 4)
    adv: Weight = 1.0  #: weight of the student's disagreement with the teacher, which G seeks (Eq. 7)
    balance: Weight = 10.0  #: weight of the balance of the teacher's labels over a batch, in bits (appendix)
    #: of label maps, balance the classes at each pixel over the batch, not over all its pixels (not in the paper)
    balance_places: bool = False
    bn: Weight = 0.0  #: weight of the teacher's BatchNorm statistics on mosaics (DeepInversion; not in the paper)
    #: decay of an average of G that makes half of the student's mosaics (MAD; not in the paper); 0 is off
    ema_G: Annotated[float, Field(ge=0, lt=1)] = 0.0
    #: steps in which a copy of G adapts to the student, G following it (FastDFKD; not in the paper); 0 is off
    meta_steps: Annotated[int, Field(ge=0)] = 0
    lr_z: Weight = 0.01  #: learning rate of the noise that adapts along with that copy
    temperature: Positive = 1.0  #: T of the softened answers that the student imitates
    moves: Count = 5  #: student steps an iteration (k of Algorithm 1)
    ood_share: Annotated[float, Field(ge=0, lt=1)] = 0.5  #: share of out-of-domain images in the student's batches
    lr: Positive = 0.1  #: learning rate of the student (SGD, momentum 0.9, cosine)
    weight_decay: Weight = 1e-4  #: of the student
    lr_G: Positive = 1e-3  #: learning rate of the generator (Adam, betas 0.5 and 0.999, cosine)
    lr_D: Positive = 1e-3  #: learning rate of the discriminator (Adam, as G)
    generator: str | None = None  #: shape of G: small, shallow, deep, dcgan; None: shallow up to 64 pixels, deep above
    z_dim: Count = 100  #: dimensions of the noise
    width_G: Count = 64  #: channels of the generator's last hidden layer
    width_D: Count = 128  #: channels of the discriminator's first layer
    augment: bool = True  #: crop and flip the out-of-domain images that the student sees (D's are left alone)
    recolour: bool = False  #: change the colours of what the student sees, and mirror half of it (not in the paper)
    #: ask the teacher once about each out-of-domain image; only without `augment` and `recolour`
    keep_answers: bool = False

    @property
    def uses(self) -> tuple[str, ...]:
        return ("gradients", "batchnorm") if self.bn else ("gradients",)

    def setup(self, run: Run) -> None:
        self.T, self.rows = run.teacher, run.task.rows
        self.n, self.place = max(1, run.batch_size // run.place.world), run.place
        size = side(run.task.image_size)
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        adam = partial(Adam, betas=(0.5, 0.999))
        self.G = run.player(
            "G",
            generator(size, z_dim=self.z_dim, width=self.width_G, channels=run.task.channels, kind=self.generator),
            optim=partial(adam, lr=self.lr_G * (self.meta_steps or 1)),
        )
        self.scaler = run.scaler("the copy of G") if self.meta_steps else None
        self.average = Average(self.G.net, self.ema_G) if self.ema_G else None
        if self.average is not None:
            # As G itself it normalises by the batch: an average's remembered statistics fit none of its weights.
            self.average.net.train()
            run.keep("average of G", self.average)
        if self.local:
            if self.patch == "auto":
                raise UsageError("method.patch: found auto, which `compress distill` makes a number; give one here.")
            D = discriminator(self.patch, size, width=self.width_D)
            self.D = run.player("D", D, optim=partial(adam, lr=self.lr_D))
            self.real = run.stream("real", "unlabelled")
        self.S = run.player("S", run.student, optim=sgd)
        ood = round(run.batch_size * self.ood_share / (1 - self.ood_share))
        self.ood = run.stream("ood", "unlabelled", batch_size=ood, augment=self.augment) if ood else None
        changing = self.augment or self.recolour
        self.known = recalled(run, "unlabelled", changing=changing) if self.keep_answers and self.ood else None
        z = run.noise(100, self.z_dim)
        run.show("mosaics", partial(self.G.look, z))

    def noise(self, n: int) -> Tensor:
        return torch.randn(n, self.z_dim, device=self.place.device)

    def mosaics(self, G: nn.Module, z: Tensor) -> Tensor:
        with self.place.autocast():
            x = G(z)
        return x.to(torch.float32, memory_format=torch.channels_last)

    def lesson(self, G: nn.Module) -> Tensor:
        """What the student learns from: fresh mosaics, and out-of-domain images as they are."""
        if self.average is None:
            parts = [self.mosaics(G, self.noise(self.n))]
        else:
            old = self.n // 2
            parts = [self.mosaics(G, self.noise(self.n - old)), self.mosaics(self.average.net, self.noise(old))]
        x = torch.cat(parts if self.ood is None else [*parts, next(self.ood)])
        return recolour(x) if self.recolour else x

    def answer(self, x: Tensor) -> Tensor:
        """The teacher's answer to a lesson, of which what it has said before is not asked again."""
        if self.known is None or self.ood is None:
            return self.T(x)
        return torch.cat([self.T(x[: self.n]), self.known(x[self.n :], self.ood.indices)])

    def cost(self, x: Tensor) -> Tensor:
        """What it costs that `x` are not mosaics of real patches, which T is sure of and S gets wrong."""
        with batchnorm_moments(self.T.net) if self.bn else nullcontext([]) as moments:
            t = self.rows(self.T(x))
        s = self.rows(self.S.fixed(x))
        loss = (
            self.align * logits.entropy(t)  # Eq. 4
            - self.adv * logits.kl(s, t)  # Eq. 7
            - self.balance * logits.marginal_entropy(t, places=self.balance_places) / math.log(2)  # appendix, in bits
        )
        if self.local:
            loss = loss + self.local * adversarial.real(self.D.fixed(x))  # Eq. 3
        if self.bn:
            loss = loss + self.bn * priors.batchnorm(moments)
        return loss

    def adapt(self, z: Tensor) -> tuple[Tensor, nn.Module]:
        """A copy of G, and its noise, go a few steps down L_G; G goes along the sum of the copy's gradients.

        FastDFKD's first-order meta-learning with L_local for its prior. Returns the last loss and the copy.
        """
        copied, z = copy.deepcopy(self.G.net), z.clone().requires_grad_()
        lr = self.G.optimizer.param_groups[0]["lr"] / self.meta_steps
        groups = [
            {"params": list(copied.parameters()), "lr": lr},
            {"params": [z], "lr": self.lr_z * lr / self.lr_G},
        ]
        draft = Draft("G", self.place, Adam(groups, betas=(0.5, 0.999)), nets=[copied], scaler=self.scaler)
        total, loss = [torch.zeros_like(p) for p in copied.parameters()], torch.zeros(())
        for _ in range(self.meta_steps):
            loss = self.cost(self.mosaics(copied, z))
            draft.minimize(loss)
            for whole, parameter in zip(total, copied.parameters(), strict=True):
                assert parameter.grad is not None
                whole += parameter.grad
        self.G.move_along(total)
        for mine, its in zip(self.G.net.buffers(), copied.buffers(), strict=True):
            mine.copy_(its)
        return loss, copied

    def step(self) -> dict[str, Tensor]:
        z = self.noise(self.n)
        x = self.mosaics(self.G.net, z)
        losses = {}
        if self.local:
            # D tells the patches of real images from those of mosaics.
            judged_fake, judged_real = self.D(x.detach()), self.D(next(self.real))
            losses["D"] = self.local / 2 * (adversarial.fake(judged_fake) + adversarial.real(judged_real))  # Eq. 3
            self.D.minimize(losses["D"])

        # G mosaics real patches into images that T is sure of and S gets wrong.
        G = self.G.net
        if self.meta_steps:
            losses["G"], G = self.adapt(z)
        else:
            losses["G"] = self.cost(x)
            self.G.minimize(losses["G"])
        if self.average is not None:
            self.average.follow(self.G.net)

        # S imitates T, on mosaics and on the out-of-domain images themselves.
        loss_S = torch.zeros(())
        for _ in range(self.moves):
            with torch.no_grad():
                x = self.lesson(G)
                t = self.rows(self.answer(x))
            loss_S = logits.kl(self.rows(self.S(x)), t, self.temperature)
            self.S.minimize(loss_S)
        return {**losses, "S": loss_S}
