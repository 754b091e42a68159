"""SSKD: the student also matches the teacher's predictions on rotated images, and its similarities between images.

Paper: Xu, Liu, Li, Loy, "Knowledge Distillation Meets Self-Supervision", ECCV 2020, arXiv 2006.07114; as the baseline
"SSKD" of MosaicKD's Table 1.
Code: xuguodong03/SSKD (read for facts: cross entropy 0.1 besides the weights below, 60 epochs for the teacher's head
and 240 for the student). The settings of Table 1 are not published.
Differs: there are no labels, so no cross entropy, and the true class of a rotated image is the teacher's for the
original. The stages are shares of the run, with a cosine learning rate in each. Crops are padded by reflection, not
with black.
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

from compress.config import setting
from compress.engine.hooks import capture_activations, find_classifier
from compress.engine.run import Run
from compress.engine.schedules import cosine
from compress.errors import UsageError
from compress.losses import logits, relations
from compress.methods.fields import Positive, Weight

Share = Annotated[float, Field(ge=0, le=1)]

PAD = 4  #: maximum shift of a view, in pixels


@dataclass
class SSKD:
    """The student also matches predictions on rotated images, and similarities between rotated and original ones."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("unlabeled",)
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    uses: ClassVar[tuple[str, ...]] = ("features",)
    batch_size: ClassVar[int] = 64

    head_fraction: Annotated[float, Field(gt=0, lt=1)] = setting(
        0.2,
        "Share of the run for the teacher's head (stage 1).",
    )
    kl: Weight = setting(0.9, "Weight of the softened predictions on original images.")
    rotated: Weight = setting(2.7, "Weight of the softened predictions on rotated images.")
    similarity: Weight = setting(10.0, "Weight of the similarities between rotated and original images.")
    temperature: Positive = setting(4.0, "Temperature of the softened predictions.")
    similarity_temperature: Positive = setting(0.5, "Temperature of the similarities.")
    wrong_rotated_fraction: Share = setting(1.0, "Used share of misclassified rotated images, best ones first.")
    wrong_similarity_fraction: Share = setting(0.75, "Used share of rotated images with an unidentified original.")
    lr: Positive = setting(0.05, "Learning rate of the student and its head (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(5e-4, "Weight decay of the student and both heads.")
    lr_head: Positive = setting(0.05, "Learning rate of the teacher's head (SGD, momentum 0.9, cosine).")
    augment: bool = setting(True, "Flip half of the images, and crop every view (4 pixels) independently.")

    @property
    def stage_starts(self) -> tuple[float, ...]:
        return (self.head_fraction,)

    def setup(self, run: Run) -> None:
        height, width = run.task.image_size
        if height != width:
            raise UsageError(
                f"task.image_size: found {height}x{width}, expected square images, because SSKD rotates them by 90 "
                "degrees; use a square teacher."
            )
        self.run, self.T, self.rows = run, run.teacher, run.task.rows
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd, schedule=self.stage_2)
        self.classifier_T, width_T = find_classifier(self.T.net, run.example_input())
        self.classifier_S, width_S = find_classifier(self.S.net, run.example_input())
        self.H_T = run.add_trainable(
            "H_T", projection_head(width_T), optimizer=partial(sgd, lr=self.lr_head), schedule=self.stage_1
        )
        self.H_S = run.add_trainable("H_S", projection_head(width_S), optimizer=sgd, schedule=self.stage_2)
        self.stage_state = StageState()
        run.register("stage", self.stage_state)
        self.data = run.stream("unlabeled", "unlabeled")

    def stage_1(self, progress: float) -> float:
        return cosine(progress / self.head_fraction)

    def stage_2(self, progress: float) -> float:
        return cosine((progress - self.head_fraction) / (1 - self.head_fraction))

    def step(self) -> dict[str, Tensor]:
        if self.stage_state.step is None and self.run.progress >= self.head_fraction:
            self.stage_state.step = self.run.step
        x = self.rotated_views(next(self.data))
        return self.train_teacher_head(x) if self.stage_state.step is None else self.train_student(x)

    def train_teacher_head(self, x: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """Stage 1: a head on T, which stays frozen, learns which image of the batch a rotated one shows."""
        with torch.no_grad(), capture_activations(self.T.net, self.classifier_T, capture_inputs=True) as features_T:
            self.T(x)
        loss_H = F.cross_entropy(similarity_matrix(self.H_T(features_T[self.classifier_T])), source_index(x))
        self.H_T.optimization_step(loss_H)
        return {"H_T": loss_H}

    def train_student(self, x: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """Stage 2: S and its own head match T on original images, on rotated ones, and in their similarities."""
        with torch.no_grad(), capture_activations(self.T.net, self.classifier_T, capture_inputs=True) as features_T:
            t = self.rows(self.T(x))
        with capture_activations(self.S.net, self.classifier_S, capture_inputs=True) as features_S:
            s = self.rows(self.S(x))
        similarity_t = similarity_matrix(self.H_T.predict(features_T[self.classifier_T]))
        similarity_s = similarity_matrix(self.H_S(features_S[self.classifier_S]))

        n, index = len(x) // 4, source_index(x)
        use_rotated = relations.select_rows(t[n:], t[:n].argmax(1)[index], self.wrong_rotated_fraction)
        use_similarity = relations.select_rows(similarity_t, index, self.wrong_similarity_fraction)
        loss_S = (
            self.kl * logits.kl(s[:n], t[:n], self.temperature)
            + self.rotated * relations.selected_kl(s[n:], t[n:], use_rotated, self.temperature)
            + self.similarity
            * relations.selected_kl(similarity_s, similarity_t, use_similarity, self.similarity_temperature)
        )
        self.S.optimization_step(loss_S, jointly_with=[self.H_S])
        return {"S": loss_S}

    def rotated_views(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "4*n 3 h w"]:
        """Return the original images, then all of them rotated by 90, 180 and 270 degrees."""
        if not self.augment:
            return rotate_all(x)
        flipped = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
        return random_shift(rotate_all(torch.where(flipped, x.flip(3), x)))


class StageState:
    """The step at which stage 2 starts; None before. Checkpoints contain it, because a time limit is not repeatable."""

    step: int | None = None

    def state_dict(self) -> dict[str, int | None]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        self.step = state["step"]


def projection_head(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def rotate_all(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "4*n 3 h w"]:
    """Concatenate all images rotated by 0, 90, 180 and 270 degrees."""
    return torch.cat([x.rot90(quarters, (2, 3)) for quarters in range(4)]).contiguous(memory_format=torch.channels_last)


def random_shift(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Shift each image by up to PAD pixels each way, with reflection at the border."""
    n, _, height, width = x.shape
    down, right = torch.randint(2 * PAD + 1, (2, n, 1), device=x.device)
    rows, columns = (start + torch.arange(side, device=x.device) for start, side in ((down, height), (right, width)))
    image = torch.arange(n, device=x.device)[:, None, None]
    padded = F.pad(x, (PAD, PAD, PAD, PAD), mode="reflect").permute(0, 2, 3, 1)
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def similarity_matrix(e: Float[Tensor, "n d"]) -> Float[Tensor, "rotated original"]:
    """Return the similarity of every rotated image to every original one, from embeddings of `rotated_views`."""
    n = len(e) // 4
    return relations.cosine_similarity(e[n:], e[:n])


def source_index(x: Float[Tensor, "n 3 h w"]) -> Tensor:
    """Return the index of the original of each rotated image in `rotated_views`."""
    return torch.arange(len(x) // 4, device=x.device).repeat(3)
