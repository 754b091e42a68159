"""ZSKT: a generator looks for images on which the student contradicts the teacher; the student is corrected on them.

Paper: Micaelli, Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019, arXiv
1905.09768; Algorithm 1.
Code: polo5/ZeroShotKnowledgeTransfer 492cbff (read for facts). As there, KL is a mean over the classes too, and of the
attention maps the mean of the squares is taken, not a norm: the weight 250 belongs to these.
G ends in BatchNorm, as the code's does. A sigmoid begins in one grey: all images may be of one class to T, S learns to
name it always, and nothing is left that they disagree about.
Differs: while one player is updated the others take no gradients, and G draws the images of the n_S student steps
once, since they are the same (same result, less work). The maps of attention are found by their resolution, in any two
networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Adam

from compress.engine.run import Run
from compress.engine.taps import stages, tapped
from compress.errors import UsageError
from compress.losses import features, logits
from compress.models.generators import generator, side, standardise

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]


@dataclass
class ZSKT:
    """A generator looks for images on which the student contradicts the teacher, and the student is corrected there."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    batch_size: ClassVar[int] = 128

    #: weight of the attention maps, a mean over images and places, summed over resolutions (beta); 0 leaves them out
    attention: Weight = 250.0
    moves: Count = 10  #: student steps an iteration, all on the same images (n_S of Algorithm 1)
    clip: Positive = 5.0  #: longest that the gradient of the student, and that of the generator, may be
    lr: Positive = 2e-3  #: learning rate of the student (Adam, cosine)
    lr_G: Positive = 1e-3  #: learning rate of the generator (Adam, cosine)
    #: shape of G: small, shallow, deep, or without `standardised` dcgan; None: small up to 64 pixels, deep above
    generator: str | None = None
    z_dim: Count = 100  #: dimensions of the noise
    width_G: Count = 64  #: channels of the generator's last hidden layer
    #: G ends in BatchNorm, as published, so that images vary as the data do; if not, in a sigmoid
    standardised: bool = True

    @property
    def uses(self) -> tuple[str, ...]:
        return ("gradients", "features") if self.attention else ("gradients",)

    def setup(self, run: Run) -> None:
        self.T = run.teacher
        self.n, self.device = max(1, run.batch_size // run.place.world), run.place.device
        self.pairs = self.maps(run) if self.attention else []
        size, channels = side(run.task.image_size), run.task.channels
        kind = self.generator or ("small" if size <= 64 else "deep")
        inner = generator(size, z_dim=self.z_dim, width=self.width_G, channels=channels, kind=kind)
        G = standardise(inner, run.student) if self.standardised else inner
        self.G = run.player("G", G, optim=partial(Adam, lr=self.lr_G))
        self.S = run.player("S", run.student, optim=partial(Adam, lr=self.lr))
        run.show("synthetic", partial(self.G.look, run.noise(100, self.z_dim)))

    def maps(self, run: Run) -> list[tuple[str, str]]:
        """Where teacher and student finish a resolution that both have, from the image on."""
        of_T, of_S = (stages(net, run.blank()) for net in (self.T.net, run.student))
        at_S = {(h, w): path for path, (_, h, w) in of_S.items()}
        pairs = [(path, at_S[h, w]) for path, (_, h, w) in of_T.items() if (h, w) in at_S]
        if not pairs:
            sizes = [", ".join(f"{h}x{w}" for _, h, w in found.values()) or "none" for found in (of_T, of_S)]
            raise UsageError(
                f"method.attention: the teacher's maps are {sizes[0]} and the student's {sizes[1]}, and attention "
                "needs one resolution in common; set method.attention to 0, or choose another student."
            )
        return pairs

    def images(self, z: Tensor) -> Tensor:
        return self.G(z).to(torch.float32, memory_format=torch.channels_last)

    def contradiction(self, s: Tensor, t: Tensor) -> Tensor:
        """KL(T ‖ S), a mean over the classes too."""
        return logits.kl(s, t) / t.shape[1]

    def step(self) -> dict[str, Tensor]:
        # G looks for images on which S contradicts T.
        z = torch.randn(self.n, self.z_dim, device=self.device)
        x = self.images(z)
        loss_G = -self.contradiction(self.S.fixed(x), self.T(x))
        self.G.minimize(loss_G, clip=self.clip)

        # S is corrected on what G now makes of the same noise, and attends to what T attends to.
        with torch.no_grad(), tapped(self.T.net, *(path for path, _ in self.pairs)) as of_T:
            x = self.images(z)
            t = self.T(x)
        loss_S = torch.zeros(())
        for _ in range(self.moves):
            with tapped(self.S.net, *(path for _, path in self.pairs)) as of_S:
                loss_S = self.contradiction(self.S(x), t)
            for at_T, at_S in self.pairs:
                loss_S = loss_S + self.attention * features.attention(of_S[at_S], of_T[at_T])
            self.S.minimize(loss_S, clip=self.clip)
        return {"G": loss_G, "S": loss_S}
