"""Training on labels without a teacher: how teachers are trained, and the reference for students.

Paper: the recipe of MosaicKD's teachers and "student from scratch" (Fang et al., NeurIPS 2021, appendix).
Differs: weight decay is 5e-4 instead of 1e-4, which reproductions of that recipe found 2 to 3 points low.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor
from torch.optim import SGD

from compress.config import setting
from compress.engine.run import Run
from compress.methods.fields import ALL_TASKS, Positive, Weight


@dataclass
class Supervised:
    """Cross entropy on labeled images, without a teacher."""

    teachers: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ("labeled",)
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    uses: ClassVar[tuple[str, ...]] = ()
    batch_size: ClassVar[int] = 256

    lr: Positive = setting(0.1, "Learning rate of the student (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(5e-4, "Weight decay of the student.")
    augment: bool = setting(True, "Random crop (4 pixels) and flip.")

    def setup(self, run: Run) -> None:
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay, nesterov=True)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        self.data = run.stream("labeled", "labeled", augment=self.augment)
        self.loss = run.task.supervised_loss

    def step(self) -> dict[str, Tensor]:
        x = next(self.data)
        assert self.data.targets is not None
        loss_S = self.loss(self.S(x), self.data.targets)
        self.S.optimization_step(loss_S)
        return {"S": loss_S}
