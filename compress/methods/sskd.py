"""SSKD: the student also imitates how the teacher answers to turned images, and how alike it finds them.

Paper: Xu, Liu, Li, Loy, "Knowledge Distillation Meets Self-Supervision", ECCV 2020, arXiv 2006.07114; as the baseline
"SSKD" of MosaicKD's Table 1.
Code: xuguodong03/SSKD (read for facts: cross entropy 0.1 beside the weights below, 60 epochs for the teacher's head and
240 for the student). The settings of Table 1 are not published.
Differs: no labels, so no cross entropy, and a turned image's true class is the teacher's for the plain one; the stages
are shares of the run, with a cosine learning rate in each; what comes in at the border of a crop is the reflection, not
black.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD

from compress.engine.run import Run
from compress.engine.schedules import cosine
from compress.engine.taps import classifier, tapped
from compress.errors import UsageError
from compress.losses import logits, relations

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

PAD = 4  #: pixels by which a view is shifted at most


@dataclass
class SSKD:
    """The student imitates the teacher's answers to turned images too, and how alike it finds them and plain ones."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("unlabelled",)
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    uses: ClassVar[tuple[str, ...]] = ("features",)
    batch_size: ClassVar[int] = 64

    head_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  #: of the run, in which the teacher's head learns (stage 1)
    kl: Weight = 0.9  #: weight of the softened answers to plain images
    turned: Weight = 2.7  #: weight of the softened answers to turned images
    alike: Weight = 10.0  #: weight of the similarities between turned and plain images
    temperature: Positive = 4.0  #: T of the softened answers
    temperature_alike: Positive = 0.5  #: T of the similarities
    wrong_turned: Share = 1.0  #: share of turned images learned from that the teacher gets wrong, the least wrong first
    wrong_alike: Share = 0.75  #: share of turned images learned from whose own plain image the teacher does not find
    lr: Positive = 0.05  #: learning rate of the student and its head (SGD, momentum 0.9, cosine)
    weight_decay: Weight = 5e-4  #: of both, and of the teacher's head
    lr_head: Positive = 0.05  #: learning rate of the teacher's head (as the student's)
    augment: bool = True  #: mirror half of the images, and crop every view (4 pixels) by itself

    @property
    def stages(self) -> tuple[float, ...]:
        return (self.head_share,)

    def setup(self, run: Run) -> None:
        size, width = run.task.image_size
        if size != width:
            raise UsageError(
                f"task.image_size: found {size}x{width}, but SSKD turns images by 90 degrees; use a square teacher."
            )
        self.run, self.T, self.rows = run, run.teacher, run.task.rows
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.player("S", run.student, optim=sgd, schedule=self.stage_2)
        (self.at_T, of_T), (self.at_S, of_S) = (classifier(net, run.blank()) for net in (self.T.net, self.S.net))
        self.H_T = run.player("H_T", projection(of_T), optim=partial(sgd, lr=self.lr_head), schedule=self.stage_1)
        self.H_S = run.player("H_S", projection(of_S), optim=sgd, schedule=self.stage_2)
        self.change = Change()
        run.keep("stage", self.change)
        self.data = run.stream("unlabelled", "unlabelled")

    def stage_1(self, progress: float) -> float:
        return cosine(progress / self.head_share)

    def stage_2(self, progress: float) -> float:
        return cosine((progress - self.head_share) / (1 - self.head_share))

    def step(self) -> dict[str, Tensor]:
        if self.change.step is None and self.run.progress >= self.head_share:
            self.change.step = self.run.step
        x = self.views(next(self.data))
        return self.prepare(x) if self.change.step is None else self.teach(x)

    def prepare(self, x: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """Stage 1: a head on T, which is left alone, learns which image of the batch a turned one was."""
        with torch.no_grad(), tapped(self.T.net, self.at_T, entering=True) as of_T:
            self.T(x)
        loss_H = F.cross_entropy(similarities(self.H_T(of_T[self.at_T])), own(x))
        self.H_T.minimize(loss_H)
        return {"H_T": loss_H}

    def teach(self, x: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """Stage 2: S and its own head imitate T on plain images, on turned ones, and in how alike the two are."""
        with torch.no_grad(), tapped(self.T.net, self.at_T, entering=True) as of_T:
            t = self.rows(self.T(x))
        with tapped(self.S.net, self.at_S, entering=True) as of_S:
            s = self.rows(self.S(x))
        alike_t = similarities(self.H_T.look(of_T[self.at_T]))
        alike_s = similarities(self.H_S(of_S[self.at_S]))

        n, truth = len(x) // 4, own(x)
        known = relations.chosen(t[n:], t[:n].argmax(1)[truth], self.wrong_turned)
        found = relations.chosen(alike_t, truth, self.wrong_alike)
        loss_S = (
            self.kl * logits.kl(s[:n], t[:n], self.temperature)
            + self.turned * relations.chosen_kl(s[n:], t[n:], known, self.temperature)
            + self.alike * relations.chosen_kl(alike_s, alike_t, found, self.temperature_alike)
        )
        self.S.minimize(loss_S, together=[self.H_S])
        return {"S": loss_S}

    def views(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "4*n 3 h w"]:
        """The images as they are, then turned by 90, by 180 and by 270 degrees."""
        if not self.augment:
            return four_ways(x)
        mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
        return shifted(four_ways(torch.where(mirrored, x.flip(3), x)))


class Change:
    """The step at which stage 2 began; None before. Kept, as a clock cannot be asked again."""

    step: int | None = None

    def state_dict(self) -> dict[str, int | None]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        self.step = state["step"]


def projection(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def four_ways(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "4*n 3 h w"]:
    return torch.cat([x.rot90(quarters, (2, 3)) for quarters in range(4)]).contiguous(memory_format=torch.channels_last)


def shifted(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Each image by up to PAD pixels each way of its own, what comes in being the reflection."""
    n, _, height, width = x.shape
    down, right = torch.randint(2 * PAD + 1, (2, n, 1), device=x.device)
    rows, columns = (start + torch.arange(side, device=x.device) for start, side in ((down, height), (right, width)))
    image = torch.arange(n, device=x.device)[:, None, None]
    padded = F.pad(x, (PAD, PAD, PAD, PAD), mode="reflect").permute(0, 2, 3, 1)
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def similarities(e: Float[Tensor, "n d"]) -> Float[Tensor, "turned plain"]:
    """Of the embeddings of `views`: how alike every turned image is to every plain one."""
    plain = len(e) // 4
    return relations.similarity(e[plain:], e[:plain])


def own(x: Float[Tensor, "n 3 h w"]) -> Tensor:
    """The number of the plain image of each turned one of `views`."""
    return torch.arange(len(x) // 4, device=x.device).repeat(3)
