"""What the tests of methods that relate images share: batches without repetitions, networks that tell images apart."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from torch import Tensor, nn

from compress.engine.run import Run


class Once(tiny.InMemoryImages):
    """Images of which a batch holds none twice: those that coincide have neither an angle nor an order."""

    def batches(self, batch_size: int, **_: Any) -> Any:
        return OnceBatches(self, batch_size)


class OnceBatches:
    def __init__(self, source: Once, n: int) -> None:
        self.source, self.n = source, n

    def batch_at(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        order = torch.randperm(len(self.source), generator=torch.Generator().manual_seed(position))
        chosen = order[: self.n]
        return self.source.pixels[chosen], self.source.labels[chosen], chosen


def awake(run: Run) -> None:
    """Give T and S features that are 0 on average, and statistics of their own: those of random networks with a ReLU
    at the end are next to the same for all images.
    """
    for net in (run.teacher.net, run.student):
        net.get_submodule("body")[5] = nn.Identity()  # pyright: ignore[reportIndexIssue]
        net.train()
        with torch.no_grad():
            for _ in range(50):
                net(tiny.InMemoryImages(seed=5).pixels / 255)
    run.teacher.net.eval()


def halves(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(what enters the last layer of the tiny classifier, its answer), layer by layer, without hooks."""
    *layers, last = net.get_submodule("body").children()
    x = net.get_submodule("normalize")(x)
    for layer in layers:
        x = layer(x)
    return x, last(x)
