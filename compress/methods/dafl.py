"""DAFL: a generator makes images that resemble the teacher's training data; the student imitates the teacher on them.

Paper: Chen, Wang, Xu, Yang, Liu, Shi, Xu, Xu, Tian, "Data-Free Learning of Student Networks", ICCV 2019, arXiv
1904.01186.
Code: huawei-noah/Efficient-Computing, DAFL (read for facts); the defaults are its settings for CIFAR-10.
G ends in tanh and a BatchNorm without weights, as in the code. This keeps large learning rates such as 0.02 stable.
Differs: G's other BatchNorm layers have the usual epsilon, not 0.8. The student's learning rate follows a cosine, not
two steps to a tenth. The two losses are minimized one after the other, not as a sum (same result).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Adam

from compress.config import setting
from compress.engine.hooks import capture_activations, find_classifier
from compress.engine.run import Run
from compress.engine.schedules import constant
from compress.losses import features, logits
from compress.methods.fields import SMALL_GENERATOR, Count, Positive, Weight
from compress.methods.generator_setup import create_standardized_generator, to_images


@dataclass
class DAFL:
    """A generator makes images that resemble the teacher's data; the student imitates the teacher on them."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    batch_size: ClassVar[int] = 1024

    one_hot: Weight = setting(0.05, "Weight of L_oh: cross entropy with the teacher's own prediction, in nats.")
    activation: Weight = setting(0.01, "Weight of L_a: mean magnitude of the teacher's penultimate features.")
    balance: Weight = setting(5.0, "Weight of L_ie: entropy of the mean prediction over a batch, in decimal digits.")
    temperature: Positive = setting(1.0, "Temperature of the softened predictions that the student matches.")
    lr: Positive = setting(0.1, "Learning rate of the student (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(5e-4, "Weight decay of the student.")
    lr_G: Positive = setting(0.02, "Learning rate of the generator (Adam, constant).")
    generator: str | None = setting(None, SMALL_GENERATOR)
    z_dim: Count = setting(1000, "Dimensions of the noise.")
    width_G: Count = setting(64, "Channels of the generator's last hidden layer.")
    standardize_output: bool = setting(True, "End G in tanh and BatchNorm, as published, not in a sigmoid.")

    @property
    def uses(self) -> tuple[str, ...]:
        return ("gradients", "features") if self.activation else ("gradients",)

    def setup(self, run: Run) -> None:
        self.T = run.teacher
        self.n, self.device = run.per_rank(run.batch_size), run.accelerator.device
        self.classifier_T = find_classifier(self.T.net, run.example_input())[0] if self.activation else None
        G = create_standardized_generator(self, run, standardize=self.standardize_output, tanh=True)
        self.G = run.add_trainable("G", G, optimizer=partial(Adam, lr=self.lr_G), schedule=constant)
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        run.log_images("synthetic", partial(self.G.predict, run.fixed_noise(100, self.z_dim)))

    def step(self) -> dict[str, Tensor]:
        # G makes images of all classes for which T is confident and has large activations.
        x = to_images(self.G(torch.randn(self.n, self.z_dim, device=self.device)))
        paths = [self.classifier_T] if self.classifier_T else []
        with capture_activations(self.T.net, *paths, capture_inputs=True) as features_T:
            t = self.T(x)
        loss_G = self.one_hot * logits.one_hot(t) - self.balance * logits.marginal_entropy(t) / math.log(10)
        if self.classifier_T is not None:
            loss_G = loss_G - self.activation * features.activation(features_T[self.classifier_T])
        self.G.optimization_step(loss_G)

        # S imitates T on the same images.
        loss_S = logits.kl(self.S(x.detach()), t.detach(), self.temperature)
        self.S.optimization_step(loss_S)
        return {"G": loss_G, "S": loss_S}
