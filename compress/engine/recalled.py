"""Answers that are not asked for twice."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from compress.engine.player import Frozen
from compress.engine.run import Run
from compress.errors import UsageError


class Recalled:
    """A frozen network's answers to numbered images: each is computed once, with its first batch, and kept.

    The table takes 4 · images · classes bytes on the device. It belongs into the checkpoint: an answer depends, in its
    last bits, on the batch in which it was computed.
    """

    def __init__(self, net: Frozen, images: int, classes: int) -> None:
        self.net = net
        self.table: Float[Tensor, "m c"] = torch.zeros(images, classes, device=net.place.device)
        self.known: Bool[Tensor, " m"] = torch.zeros(images, dtype=torch.bool)  # on the CPU, as a stream's indices are

    def __call__(self, x: Float[Tensor, "n 3 h w"], indices: Int64[Tensor, " n"]) -> Float[Tensor, "n c"]:
        """Logits for the images `x`, whose numbers are `indices`. Raises UsageError for answers that are not [n, c]."""
        first = torch.from_numpy(np.unique(indices.numpy(), return_index=True)[1])  # a small set repeats within a batch
        new = first[~self.known[indices[first]]]
        if len(new):
            answer = self.net(x)  # whole batches: with a size of its own, each would have its kernels chosen anew
            if answer.ndim != 2:
                raise UsageError(
                    "method.keep_answers: this teacher answers every pixel, which is too much to keep; leave it out."
                )
            self.table[indices[new].to(self.table.device)] = answer.float()[new.to(answer.device)]
            self.known[indices[new]] = True
        return self.table[indices.to(self.table.device)]

    def state_dict(self) -> dict[str, Tensor]:
        return {"table": self.table, "known": self.known}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.table.copy_(state["table"])
        self.known.copy_(state["known"])


def recalled(run: Run, source: str, *, changing: bool) -> Recalled:
    """The teacher's answers to the images of a source, kept for this run and for its checkpoints.

    Raises UsageError where the images are `changing`, by augmentation: then none comes twice.
    """
    if changing:
        raise UsageError(
            "method.keep_answers: every picture is changed anew each time it comes, so its old answer is of no use; "
            "set method.augment=false too and leave method.recolour out, or leave keep_answers out."
        )
    images, classes = len(run.sources[source]), run.task.classes
    run.display.say(f"The teacher's answers to {images} images are kept: {images * classes * 4 / 1e6:.1f} MB.")
    kept = Recalled(run.teacher, images, classes)
    run.keep(f"answers {source}", kept, per_rank=True)
    return kept
