"""FitNet: the student matches the teacher's predictions and, through a regressor, one of its feature maps (the hint).

Paper: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015; as the baseline
"FitNet" of MosaicKD's Table 1.
Code: HobbitLong/RepDistiller (weight 100, one stage instead of two) and zju-vipa/MosaicKD a8d8e2c (no ReLU after the
regressor, because the hint is read before one), read for facts. The settings of Table 1 are not published.
Differs: without labels, KL replaces the cross entropy. The layers are found by their resolution, in any network.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import SGD

from compress.config import setting
from compress.engine.hooks import capture_activations, find_stages
from compress.engine.run import Run
from compress.errors import UsageError
from compress.losses import features, logits
from compress.methods.fields import ALL_TASKS, Count, Positive, Weight


@dataclass
class FitNet:
    """The student matches the teacher's predictions and one of its feature maps."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("unlabeled",)
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    uses: ClassVar[tuple[str, ...]] = ("features",)
    batch_size: ClassVar[int] = 128

    hint: Weight = setting(100.0, "Weight of the hint.")
    stage: Count = setting(2, "Stage whose output is the hint: 1 is the highest resolution.")
    temperature: Positive = setting(5.0, "Temperature of the softened predictions.")
    lr: Positive = setting(0.1, "Learning rate of student and regressor (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(1e-4, "Weight decay of student and regressor.")
    augment: bool = setting(True, "Random crop (4 pixels) and flip.")

    def setup(self, run: Run) -> None:
        self.T, self.rows = run.teacher, run.task.rows
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        self.layer_T, shape_T = self.find_layer(self.T.net, run)
        self.layer_S, shape_S = self.find_layer(self.S.net, run)
        self.R = run.add_trainable("R", build_regressor(shape_S, shape_T), optimizer=sgd)
        self.data = run.stream("unlabeled", "unlabeled", augment=self.augment)

    def find_layer(self, net: nn.Module, run: Run) -> tuple[str, tuple[int, ...]]:
        """Return path and output shape of the module that ends the stage."""
        stages = list(find_stages(net, run.example_input()).items())
        if len(stages) < self.stage:
            raise UsageError(f"method.stage: found {self.stage}, expected at most {len(stages)} for these networks.")
        return stages[self.stage - 1]

    def step(self) -> dict[str, Tensor]:
        x = next(self.data)
        with torch.no_grad(), capture_activations(self.T.net, self.layer_T) as maps_T:
            t = self.rows(self.T(x))
        with capture_activations(self.S.net, self.layer_S) as maps_S:
            s = self.rows(self.S(x))
        loss_S = logits.kl(s, t, self.temperature)
        loss_R = features.hint(self.R(maps_S[self.layer_S]), maps_T[self.layer_T])
        self.S.optimization_step(loss_S + self.hint * loss_R, jointly_with=[self.R])
        return {"S": loss_S, "R": loss_R}


def build_regressor(source: tuple[int, ...], target: tuple[int, ...]) -> nn.Module:
    """Build a convolution with BatchNorm from maps of shape `source` [c, h, w] to `target`.

    A factor of 1/2 is a 3x3 convolution of stride 2, a factor of 2 a transposed one, any other reduction a convolution
    without padding.

    Raises:
        UsageError: If the student's map is smaller by another factor.
    """
    (channels, h, w), (out_channels, out_h, out_w) = source, target
    if (h, w) == (2 * out_h, 2 * out_w):
        convolution: nn.Module = nn.Conv2d(channels, out_channels, 3, 2, 1)
    elif (2 * h, 2 * w) == (out_h, out_w):
        convolution = nn.ConvTranspose2d(channels, out_channels, 4, 2, 1)
    elif h >= out_h and w >= out_w:
        convolution = nn.Conv2d(channels, out_channels, (1 + h - out_h, 1 + w - out_w))
    else:
        raise UsageError(
            f"method.stage: found a student map of {h}x{w}, which FitNet's regressor cannot convert to the teacher's "
            f"{out_h}x{out_w}; choose another stage."
        )
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
