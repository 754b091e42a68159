"""CRD: the student's embedding of an image must identify the teacher's embedding of it among thousands.

Paper: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699; as the baseline
"CRD" of MosaicKD's Table 1.
Code: HobbitLong/RepDistiller, crd/ (read for facts: weight 0.8 with cross entropy of weight 1; CRD+KD adds KL of weight
1). The settings of Table 1 are not published.
Differs: without labels, KL replaces the cross entropy, and negatives are any other images, not those of other classes.
Learning rate, batch and epochs are those of Table 1's KD. Scores stay logarithms, so no eps is needed. They are
computed against the whole bank, from which those of the sampled images are read (same result, much less memory). An
image that occurs twice in a batch updates the banks once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import SGD

from compress.config import setting
from compress.engine.accelerator import Accelerator
from compress.engine.hooks import capture_activations, find_classifier
from compress.engine.run import Run
from compress.engine.trainable import TrainableModel
from compress.errors import UsageError
from compress.losses import contrastive, logits
from compress.methods.fields import IMAGE_TASKS, Count, Fraction, Positive, Weight


@dataclass
class CRD:
    """The student matches the teacher's predictions, and its embedding of an image identifies the teacher's."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("unlabeled",)
    tasks: ClassVar[tuple[str, ...]] = IMAGE_TASKS
    uses: ClassVar[tuple[str, ...]] = ("features",)
    batch_size: ClassVar[int] = 128

    nce: Weight = setting(0.8, "Weight of the contrastive loss, with either network as the anchor.")
    kl: Weight = setting(1.0, "Weight of the softened predictions.")
    negatives: Count = setting(16384, "Negatives per image (K); sampled with replacement if there are few images.")
    tau: Positive = setting(0.07, "Temperature of the contrastive loss.")
    momentum: Fraction = setting(0.5, "Share of the old embedding in updates of the banks.")
    embedding_dim: Count = setting(128, "Dimensions of the embeddings.")
    temperature: Positive = setting(5.0, "Temperature of the softened predictions.")
    lr: Positive = setting(0.1, "Learning rate of student and embeddings (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(1e-4, "Weight decay of student and embeddings.")
    augment: bool = setting(True, "Random crop (4 pixels) and flip.")

    def setup(self, run: Run) -> None:
        self.T, self.rows, self.images = run.teacher, run.task.rows, len(run.sources["unlabeled"])
        if self.images < 2:
            raise UsageError(f"data.unlabeled: found {self.images} images, expected two or more.")
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        self.classifier_T, width_T = find_classifier(self.T.net, run.example_input())
        self.classifier_S, width_S = find_classifier(self.S.net, run.example_input())
        self.E_T = run.add_trainable("E_T", nn.Linear(width_T, self.embedding_dim), optimizer=sgd)
        self.E_S = run.add_trainable("E_S", nn.Linear(width_S, self.embedding_dim), optimizer=sgd)
        self.M_T, self.M_S = (EmbeddingBank(self.images, self.embedding_dim, run.accelerator) for _ in range(2))
        run.register("bank T", self.M_T)
        run.register("bank S", self.M_S)
        self.data = run.stream("unlabeled", "unlabeled", augment=self.augment)

    def step(self) -> dict[str, Tensor]:
        x = next(self.data)
        with torch.no_grad(), capture_activations(self.T.net, self.classifier_T, capture_inputs=True) as features_T:
            t = self.rows(self.T(x))
        with capture_activations(self.S.net, self.classifier_S, capture_inputs=True) as features_S:
            s = self.rows(self.S(x))
        e_t = embed(self.E_T, features_T[self.classifier_T])
        e_s = embed(self.E_S, features_S[self.classifier_S])

        # Each embedding must identify its image among the other network's embeddings; column 0 is the true pair.
        drawn = self.draw_negatives(self.data.indices.to(e_s.device))
        h_S, h_T = self.M_T.log_h(e_s, drawn, self.tau), self.M_S.log_h(e_t, drawn, self.tau)
        loss_E = contrastive.nce(h_S, self.images) + contrastive.nce(h_T, self.images)  # Eq. 18
        loss_S = logits.kl(s, t, self.temperature)
        self.S.optimization_step(self.kl * loss_S + self.nce * loss_E, jointly_with=[self.E_S, self.E_T])

        self.M_T.update(self.data.indices, e_t, self.momentum)
        self.M_S.update(self.data.indices, e_s, self.momentum)
        return {"S": loss_S, "E": loss_E}

    def draw_negatives(self, i: Int64[Tensor, " n"]) -> Int64[Tensor, "n m"]:
        """Return each image's own index, then K others: all different, unless K exceeds half of the images."""
        if self.negatives > self.images / 2:
            others = torch.randint(self.images - 1, (len(i), self.negatives), device=i.device)
            others = others + (others >= i[:, None])
        else:
            keys = torch.rand(len(i), self.images, device=i.device).scatter(1, i[:, None], 2.0)
            others = keys.topk(self.negatives, largest=False, sorted=False).indices
        return torch.cat([i[:, None], others], 1)


def embed(head: TrainableModel, features: Float[Tensor, "n f"]) -> Float[Tensor, "n d"]:
    """Return normalized embeddings of features."""
    return F.normalize(head(features).float())


class EmbeddingBank:
    """One network's embedding of every image, and the normalization Z of scores against them.

    Memory: 4 * images * dim bytes on the device, and in every checkpoint. All processes hold the same bank, because
    each adds the embeddings of all; checkpoints contain one copy.
    """

    def __init__(self, images: int, dim: int, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        limit = (dim / 3) ** -0.5
        rows = (2 * torch.rand(images, dim) - 1) * limit
        self.rows: Float[Tensor, "images d"] = rows.to(accelerator.device)
        self.Z: Float[Tensor, ""] | None = None  # set by the first batch

    def log_h(self, e: Float[Tensor, "n d"], drawn: Int64[Tensor, "n m"], tau: float) -> Float[Tensor, "n m"]:
        """Return e · row / τ − log Z of the drawn rows; Z is N · the mean of exp(e · row / τ) in the first batch."""
        scores = (e @ self.rows.mT).gather(1, drawn) / tau
        if self.Z is None:
            self.Z = scores.detach().exp().mean() * len(self.rows)
            self.accelerator.all_reduce_mean([self.Z])
        return scores - self.Z.log()

    def update(self, indices: Int64[Tensor, " n"], e: Float[Tensor, "n d"], momentum: float) -> None:
        """Blend the embeddings of all processes into the rows of their images."""
        all_indices, all_e = self.accelerator.all_gather(indices), self.accelerator.all_gather(e.detach())
        unique = np.unique(all_indices.numpy(), return_index=True)
        i, first = (torch.from_numpy(array).to(all_e.device) for array in unique)
        self.rows[i] = F.normalize(momentum * self.rows[i] + (1 - momentum) * all_e[first])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "Z": self.Z}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows.copy_(state["rows"])
        self.Z = None if state["Z"] is None else state["Z"].to(self.rows.device)
