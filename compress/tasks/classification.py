"""One label an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

Batch = tuple[Tensor, Tensor]


@dataclass
class Classification:
    """Logits [n, classes] for images [n, 3, h, w] in [0, 1]."""

    classes: int
    image_size: tuple[int, int]
    channels: int = 3  #: that carry information: 1 for grey images
    class_names: list[str] | None = None

    def rows(self, answer: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """One row of logits a decision: here the answer itself."""
        return answer

    def supervised(self, answer: Float[Tensor, "n c"], target: Int64[Tensor, " n"]) -> Float[Tensor, ""]:
        """Cross entropy in nats, mean over images."""
        return F.cross_entropy(answer.float(), target)

    def score(self, net: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> dict[str, float]:
        """`accuracy`, and `accuracy_top5` from 50 classes up: shares in [0, 1] over all images of the batches."""
        meters = {"accuracy": MulticlassAccuracy(self.classes, average="micro", sync_on_compute=False)}
        if self.classes >= 50:
            meters["accuracy_top5"] = MulticlassAccuracy(self.classes, average="micro", top_k=5, sync_on_compute=False)
        with torch.no_grad():
            for images, labels in batches:
                answer = net(images).cpu()
                if answer.ndim == 1:  # labels, of a file that decides by itself: there is no second best
                    meters.pop("accuracy_top5", None)
                for meter in meters.values():
                    meter.update(answer.long() if answer.ndim == 1 else answer.float(), labels.cpu())
        return {name: round(float(meter.compute()), 6) for name, meter in meters.items()}

    def picture(self, images: Float[Tensor, "n 3 h w"], answer: Float[Tensor, "n c"]) -> Float[Tensor, "n 3 h w"]:
        """The images ordered by the class of their largest logit, the surest first within a class."""
        confidence, label = answer.float().softmax(1).max(1)
        return images[torch.argsort(label.float() - confidence * 0.999, stable=True)]

    def example(self, n: int) -> tuple[Tensor, ...]:
        """Inputs for export, profile and bench."""
        return (torch.zeros(n, 3, *self.image_size),)
