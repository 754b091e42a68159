"""DAFL: a generator learns images that the teacher takes for its own; the student imitates the teacher on them.

Paper: Chen, Wang, Xu, Yang, Liu, Shi, Xu, Xu, Tian, "Data-Free Learning of Student Networks", ICCV 2019, arXiv
1904.01186.
Code: huawei-noah/Efficient-Computing, DAFL (read for facts); the defaults are its settings for CIFAR-10.
G ends in tanh and a BatchNorm without weights, as the code's does: that keeps any step harmless, also one of 0.02.
Differs: G's other BatchNorms have the usual epsilon, not 0.8. The student's learning rate falls by a cosine, not to a
tenth twice. One loss is minimised after the other, not their sum (same result).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import SGD, Adam

from compress.engine.run import Run
from compress.engine.schedules import constant
from compress.engine.taps import classifier, tapped
from compress.losses import features, logits
from compress.models.generators import generator, side, standardise

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]


@dataclass
class DAFL:
    """A generator makes images that the teacher takes for its own, and the student imitates the teacher on them."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    batch_size: ClassVar[int] = 1024

    one_hot: Weight = 0.05  #: weight of L_oh, the teacher's doubt about its own answer, in nats, mean over images
    #: weight of L_a, the size of the teacher's penultimate features, mean over all of them; 0 leaves it out
    activation: Weight = 0.01
    balance: Weight = 5.0  #: weight of L_ie, the balance of the teacher's labels over a batch, in decimal digits
    temperature: Positive = 1.0  #: T of the softened answers that the student imitates
    lr: Positive = 0.1  #: learning rate of the student (SGD, momentum 0.9, cosine)
    weight_decay: Weight = 5e-4  #: of the student
    lr_G: Positive = 0.02  #: learning rate of the generator (Adam, constant)
    generator: str | None = None  #: shape of G: small, shallow, deep or dcgan; None: small up to 64 pixels, deep above
    z_dim: Count = 1000  #: dimensions of the noise
    width_G: Count = 64  #: channels of the generator's last hidden layer
    #: G ends in tanh and BatchNorm, as published, so that images vary as the data do; if not, in a sigmoid
    standardised: bool = True

    @property
    def uses(self) -> tuple[str, ...]:
        return ("gradients", "features") if self.activation else ("gradients",)

    def setup(self, run: Run) -> None:
        self.T = run.teacher
        self.n, self.device = max(1, run.batch_size // run.place.world), run.place.device
        self.last = classifier(self.T.net, run.blank())[0] if self.activation else None
        size, channels = side(run.task.image_size), run.task.channels
        kind = self.generator or ("small" if size <= 64 else "deep")
        inner = generator(size, z_dim=self.z_dim, width=self.width_G, channels=channels, kind=kind)
        G = standardise(inner, run.student, tanh=True) if self.standardised else inner
        self.G = run.player("G", G, optim=partial(Adam, lr=self.lr_G), schedule=constant)
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.player("S", run.student, optim=sgd)
        run.show("synthetic", partial(self.G.look, run.noise(100, self.z_dim)))

    def images(self) -> Tensor:
        x = self.G(torch.randn(self.n, self.z_dim, device=self.device))
        return x.to(torch.float32, memory_format=torch.channels_last)

    def step(self) -> dict[str, Tensor]:
        # G makes images of all classes that T is sure of and that excite it.
        x = self.images()
        with tapped(self.T.net, *([self.last] if self.last else []), entering=True) as entering:
            t = self.T(x)
        loss_G = self.one_hot * logits.one_hot(t) - self.balance * logits.marginal_entropy(t) / math.log(10)
        if self.last is not None:
            loss_G = loss_G - self.activation * features.activation(entering[self.last])
        self.G.minimize(loss_G)

        # S imitates T on the same images.
        loss_S = logits.kl(self.S(x.detach()), t.detach(), self.temperature)
        self.S.minimize(loss_S)
        return {"G": loss_G, "S": loss_S}
