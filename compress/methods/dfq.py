"""DFQ: the adversarial game of generator and student, on images kept near the teacher's training data.

Paper: Choi, Choi, El-Khamy, Lee, "Data-Free Network Quantization With Adversarial Knowledge Distillation", CVPR
Workshops 2020, arXiv 2005.04136.
Code: zju-vipa/CMI acbbea6, the form in which its authors compare with DFQ (read for facts), with its settings; the
paper's own code was not at hand.
Differs from the paper: the student is a smaller network, not a quantised one; one generator, one student; BatchNorm's
statistics are compared by norms, not as normal distributions, and T is kept sure by the cross entropy with its own
answer, not by its entropy: both as that code. Differs from that code: its main script hands the teacher over in place
of the student, so that the adversarial term is 0; here it is S. The student's learning rate falls by a cosine.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import SGD, Adam

from compress.engine.run import Run
from compress.engine.schedules import constant
from compress.engine.taps import batchnorm_moments
from compress.losses import logits, priors
from compress.models.generators import generator, side

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]


@dataclass
class DFQ:
    """A generator makes images near the teacher's training data that the student, who learns from them, gets wrong."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    batch_size: ClassVar[int] = 256

    adv: Weight = 1.0  #: weight of the student's disagreement with the teacher, which G seeks, mean over images
    bn: Weight = 1.0  #: weight of the teacher's BatchNorm statistics, a sum of norms over its layers; 0 leaves them out
    one_hot: Weight = 1.0  #: weight of the teacher's doubt about its own answer, in nats, mean over images
    balance: Weight = 20.0  #: weight of the balance of the teacher's labels over a batch, in nats
    moves: Count = 10  #: student steps an iteration, each on fresh images, after the one of the generator
    temperature: Positive = 1.0  #: T of the softened answers that the student imitates
    lr: Positive = 0.1  #: learning rate of the student (SGD, momentum 0.9, cosine)
    weight_decay: Weight = 1e-4  #: of the student
    lr_G: Positive = 1e-3  #: learning rate of the generator (Adam, betas 0.5 and 0.999, constant)
    generator: str | None = None  #: shape of G: small, shallow, deep, dcgan; None: shallow up to 64 pixels, deep above
    z_dim: Count = 256  #: dimensions of the noise
    width_G: Count = 64  #: channels of the generator's last hidden layer
    #: G makes the student's images in eval mode, as that code; if not, normalising by the batch, as where it learns:
    #: the statistics that it remembers lag behind it, the more the faster it learns
    rest_G: bool = True

    @property
    def uses(self) -> tuple[str, ...]:
        return ("gradients", "batchnorm") if self.bn else ("gradients",)

    def setup(self, run: Run) -> None:
        self.T = run.teacher
        self.n, self.device = max(1, run.batch_size // run.place.world), run.place.device
        size, channels = side(run.task.image_size), run.task.channels
        G = generator(size, z_dim=self.z_dim, width=self.width_G, channels=channels, kind=self.generator)
        adam = partial(Adam, lr=self.lr_G, betas=(0.5, 0.999))
        self.G = run.player("G", G, optim=adam, schedule=constant)
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.player("S", run.student, optim=sgd)
        run.show("synthetic", partial(self.G.look, run.noise(100, self.z_dim)))

    def noise(self) -> Tensor:
        return torch.randn(self.n, self.z_dim, device=self.device)

    def step(self) -> dict[str, Tensor]:
        # G makes images like T's training data, of all classes, that T is sure of and S gets wrong.
        x = self.G(self.noise()).to(torch.float32, memory_format=torch.channels_last)
        with batchnorm_moments(self.T.net) if self.bn else nullcontext([]) as moments:
            t = self.T(x)
        loss_G = (
            self.one_hot * logits.one_hot(t)
            - self.adv * logits.kl(self.S.at_rest(x), t)
            - self.balance * logits.marginal_entropy(t)
        )
        if self.bn:
            loss_G = loss_G + self.bn * priors.batchnorm(moments)
        self.G.minimize(loss_G)

        # S imitates T on what G makes now.
        loss_S = torch.zeros(())
        for _ in range(self.moves):
            with torch.no_grad():
                x = (self.G.look if self.rest_G else self.G)(self.noise())
                x = x.to(torch.float32, memory_format=torch.channels_last)
                t = self.T(x)
            loss_S = logits.kl(self.S(x), t, self.temperature)
            self.S.minimize(loss_S)
        return {"G": loss_G, "S": loss_S}
