"""For methods that relate images: batches without repeated images, and networks that distinguish images."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from torch import Tensor, nn

from compress.engine.run import Run


class DistinctImages(tiny.InMemoryImages):
    """Images that occur at most once per batch, because equal images have no angle and no order."""

    def batches(self, batch_size: int, **_: Any) -> Any:
        return DistinctBatches(self, batch_size)


class DistinctBatches:
    def __init__(self, source: DistinctImages, n: int) -> None:
        self.source, self.n = source, n

    def batch_at(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        order = torch.randperm(len(self.source), generator=torch.Generator().manual_seed(position))
        chosen = order[: self.n]
        return self.source.pixels[chosen], self.source.labels[chosen], chosen


def center_features(run: Run) -> None:
    """Give T and S features with zero mean and own statistics; those of random networks hardly differ by image."""
    for net in (run.teacher.net, run.student):
        net.get_submodule("body")[5] = nn.Identity()  # pyright: ignore[reportIndexIssue]
        net.train()
        with torch.no_grad():
            for _ in range(50):
                net(tiny.InMemoryImages(seed=5).pixels / 255)
    run.teacher.net.eval()


def features_and_logits(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inputs of the last layer and the logits of the tiny classifier, without hooks."""
    *layers, last = net.get_submodule("body").children()
    x = net.get_submodule("normalize")(x)
    for layer in layers:
        x = layer(x)
    return x, last(x)
