"""Methods that synthesize batches of images into a pool, from which the student learns."""

from __future__ import annotations

import math
from typing import ClassVar, Protocol, TypeGuard

import torch
from torch import Tensor

from compress.engine.image_pool import ImagePool
from compress.engine.run import Run


class Synthesizer(Protocol):
    """A method with an image pool; recognized by its `synthesize`."""

    images_per_synthesis: int  #: images per synthesis, summed over processes
    iterations: int  #: optimization steps per synthesis
    pool: ImagePool  #: available after `setup`

    def setup(self, run: Run) -> None: ...

    def actions_at(self, step: int) -> tuple[bool, bool]:
        """Return (whether step number `step`, from 0, synthesizes images, whether it trains the student)."""
        ...

    def synthesize(self) -> Tensor:
        """Add a batch of images to the pool; returns its loss."""
        ...

    def train_student(self) -> Tensor:
        """Train the student on images of the pool for one step; returns its loss."""
        ...


def is_synthesizer(method: object) -> TypeGuard[Synthesizer]:
    """Check whether a method (or its class) synthesizes images into a pool."""
    return hasattr(method, "synthesize")


def synthesis_step(method: Synthesizer, step: int) -> dict[str, Tensor]:
    """Run step number `step`; the loss "G" of the images is present only if the step synthesizes."""
    synthesizes, trains = method.actions_at(step)
    losses = {"G": method.synthesize()} if synthesizes else {}
    return {**losses, "S": method.train_student()} if trains else losses


class BestBatch:
    """The tensors with the lowest loss so far, selected without waiting for the device."""

    def __init__(self) -> None:
        self.loss: Tensor = torch.tensor(math.inf)
        self.tensors: list[Tensor] = []

    def update(self, loss: Tensor, *tensors: Tensor) -> None:
        """Replace the tensors if `loss` is lower than before."""
        loss = loss.detach()
        if not self.tensors:
            self.loss, self.tensors = loss, [tensor.detach().clone() for tensor in tensors]
            return
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self.tensors = [torch.where(better, new.detach(), old) for new, old in zip(tensors, self.tensors, strict=True)]


class SynthesisOnly:
    """A method that only synthesizes images: one batch per step, no training.

    The run's student is neither used nor saved, so disable terms of the method that depend on it.

    Args:
        method: The method that synthesizes.
        count: Number of images, summed over processes.
    """

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    uses: ClassVar[tuple[str, ...]] = ()  #: the compatibility of `method` is checked by itself

    def __init__(self, method: Synthesizer, count: int) -> None:
        self.method, self.count = method, count
        self.batch_size = method.images_per_synthesis

    def setup(self, run: Run) -> None:
        run.save_student = None
        self.method.setup(run)
        rank, world_size = run.accelerator.rank, run.accelerator.world_size
        self.method.pool.capacity = self.count // world_size + (rank < self.count % world_size)

    def step(self) -> dict[str, Tensor]:
        return {"G": self.method.synthesize()}
