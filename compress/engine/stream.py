"""Endless batches, each a pure function of (seed, position, rank), so the position is the only state."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from compress.engine.accelerator import Accelerator
from compress.engine.trainable import FrozenModel

#: how often each image occurs per epoch, on average; None: once
Repeats = Float64[Tensor, " m"] | None


class Batches(Protocol):
    """Batches by position."""

    def batch_at(self, position: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return (uint8 images [n, 3, h, w], targets or None, indices [n]), always the same for a position."""
        ...


class ImageSource(Protocol):
    """A set of images that can be read in any number of independent, endless orders."""

    def __len__(self) -> int: ...

    def batches(
        self,
        batch_size: int,
        *,
        seed: tuple[int, ...],
        rank: int,
        world_size: int,
        augment: bool,
        repeats: Repeats = None,
    ) -> Batches:
        """Return an endless order of the images.

        An epoch contains image i `repeats[i]` times on average, rounded up or down; without `repeats`, once.
        """
        ...  # fmt: skip

    def predict_all(self, teacher: FrozenModel) -> tuple[Int64[Tensor, " m"], Float64[Tensor, " m"]]:
        """Return the teacher's class of every image, not augmented, and its probability, on the CPU.

        Raises:
            CompressError: If the logits are not finite.
        """
        ...


class Stream:
    """Iterator over batches on the device: float images [n, 3, h, w] in [0, 1].

    On a GPU, the next batch is read while the current one is processed.

    Attributes:
        targets: Labels [n] or masks [n, h, w] of the last batch, if the source has any.
        indices: Indices [n] of the images of the last batch.
        wait_seconds: Time that the training loop has spent waiting for this stream.
    """

    def __init__(self, batches: Batches, accelerator: Accelerator) -> None:
        self.batches = batches
        self.accelerator = accelerator
        self.position = 0
        self.wait_seconds = 0.0
        self.targets: Int64[Tensor, "n ..."] | None = None
        self.indices: Int64[Tensor, " n"] = torch.empty(0, dtype=torch.int64)
        self._reader = ThreadPoolExecutor(1) if accelerator.device.type == "cuda" else None
        self._prefetched: tuple[int, Future[tuple[Tensor, Tensor | None, Tensor]]] | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Float[Tensor, "n 3 h w"]:
        begin = time.perf_counter()
        pixels, targets, self.indices = self._read(self.position)
        self.position += 1
        x = self.accelerator.to_float_images(pixels)
        self.targets = None if targets is None else targets.to(self.accelerator.device, non_blocking=True)
        self.wait_seconds += time.perf_counter() - begin
        return x

    def _read(self, position: int) -> tuple[Tensor, Tensor | None, Tensor]:
        if self._reader is None:
            return self.batches.batch_at(position)
        expected, future = self._prefetched or (-1, None)
        batch = future.result() if future is not None and expected == position else self.batches.batch_at(position)
        self._prefetched = position + 1, self._reader.submit(self.batches.batch_at, position + 1)
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]
