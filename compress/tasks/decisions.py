"""Decisions of their own: logits that mean yes or no, with a sigmoid and a threshold instead of a softmax."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from exporters.pre_post import threshold_logit


def two_class_rows(logits: Tensor) -> Float[Tensor, "n 2 *m"]:
    """Return the logits [0, z] of "no" and "yes" for every z of [n, ...].

    Their softmax is [1 - sigmoid(z), sigmoid(z)].

    Losses between such rows are exact: with them, a network with one logit learns as one with two does.
    """
    logits = logits.float()
    return torch.stack([torch.zeros_like(logits), logits], 1)


def decide(output: Tensor, threshold: float) -> Tensor:
    """Return whether sigmoid(logit) is above the threshold; integer outputs are decisions already."""
    if not output.is_floating_point():
        return output > 0
    return output > threshold_logit(threshold)
