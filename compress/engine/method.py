"""The protocol that every distillation method implements."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from compress.engine.run import Run


class Method(Protocol):
    """A distillation method.

    Implementations are dataclasses. Their fields are the hyper-parameters, with the paper's defaults.
    """

    teachers: ClassVar[int]  #: number of teachers: 0 or 1
    needs: ClassVar[tuple[str, ...]]  #: required data: "unlabeled", "labeled"
    tasks: ClassVar[tuple[str, ...]]  #: supported tasks, as names in TASKS
    batch_size: ClassVar[int]  #: default batch size, from the paper

    @property
    def uses(self) -> tuple[str, ...]:
        """Teacher signals required with these settings, besides the logits.

        "gradients" with respect to the image, "features" of its layers, or its "batchnorm" running statistics.
        """
        ...

    def setup(self, run: Run) -> None:
        """Create all state (models, streams, pools) through the run."""
        ...

    def step(self) -> dict[str, Tensor]:
        """Run one iteration of the algorithm; returns the loss of each model, for the log."""
        ...
