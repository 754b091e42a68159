"""Putting a state dict into a network: every tensor in its place, or one clear account of what does not fit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from compress.errors import CompressError

#: training-time side heads that torchvision's published weights hold and nobody needs for inference
SIDE_HEADS = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")
SHOWN = 5


def fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load `state` into `model`, strictly; half precision becomes the model's own precision.

    Integer buffers (BatchNorm's counters, index tables) may be missing or left over, for they come and go with the
    library's version and never change an answer. Raises CompressError with up to five lines of difference.
    """
    own = model.state_dict()
    wanted = {key: tuple(value.shape) for key, value in own.items()}
    given = {key: value for key, value in state.items() if key in own or matters(key, value)}
    lines = difference(wanted, {key: tuple(value.shape) for key, value in given.items()}, optional(own))
    if lines:
        more = [f"  … and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise CompressError("\n".join([f"{where}: the weights do not fit the network:", *lines[:SHOWN], *more]))
    model.load_state_dict({**own, **given})


def matters(key: str, value: Tensor) -> bool:
    """Whether a tensor decides what the network answers: a float that is not in a training-time side head."""
    return value.is_floating_point() and not key.startswith(SIDE_HEADS)


def optional(own: Mapping[str, Tensor]) -> set[str]:
    return {key for key, value in own.items() if not value.is_floating_point()}


def difference(
    wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], may_miss: set[str]
) -> list[str]:
    """One line for every tensor that is missing, unexpected or of another shape; empty when all fits."""
    lines = [
        f"  missing     {key} {list(shape)}"
        for key, shape in wanted.items()
        if key not in given and key not in may_miss
    ]
    lines += [f"  unexpected  {key} {list(shape)}" for key, shape in given.items() if key not in wanted]
    lines += [
        f"  shape       {key}: found {list(given[key])}, expected {list(shape)}"
        for key, shape in wanted.items()
        if key in given and given[key] != shape
    ]
    return lines
