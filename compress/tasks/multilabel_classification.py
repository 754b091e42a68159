"""Multi-label classification: a decision for every label of an image; a single label is binary classification."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from compress.tasks.decisions import decide, two_class_rows

Batch = tuple[Tensor, Tensor]


@dataclass
class MultilabelClassification:
    """Logits [n, labels] of images [n, 3, h, w] in [0, 1]; the probability of a label is its sigmoid."""

    classes: int
    image_size: tuple[int, int]
    channels: int = 3  #: 1 for grayscale images
    class_names: list[str] | None = None
    threshold: float = 0.5  #: probability above which an image has a label

    def rows(self, output: Float[Tensor, "n c"]) -> Float[Tensor, "n 2 c"]:
        """Return one row of logits per decision: [0, z] for every label."""
        return two_class_rows(output)

    def supervised_loss(self, output: Float[Tensor, "n c"], target: Int64[Tensor, "n c"]) -> Float[Tensor, ""]:
        """Binary cross entropy in nats, mean over images and labels."""
        return F.binary_cross_entropy_with_logits(output.float(), target.float())

    def score(self, net: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> dict[str, float]:
        """Compute `f1`, `map`, `label_accuracy`, and `f1/NAME` of each label: shares in [0, 1] over all images.

        `f1` is the mean over the labels that occur in targets or predictions, `map` that of the average precision over
        the labels that occur in targets, and `label_accuracy` the share of right decisions.

        Args:
            net: Returns logits [n, c], or decisions 0 and 1 as integers, which have no `map`.
            batches: Images and targets [n, c] of 0 and 1.
        """
        outputs, targets = [], []
        with torch.no_grad():
            for images, target in batches:
                outputs.append(net(images).cpu())
                targets.append(target.cpu().long())
        output, target = torch.cat(outputs), torch.cat(targets)
        return self.metrics_from_outputs(output, target)

    def metrics_from_outputs(self, output: Tensor, target: Int64[Tensor, "n c"]) -> dict[str, float]:
        """Compute the metrics of outputs [n, c] as `score` does."""
        predicted, truth = decide(output, self.threshold), target == 1
        hits = (predicted & truth).sum(0).double()
        total = (predicted.sum(0) + truth.sum(0)).double()
        f1, occurs = 2 * hits / total.clamp_min(1), total > 0
        names = self.class_names or [str(c) for c in range(self.classes)]
        metrics = {"f1": float(f1[occurs].mean()) if occurs.any() else 0.0}
        known = truth.any(0)
        if output.is_floating_point() and known.any():
            probabilities = output.double().sigmoid()
            precisions = [binary_average_precision(probabilities[:, c], target[:, c]) for c in known.nonzero()[:, 0]]
            metrics["map"] = float(torch.stack(precisions).double().mean())
        metrics["label_accuracy"] = float((predicted == truth).double().mean())
        if self.classes > 1:
            metrics |= {f"f1/{name}": float(f1[c]) for c, name in enumerate(names) if occurs[c]}
        return {name: round(value, 6) for name, value in metrics.items()}

    def visualize(self, images: Float[Tensor, "n 3 h w"], output: Float[Tensor, "n c"]) -> Float[Tensor, "n 3 h w"]:
        """Sort images by their most probable label, the most confident first within a label; then those without."""
        logit, label = output.float().max(1)
        label = torch.where(decide(logit, self.threshold), label, self.classes)
        return images[torch.argsort(label.float() - logit.sigmoid() * 0.999, stable=True)]

    def example_input(self, n: int) -> tuple[Tensor, ...]:
        """Return a batch of `n` inputs for export, profile and bench."""
        return (torch.zeros(n, 3, *self.image_size),)
