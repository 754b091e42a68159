"""A stranger's state dict: its architecture, given or recognised, and what can be known or must be assumed of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.errors import CompressError, UsageError
from compress.files import sha256
from compress.models.architecture_index import (
    AUXILIARY_HEADS,
    Match,
    compute_fingerprint,
    is_relevant_tensor,
    read_free_sizes,
    recognize_architecture,
    tensor_shapes,
)
from compress.models.card import ModelCard
from compress.models.checkpoints import WRAPPER_PREFIXES, CheckpointWeights
from compress.models.overrides import ModelOverrides
from compress.models.pretrained import default_preprocessing
from compress.models.registry import DEFAULT_CLASSES, build_model, build_network, build_on_meta, infer_task

MAX_LISTED = 5


def load_state_dict_strict(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load `state` into `model`, strictly; half precision becomes the model's own precision.

    Integer buffers (BatchNorm's counters, index tables) may be missing or left over, for they come and go with the
    library's version and never change an answer. Raises CompressError with up to five lines of difference.
    """
    own = model.state_dict()
    wanted = {key: tuple(value.shape) for key, value in own.items()}
    given = {key: value for key, value in state.items() if key in own or is_relevant_tensor(key, value)}
    lines = describe_mismatch(wanted, {key: tuple(value.shape) for key, value in given.items()}, optional_keys(own))
    if lines:
        more = [f"  … and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
        raise CompressError("\n".join([f"{where}: the weights do not fit the network:", *lines[:MAX_LISTED], *more]))
    model.load_state_dict({**own, **given})


def optional_keys(own: Mapping[str, Tensor]) -> set[str]:
    return {key for key, value in own.items() if not value.is_floating_point()}


def describe_mismatch(
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


#: what training scripts call the architecture in their checkpoints
ARCHITECTURE_KEYS = ("arch", "architecture", "model_name", "model_arch")


def build_from_checkpoint(
    path: Path, weights: CheckpointWeights, wishes: ModelOverrides
) -> tuple[nn.Module, ModelCard]:
    """A stranger's state dict in the architecture that the user gave, or that it is recognised to belong to."""
    if wishes.architecture:
        match = match_given(weights, wishes)
    else:
        weights = drop_unknown_keys(weights)
        match = match_recognized(path, weights)
    architecture = match.candidates[0]
    if wishes.classes is not None and wishes.classes != match.classes:
        raise UsageError(f"{path}: its classifier has {match.classes} classes, found {wishes.classes} asked for.")
    grey = match.channels == 1
    usual = default_preprocessing(architecture, grayscale=grey)
    card = ModelCard(
        architecture,
        match.classes,
        usual.image_size,
        infer_task(architecture),
        mean=usual.mean,
        std=usual.std,
        grayscale=grey,
        class_names=weights.class_names if len(weights.class_names or []) == match.classes else None,
        provenance={"source": path.name, "assumed": assumed_fields(wishes)}
        | also_fits(match)
        | dropped_heads(weights.state),
        sha256=sha256(path),
    )
    model = build_network(card).body
    load_state_dict_strict(model, align_keys(weights, model), f"{path} (as {architecture})")
    return model, card


def align_keys(weights: CheckpointWeights, model: nn.Module) -> Mapping[str, Tensor]:
    """The weights under the network's own names: these may begin with what was taken for a wrapper's prefix, or lie
    beside the tensors of a loss under a prefix that not all share."""
    own = model.state_dict()
    prefix = "".join(part for part in weights.wrapping if part.endswith("."))
    if prefix and all(key.startswith(prefix) for key in own):
        return {prefix + key: value for key, value in weights.state.items()}
    needed = {key for key, value in own.items() if is_relevant_tensor(key, value)}
    return next((part for _, part in iter_prefixed_parts(weights.state) if needed <= part.keys()), weights.state)


def drop_unknown_keys(weights: CheckpointWeights) -> CheckpointWeights:
    """Without what a training module keeps beside its network: a loss's class weights, a metric's counts."""
    if is_recognized(weights.state):
        return weights
    for prefix, part in iter_prefixed_parts(weights.state):
        if is_recognized(part):
            return replace(weights, state=part, wrapping=(*weights.wrapping, prefix))
    return weights


def is_recognized(state: Mapping[str, Tensor]) -> bool:
    try:
        recognize_architecture(state)
    except CompressError:
        return False
    return True


def iter_prefixed_parts(state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors under each wrapper's prefix that some, but not all, names share."""
    for prefix in WRAPPER_PREFIXES:
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if 0 < len(part) < len(state):
            yield prefix, part


def assumed_fields(wishes: ModelOverrides) -> list[str]:
    """What the card has from the architecture's habits only, for lack of better knowledge."""
    return [name for name in ("image_size", "mean", "std") if getattr(wishes, name) is None]


def also_fits(match: Match) -> dict[str, list[str]]:
    """Architectures that the weights fit as well, but that were not chosen."""
    return {"also_fits": list(match.also_fits)} if match.also_fits else {}


def dropped_heads(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The side heads in a file, which only its training needed."""
    heads = sorted({key.partition(".")[0] for key in state if key.startswith(AUXILIARY_HEADS)})
    return {"left_out": heads} if heads else {}


def match_recognized(path: Path, weights: CheckpointWeights) -> Match:
    try:
        match = recognize_architecture(weights.state)
    except CompressError as error:
        raise CompressError(f"{path}: {error}") from error
    if match.channels not in (1, 3):
        raise UsageError(f"{path}: reads {match.channels} channels; only colour (3) and grey (1) images are supported.")
    named = [
        c for c in match.candidates if c.rpartition("/")[2] in {weights.metadata.get(key) for key in ARCHITECTURE_KEYS}
    ]
    published = [c for c in match.candidates if c.startswith("torchvision/")]
    for chosen in (named, published):
        if len(chosen) == 1:
            others = () if chosen is named else tuple(c for c in match.candidates if c not in chosen)
            return replace(match, candidates=tuple(chosen), also_fits=others)
    if not match.is_certain:
        listed = ", ".join(match.candidates)
        raise UsageError(
            f"{path}: these weights fit {len(match.candidates)} architectures that answer differently; "
            f"say which with --teacher-arch: {listed}."
        )
    return match


def match_given(weights: CheckpointWeights, wishes: ModelOverrides) -> Match:
    """The user's architecture, with the class count and channels that the weights have on its free axes."""
    architecture = str(wishes.architecture)
    channels = 1 if wishes.grayscale else 3
    axes = compute_fingerprint(architecture).axes
    if not axes.classes:
        return Match((architecture,), wishes.classes or count_output_classes(architecture, wishes), channels)
    shapes = tensor_shapes(align_keys(weights, build_on_meta(architecture, classes=DEFAULT_CLASSES)))
    present = all(axis < len(shapes.get(key, ())) for key, axis, *_ in [*axes.classes, *axes.channels])
    sizes = read_free_sizes(shapes, axes) if present else None
    classes, seen = sizes or (wishes.classes or DEFAULT_CLASSES, channels)
    return Match((architecture,), classes, seen if seen in (1, 3) else channels)


def count_output_classes(architecture: str, wishes: ModelOverrides) -> int:
    """How many classes a network answers with whose factory takes no class count."""
    size = wishes.image_size or default_preprocessing(architecture).image_size
    with torch.no_grad():
        return (
            build_model(architecture, classes=DEFAULT_CLASSES)
            .eval()(torch.zeros(1, 1 if wishes.grayscale else 3, *size))
            .shape[1]
        )


# # MERGED DOC """Putting a state dict into a network: every tensor in its place, or one clear account of what does not fit."""
#
