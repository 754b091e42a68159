"""DFAD: the student closes the gap to the teacher on images that a generator makes to open it.

Paper: Fang, Song, Shen, Wang, Chen, Song, "Data-Free Adversarial Distillation", 2019, arXiv 1912.11006.
Code: VainF/Data-Free-Adversarial-Distillation 053861f (read for facts).
G ends in tanh and a BatchNorm without weights, as the code's for small images does; `dcgan` is its other one.
Differs: learning rates fall by a cosine, where the code has them constant, or falling in two steps. For label maps the
code sets the student's dropout to 0.5; here it is left as it is. While one player is updated the others take no
gradients (same result, less work).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import SGD, Adam

from compress.engine.run import Run
from compress.losses import logits
from compress.models.generators import generator, side, standardise

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]


@dataclass
class DFAD:
    """The student closes the gap to the teacher's logits on images that a generator makes to open it."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classification", "segmentation")
    uses: ClassVar[tuple[str, ...]] = ("gradients",)
    batch_size: ClassVar[int] = 256

    moves: Count = 5  #: student steps an iteration, each on fresh images, before the one of the generator
    #: G raises log(1 + gap), which grows ever slower, instead of the gap; None: where label maps are answered
    damped: bool | None = None
    lr: Positive = 0.1  #: learning rate of the student (SGD, momentum 0.9, cosine)
    weight_decay: Weight = 5e-4  #: of the student
    lr_G: Positive = 1e-3  #: learning rate of the generator (Adam, cosine)
    generator: str | None = None  #: shape of G: small, shallow, deep or dcgan; None: small up to 64 pixels, deep above
    z_dim: Count = 256  #: dimensions of the noise
    width_G: Count = 64  #: channels of the generator's last hidden layer
    #: G ends in tanh and BatchNorm, as published, so that images vary as the data do; if not, in a sigmoid
    standardised: bool = True

    def setup(self, run: Run) -> None:
        self.T, self.rows = run.teacher, run.task.rows
        self.n, self.device = max(1, run.batch_size // run.place.world), run.place.device
        size, channels = side(run.task.image_size), run.task.channels
        kind = self.generator or ("small" if size <= 64 else "deep")
        inner = generator(size, z_dim=self.z_dim, width=self.width_G, channels=channels, kind=kind)
        G = standardise(inner, run.student, tanh=True) if self.standardised else inner
        self.G = run.player("G", G, optim=partial(Adam, lr=self.lr_G))
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.player("S", run.student, optim=sgd)
        run.show("synthetic", partial(self.G.look, run.noise(100, self.z_dim)))

    def images(self) -> Tensor:
        x = self.G(torch.randn(self.n, self.z_dim, device=self.device))
        return x.to(torch.float32, memory_format=torch.channels_last)

    def step(self) -> dict[str, Tensor]:
        # S closes the gap to T on what G makes now.
        loss_S = torch.zeros(())
        for _ in range(self.moves):
            with torch.no_grad():
                x = self.images()
                t = self.rows(self.T(x))
            loss_S = logits.l1(self.rows(self.S(x)), t)
            self.S.minimize(loss_S)

        # G makes images on which the gap is wide.
        x = self.images()
        t = self.rows(self.T(x))
        gap = logits.l1(self.rows(self.S.fixed(x)), t)
        damped = t.ndim > 2 if self.damped is None else self.damped
        loss_G = -gap.log1p() if damped else -gap
        self.G.minimize(loss_G)
        return {"G": loss_G, "S": loss_S}
