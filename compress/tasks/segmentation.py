"""Segmentation: one label per pixel."""

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
MAX_VISUALIZED = 50


@dataclass
class Segmentation:
    """Logits [n, classes, h, w] of images [n, 3, h, w] in [0, 1]."""

    classes: int
    image_size: tuple[int, int]
    channels: int = 3  #: 1 for grayscale images
    class_names: list[str] | None = None
    ignore_index: int = 255  #: label of pixels that are not scored

    def rows(self, output: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c m"]:
        """Return one row of logits per decision: a pixel each, m = h · w per image.

        The pixels of a class are contiguous in memory, which makes a softmax over classes seventeen times as fast as
        over eleven adjacent values (2 cores).
        """
        return output.float().flatten(2).contiguous()

    def supervised_loss(self, output: Float[Tensor, "n c h w"], target: Int64[Tensor, "n h w"]) -> Float[Tensor, ""]:
        """Cross entropy in nats, mean over the scored pixels; 0 if there are none."""
        total = F.cross_entropy(output.float(), target, ignore_index=self.ignore_index, reduction="sum")
        return total / (target != self.ignore_index).sum().clamp_min(1)

    def score(self, net: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> dict[str, float]:
        """Compute `miou`, `pixel_accuracy` and `iou/NAME` of each class: shares in [0, 1].

        Uses one confusion matrix over all pixels of the batches. A class that occurs neither in masks nor in
        predictions has no IoU and is excluded from the mean.

        Args:
            net: Returns logits, or label maps [n, h, w].
            batches: Images and masks.
        """
        meter = MulticlassConfusionMatrix(self.classes, ignore_index=self.ignore_index, sync_on_compute=False)
        with torch.no_grad():
            for images, masks in batches:
                output = net(images).cpu()
                meter.update(output.argmax(1) if output.ndim == 4 else output.long(), masks.cpu())
        return self.metrics_from_confusion(meter.compute().double())

    def metrics_from_confusion(self, confusion: Float[Tensor, "c c"]) -> dict[str, float]:
        """Compute the metrics from a confusion matrix; rows are true classes, columns predictions."""
        intersection = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - intersection
        occurs = union > 0
        iou = intersection / union.clamp_min(1)
        names = self.class_names or [str(c) for c in range(self.classes)]
        return {
            "miou": round(float(iou[occurs].mean()) if occurs.any() else 0.0, 6),
            "pixel_accuracy": round(float(intersection.sum() / confusion.sum().clamp_min(1)), 6),
            **{f"iou/{name}": round(float(iou[c]), 6) for c, name in enumerate(names) if occurs[c]},
        }

    def visualize(self, images: Float[Tensor, "n 3 h w"], output: Float[Tensor, "n c h w"]) -> Float[Tensor, "m 3 h w"]:
        """Return the first images, each followed by a copy with its predicted classes in color."""
        shown = (images[:MAX_VISUALIZED].float().cpu().clamp(0, 1) * 255).round().byte()
        labels = output[:MAX_VISUALIZED].argmax(1).cpu()
        pairs = []
        for image, label in zip(shown, labels, strict=True):
            masks = torch.stack([label == c for c in range(1, self.classes)])
            pairs += [image, draw_segmentation_masks(image, masks, alpha=0.6)]
        return torch.stack(pairs).float() / 255

    def example_input(self, n: int) -> tuple[Tensor, ...]:
        """Return a batch of `n` inputs for export, profile and bench."""
        return (torch.zeros(n, 3, *self.image_size),)
