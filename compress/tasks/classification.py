"""Classification: one label per image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

Batch = tuple[Tensor, Tensor]
TOP5_MIN_CLASSES = 50


@dataclass
class Classification:
    """Logits [n, classes] of images [n, 3, h, w] in [0, 1]."""

    classes: int
    image_size: tuple[int, int]
    channels: int = 3  #: 1 for grayscale images
    class_names: list[str] | None = None

    def rows(self, output: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Return one row of logits per decision: the output itself."""
        return output

    def supervised_loss(self, output: Float[Tensor, "n c"], target: Int64[Tensor, " n"]) -> Float[Tensor, ""]:
        """Cross entropy in nats, mean over images."""
        return F.cross_entropy(output.float(), target)

    def score(self, net: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> dict[str, float]:
        """Compute `accuracy`, and `accuracy_top5` for 50 or more classes: shares in [0, 1] over all images.

        Args:
            net: Returns logits, or labels [n] (which have no top 5).
            batches: Images and labels.
        """
        meters = {"accuracy": MulticlassAccuracy(self.classes, average="micro", sync_on_compute=False)}
        if self.classes >= TOP5_MIN_CLASSES:
            meters["accuracy_top5"] = MulticlassAccuracy(self.classes, average="micro", top_k=5, sync_on_compute=False)
        with torch.no_grad():
            for images, labels in batches:
                output = net(images).cpu()
                if output.ndim == 1:
                    meters.pop("accuracy_top5", None)
                for meter in meters.values():
                    meter.update(output.long() if output.ndim == 1 else output.float(), labels.cpu())
        return {name: round(float(meter.compute()), 6) for name, meter in meters.items()}

    def visualize(self, images: Float[Tensor, "n 3 h w"], output: Float[Tensor, "n c"]) -> Float[Tensor, "n 3 h w"]:
        """Sort images by predicted class, the most confident first within a class."""
        confidence, label = output.float().softmax(1).max(1)
        return images[torch.argsort(label.float() - confidence * 0.999, stable=True)]

    def example_input(self, n: int) -> tuple[Tensor, ...]:
        """Return a batch of `n` inputs for export, profile and bench."""
        return (torch.zeros(n, 3, *self.image_size),)
