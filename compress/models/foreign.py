"""A stranger's state dict: its architecture, given or recognised, and what can be known or must be assumed of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.errors import CompressError, UsageError
from compress.files import sha256
from compress.models import body, network, task_of
from compress.models.card import Card
from compress.models.defaults import defaults
from compress.models.fingerprint import CLASSES, fingerprint, shapes_of, shell
from compress.models.fitting import SIDE_HEADS, fit, matters
from compress.models.recognise import Match, free_sizes, recognise
from compress.models.weights import PREFIXES, Weights
from compress.models.wishes import Wishes

#: what training scripts call the architecture in their checkpoints
ARCH_FACTS = ("arch", "architecture", "model_name", "model_arch")


def from_weights(path: Path, weights: Weights, wishes: Wishes) -> tuple[nn.Module, Card]:
    """A stranger's state dict in the architecture that the user gave, or that it is recognised to belong to."""
    if wishes.arch:
        match = given(weights, wishes)
    else:
        weights = narrowed(weights)
        match = recognised(path, weights)
    architecture = match.candidates[0]
    if wishes.classes is not None and wishes.classes != match.classes:
        raise UsageError(f"{path}: its classifier has {match.classes} classes, found {wishes.classes} asked for.")
    grey = match.channels == 1
    usual = defaults(architecture, grey=grey)
    card = Card(
        architecture,
        match.classes,
        usual.image_size,
        task_of(architecture),
        mean=usual.mean,
        std=usual.std,
        grey=grey,
        class_names=weights.class_names if len(weights.class_names or []) == match.classes else None,
        provenance={"source": path.name, "assumed": assumed(wishes)} | also_fits(match) | left_out(weights.state),
        sha256=sha256(path),
    )
    model = network(card).body
    fit(model, aligned(weights, model), f"{path} (as {architecture})")
    return model, card


def aligned(weights: Weights, model: nn.Module) -> Mapping[str, Tensor]:
    """The weights under the network's own names: these may begin with what was taken for a wrapper's prefix, or lie
    beside the tensors of a loss under a prefix that not all share."""
    own = model.state_dict()
    prefix = "".join(part for part in weights.wrapping if part.endswith("."))
    if prefix and all(key.startswith(prefix) for key in own):
        return {prefix + key: value for key, value in weights.state.items()}
    needed = {key for key, value in own.items() if matters(key, value)}
    return next((part for _, part in parts(weights.state) if needed <= part.keys()), weights.state)


def narrowed(weights: Weights) -> Weights:
    """Without what a training module keeps beside its network: a loss's class weights, a metric's counts."""
    if is_known(weights.state):
        return weights
    for prefix, part in parts(weights.state):
        if is_known(part):
            return replace(weights, state=part, wrapping=(*weights.wrapping, prefix))
    return weights


def is_known(state: Mapping[str, Tensor]) -> bool:
    try:
        recognise(state)
    except CompressError:
        return False
    return True


def parts(state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors under each wrapper's prefix that some, but not all, names share."""
    for prefix in PREFIXES:
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if 0 < len(part) < len(state):
            yield prefix, part


def assumed(wishes: Wishes) -> list[str]:
    """What the card has from the architecture's habits only, for lack of better knowledge."""
    return [name for name in ("image_size", "mean", "std") if getattr(wishes, name) is None]


def also_fits(match: Match) -> dict[str, list[str]]:
    """Architectures that the weights fit as well, but that were not chosen."""
    return {"also_fits": list(match.also_fits)} if match.also_fits else {}


def left_out(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The side heads in a file, which only its training needed."""
    heads = sorted({key.partition(".")[0] for key in state if key.startswith(SIDE_HEADS)})
    return {"left_out": heads} if heads else {}


def recognised(path: Path, weights: Weights) -> Match:
    try:
        match = recognise(weights.state)
    except CompressError as error:
        raise CompressError(f"{path}: {error}") from error
    if match.channels not in (1, 3):
        raise UsageError(f"{path}: reads {match.channels} channels; only colour (3) and grey (1) images are supported.")
    named = [c for c in match.candidates if c.rpartition("/")[2] in {weights.facts.get(key) for key in ARCH_FACTS}]
    published = [c for c in match.candidates if c.startswith("torchvision/")]
    for chosen in (named, published):
        if len(chosen) == 1:
            others = () if chosen is named else tuple(c for c in match.candidates if c not in chosen)
            return replace(match, candidates=tuple(chosen), also_fits=others)
    if not match.certain:
        listed = ", ".join(match.candidates)
        raise UsageError(
            f"{path}: these weights fit {len(match.candidates)} architectures that answer differently; "
            f"say which with --teacher-arch: {listed}."
        )
    return match


def given(weights: Weights, wishes: Wishes) -> Match:
    """The user's architecture, with the class count and channels that the weights have on its free axes."""
    architecture = str(wishes.arch)
    channels = 1 if wishes.grey else 3
    axes = fingerprint(architecture).axes
    if not axes.classes:
        return Match((architecture,), wishes.classes or fixed_classes(architecture, wishes), channels)
    shapes = shapes_of(aligned(weights, shell(architecture, classes=CLASSES)))
    present = all(axis < len(shapes.get(key, ())) for key, axis, *_ in [*axes.classes, *axes.channels])
    sizes = free_sizes(shapes, axes) if present else None
    classes, seen = sizes or (wishes.classes or CLASSES, channels)
    return Match((architecture,), classes, seen if seen in (1, 3) else channels)


def fixed_classes(architecture: str, wishes: Wishes) -> int:
    """How many classes a network answers with whose factory takes no class count."""
    size = wishes.image_size or defaults(architecture).image_size
    with torch.no_grad():
        return body(architecture, classes=CLASSES).eval()(torch.zeros(1, 1 if wishes.grey else 3, *size)).shape[1]
