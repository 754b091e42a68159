"""ZSKT: a generator searches for images on which student and teacher disagree; the student is corrected on them.

Paper: Micaelli, Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019, arXiv
1905.09768; Algorithm 1.
Code: polo5/ZeroShotKnowledgeTransfer 492cbff (read for facts). As in the code, KL is also a mean over the classes, and
the attention term is a mean of squares, not a norm; the weight 250 belongs to these.
G ends in BatchNorm, as in the code. With a sigmoid, all images start in one gray. T may then predict one class for all
of them, S learns to predict it always, and no disagreement is left.
Differs: while one model is updated, the others compute no gradients. G draws the images of the n_S student steps once,
because they are equal (same result, less work). The attention maps are matched by their resolution, in any networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Adam

from compress.config import setting
from compress.engine.hooks import capture_activations, find_stages
from compress.engine.run import Run
from compress.errors import UsageError
from compress.losses import features, logits
from compress.methods.fields import Count, Positive, Weight
from compress.methods.generator_setup import create_standardized_generator, to_images


@dataclass
class ZSKT:
    """A generator searches for images on which student and teacher disagree; the student is corrected on them."""

    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    batch_size: ClassVar[int] = 128

    attention: Weight = setting(250.0, "Weight of the attention maps (beta), summed over resolutions.")
    student_steps: Count = setting(10, "Student steps per iteration, all on the same images (n_S of Algorithm 1).")
    max_grad_norm: Positive = setting(5.0, "Maximum gradient norm of the student, and of the generator.")
    lr: Positive = setting(2e-3, "Learning rate of the student (Adam, cosine).")
    lr_G: Positive = setting(1e-3, "Learning rate of the generator (Adam, cosine).")
    generator: str | None = setting(
        None,
        "Generator: small, shallow, deep, or (without standardize_output) dcgan; default: small up to 64 pixels, "
        "else deep.",
    )
    z_dim: Count = setting(100, "Dimensions of the noise.")
    width_G: Count = setting(64, "Channels of the generator's last hidden layer.")
    standardize_output: bool = setting(True, "Generator ends in BatchNorm, as published; otherwise in a sigmoid.")

    @property
    def uses(self) -> tuple[str, ...]:
        return ("gradients", "features") if self.attention else ("gradients",)

    def setup(self, run: Run) -> None:
        self.T = run.teacher
        self.n, self.device = run.per_rank(run.batch_size), run.accelerator.device
        self.pairs = self.match_stages(run) if self.attention else []
        G = create_standardized_generator(self, run, standardize=self.standardize_output)
        self.G = run.add_trainable("G", G, optimizer=partial(Adam, lr=self.lr_G))
        self.S = run.add_trainable("S", run.student, optimizer=partial(Adam, lr=self.lr))
        run.log_images("synthetic", partial(self.G.predict, run.fixed_noise(100, self.z_dim)))

    def match_stages(self, run: Run) -> list[tuple[str, str]]:
        """Return (path in T, path in S) of the last modules of each resolution that both networks have."""
        stages_T, stages_S = (find_stages(net, run.example_input()) for net in (self.T.net, run.student))
        paths_S = {(h, w): path for path, (_, h, w) in stages_S.items()}
        pairs = [(path, paths_S[h, w]) for path, (_, h, w) in stages_T.items() if (h, w) in paths_S]
        if not pairs:
            sizes = [", ".join(f"{h}x{w}" for _, h, w in stages.values()) or "none" for stages in (stages_T, stages_S)]
            raise UsageError(
                f"method.attention: found teacher maps of {sizes[0]} and student maps of {sizes[1]}, expected a common "
                "resolution; set method.attention to 0, or choose another student."
            )
        return pairs

    def class_mean_kl(self, s: Tensor, t: Tensor) -> Tensor:
        """KL(T ‖ S), also a mean over the classes."""
        return logits.kl(s, t) / t.shape[1]

    def step(self) -> dict[str, Tensor]:
        # G searches for images on which S and T disagree.
        z = torch.randn(self.n, self.z_dim, device=self.device)
        x = to_images(self.G(z))
        loss_G = -self.class_mean_kl(self.S.forward_frozen(x), self.T(x))
        self.G.optimization_step(loss_G, max_grad_norm=self.max_grad_norm)

        # S imitates T and its attention on what G now makes of the same noise.
        with torch.no_grad(), capture_activations(self.T.net, *(path for path, _ in self.pairs)) as maps_T:
            x = to_images(self.G(z))
            t = self.T(x)
        loss_S = torch.zeros(())
        for _ in range(self.student_steps):
            with capture_activations(self.S.net, *(path for _, path in self.pairs)) as maps_S:
                loss_S = self.class_mean_kl(self.S(x), t)
            for path_T, path_S in self.pairs:
                loss_S = loss_S + self.attention * features.attention(maps_S[path_S], maps_T[path_T])
            self.S.optimization_step(loss_S, max_grad_norm=self.max_grad_norm)
        return {"G": loss_G, "S": loss_S}
