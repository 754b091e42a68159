"""One label a pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import draw_segmentation_masks

Batch = tuple[Tensor, Tensor]
PICTURES = 50


@dataclass
class Segmentation:
    """Logits [n, classes, h, w] for images [n, 3, h, w] in [0, 1]. `ignore_index`: nobody judges this pixel."""

    classes: int
    image_size: tuple[int, int]
    channels: int = 3  #: that carry information: 1 for grey images
    class_names: list[str] | None = None
    ignore_index: int = 255

    def rows(self, answer: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c m"]:
        """One row of logits a decision: a pixel each, m = h · w an image.

        The pixels of a class lie side by side in memory: a softmax over classes is then seventeen times as fast as over
        eleven neighbours (2 cores).
        """
        return answer.float().flatten(2).contiguous()

    def supervised(self, answer: Float[Tensor, "n c h w"], target: Int64[Tensor, "n h w"]) -> Float[Tensor, ""]:
        """Cross entropy in nats, mean over the pixels that count; 0 where none does."""
        total = F.cross_entropy(answer.float(), target, ignore_index=self.ignore_index, reduction="sum")
        return total / (target != self.ignore_index).sum().clamp_min(1)

    def score(self, net: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> dict[str, float]:
        """`miou`, `pixel_accuracy` and `iou/NAME` of every class that occurs: shares in [0, 1].

        From one confusion matrix over all pixels of the batches. A class that neither the masks nor the answers know
        has no IoU and does not enter the mean. `net` may answer with logits or with a label map [n, h, w].
        """
        meter = MulticlassConfusionMatrix(self.classes, ignore_index=self.ignore_index, sync_on_compute=False)
        with torch.no_grad():
            for images, masks in batches:
                answer = net(images).cpu()
                meter.update(answer.argmax(1) if answer.ndim == 4 else answer.long(), masks.cpu())
        return self.summary(meter.compute().double())

    def summary(self, confusion: Float[Tensor, "c c"]) -> dict[str, float]:
        """The metrics of a confusion matrix; rows are what is right, columns what was said."""
        both = confusion.diagonal()
        either = confusion.sum(0) + confusion.sum(1) - both
        known = either > 0
        iou = both / either.clamp_min(1)
        names = self.class_names or [str(c) for c in range(self.classes)]
        return {
            "miou": round(float(iou[known].mean()) if known.any() else 0.0, 6),
            "pixel_accuracy": round(float(both.sum() / confusion.sum().clamp_min(1)), 6),
            **{f"iou/{name}": round(float(iou[c]), 6) for c, name in enumerate(names) if known[c]},
        }

    def picture(self, images: Float[Tensor, "n 3 h w"], answer: Float[Tensor, "n c h w"]) -> Float[Tensor, "m 3 h w"]:
        """Each of the first images, and beside it the same with its classes in colour."""
        shown = (images[:PICTURES].float().cpu().clamp(0, 1) * 255).round().byte()
        labels = answer[:PICTURES].argmax(1).cpu()
        pairs = []
        for image, label in zip(shown, labels, strict=True):
            masks = torch.stack([label == c for c in range(1, self.classes)])
            pairs += [image, draw_segmentation_masks(image, masks, alpha=0.6)]
        return torch.stack(pairs).float() / 255

    def example(self, n: int) -> tuple[Tensor, ...]:
        """Inputs for export, profile and bench."""
        return (torch.zeros(n, 3, *self.image_size),)
