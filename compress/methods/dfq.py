"""DFQ: adversarial training of generator and student, on images kept near the teacher's training data.

Paper: Choi, Choi, El-Khamy, Lee, "Data-Free Network Quantization With Adversarial Knowledge Distillation", CVPR
Workshops 2020, arXiv 2005.04136.
Code: zju-vipa/CMI acbbea6, in which its authors compare with DFQ (read for facts), with its settings; the paper's own
code was not available.
Differs from the paper: the student is a smaller network, not a quantized one; one generator, one student. As in that
code, BatchNorm statistics are compared by norms, not as normal distributions, and T's confidence is the cross entropy
with its own prediction, not its entropy. Differs from that code: its main script passes the teacher in place of the
student, which makes the adversarial term 0; here it is S. The student's learning rate follows a cosine.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Adam

from compress.config import setting
from compress.engine.hooks import capture_batchnorm_stats
from compress.engine.run import Run
from compress.engine.schedules import constant
from compress.losses import logits, priors
from compress.methods.fields import SHALLOW_GENERATOR, Count, Positive, Weight
from compress.methods.generator_setup import create_generator, to_images


@dataclass
class DFQ:
    """A generator makes images near the teacher's training data that the student gets wrong, and learns from."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    batch_size: ClassVar[int] = 256

    adv: Weight = setting(1.0, "Weight of the divergence of student and teacher, which the generator maximizes.")
    bn: Weight = setting(1.0, "Weight of the teacher's BatchNorm statistics, a sum of norms over its layers.")
    one_hot: Weight = setting(1.0, "Weight of the cross entropy with the teacher's own prediction, in nats.")
    balance: Weight = setting(20.0, "Weight of the entropy of the mean prediction over a batch, in nats.")
    student_steps: Count = setting(10, "Student steps per iteration, each on new images, after the generator's step.")
    temperature: Positive = setting(1.0, "Temperature of the softened predictions that the student matches.")
    lr: Positive = setting(0.1, "Learning rate of the student (SGD, momentum 0.9, cosine).")
    weight_decay: Weight = setting(1e-4, "Weight decay of the student.")
    lr_G: Positive = setting(1e-3, "Learning rate of the generator (Adam, betas 0.5 and 0.999, constant).")
    generator: str | None = setting(None, SHALLOW_GENERATOR)
    z_dim: Count = setting(256, "Dimensions of the noise.")
    width_G: Count = setting(64, "Channels of the generator's last hidden layer.")
    eval_mode_G: bool = setting(
        True,
        "Generator makes the student's images in eval mode, as that code. Its running statistics lag behind its "
        "weights; false normalizes by the batch, as in the generator's own steps.",
    )

    @property
    def uses(self) -> tuple[str, ...]:
        return ("gradients", "batchnorm") if self.bn else ("gradients",)

    def setup(self, run: Run) -> None:
        self.T = run.teacher
        self.n, self.device = run.per_rank(run.batch_size), run.accelerator.device
        G, adam = create_generator(self, run, small="shallow"), partial(Adam, lr=self.lr_G, betas=(0.5, 0.999))
        self.G = run.add_trainable("G", G, optimizer=adam, schedule=constant)
        sgd = partial(SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        self.S = run.add_trainable("S", run.student, optimizer=sgd)
        run.log_images("synthetic", partial(self.G.predict, run.fixed_noise(100, self.z_dim)))

    def sample_noise(self) -> Tensor:
        return torch.randn(self.n, self.z_dim, device=self.device)

    def step(self) -> dict[str, Tensor]:
        # G makes images like T's training data, of all classes, for which T is confident and S is wrong.
        x = to_images(self.G(self.sample_noise()))
        with capture_batchnorm_stats(self.T.net) if self.bn else nullcontext([]) as stats:
            t = self.T(x)
        loss_G = (
            self.one_hot * logits.one_hot(t)
            - self.adv * logits.kl(self.S.forward_eval(x), t)
            - self.balance * logits.marginal_entropy(t)
        )
        if self.bn:
            loss_G = loss_G + self.bn * priors.batchnorm(stats)
        self.G.optimization_step(loss_G)

        # S imitates T on new images of G.
        loss_S = torch.zeros(())
        for _ in range(self.student_steps):
            with torch.no_grad():
                x = to_images((self.G.predict if self.eval_mode_G else self.G)(self.sample_noise()))
                t = self.T(x)
            loss_S = logits.kl(self.S(x), t, self.temperature)
            self.S.optimization_step(loss_S)
        return {"G": loss_G, "S": loss_S}
