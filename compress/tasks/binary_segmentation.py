"""Binary segmentation: one decision per pixel, by one logit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics.classification import BinaryConfusionMatrix
from torchvision.utils import draw_segmentation_masks

from compress.tasks.decisions import decide, two_class_rows

Batch = tuple[Tensor, Tensor]
MAX_VISUALIZED = 50


@dataclass
class BinarySegmentation:
    """Logits [n, 1, h, w] of images [n, 3, h, w] in [0, 1]; the probability of the foreground is their sigmoid."""

    classes: int
    image_size: tuple[int, int]
    channels: int = 3  #: 1 for grayscale images
    class_names: list[str] | None = None
    threshold: float = 0.5  #: probability above which a pixel is foreground
    ignore_index: int = 255  #: label of pixels that are not scored

    def rows(self, output: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 2 m"]:
        """Return one row of logits per decision: [0, z] for every pixel, m = h · w per image."""
        return two_class_rows(output[:, 0].flatten(1))

    def supervised_loss(self, output: Float[Tensor, "n 1 h w"], target: Int64[Tensor, "n h w"]) -> Float[Tensor, ""]:
        """Binary cross entropy in nats, mean over the scored pixels; 0 if there are none."""
        scored = (target != self.ignore_index).float()
        losses = F.binary_cross_entropy_with_logits(output[:, 0].float(), (target == 1).float(), reduction="none")
        return (losses * scored).sum() / scored.sum().clamp_min(1)

    def score(self, net: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> dict[str, float]:
        """Compute `iou` and `dice` of the foreground, and `pixel_accuracy`: shares in [0, 1].

        Uses one confusion matrix over all pixels of the batches. Without foreground in masks and predictions, `iou` and
        `dice` are 1.

        Args:
            net: Returns logits [n, 1, h, w], or decisions 0 and 1 as integers [n, h, w].
            batches: Images and masks.
        """
        meter = BinaryConfusionMatrix(ignore_index=self.ignore_index, sync_on_compute=False)
        with torch.no_grad():
            for images, masks in batches:
                output = net(images).cpu()
                decisions = decide(output, self.threshold)
                meter.update((decisions[:, 0] if output.ndim == 4 else decisions).long(), masks.cpu())
        (right_empty, false), (missed, hits) = meter.compute().double().tolist()
        wrong = false + missed
        return {
            "iou": round(hits / (hits + wrong) if hits + wrong else 1.0, 6),
            "dice": round(2 * hits / (2 * hits + wrong) if hits + wrong else 1.0, 6),
            "pixel_accuracy": round((hits + right_empty) / max(1.0, hits + wrong + right_empty), 6),
        }

    def visualize(self, images: Float[Tensor, "n 3 h w"], output: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "m 3 h w"]:
        """Return the first images, each followed by a copy with its foreground in color."""
        shown = (images[:MAX_VISUALIZED].float().cpu().clamp(0, 1) * 255).round().byte()
        masks = decide(output[:MAX_VISUALIZED].cpu(), self.threshold)
        pairs = [
            one for image, mask in zip(shown, masks, strict=True)
            for one in (image, draw_segmentation_masks(image, mask, alpha=0.6))
        ]  # fmt: skip
        return torch.stack(pairs).float() / 255

    def example_input(self, n: int) -> tuple[Tensor, ...]:
        """Return a batch of `n` inputs for export, profile and bench."""
        return (torch.zeros(n, 3, *self.image_size),)
