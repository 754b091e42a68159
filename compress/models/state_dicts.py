"""Fit a state dict to an architecture that is given or recognized, and state what is assumed about it."""

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

#: keys under which training scripts store the name of the architecture
ARCHITECTURE_KEYS = ("arch", "architecture", "model_name", "model_arch")
#: differences that an error lists
MAX_LISTED = 5


def load_state_dict_strict(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `model`; half precision becomes the precision of the model.

    Integer buffers (BatchNorm counters, index tables) may be missing or unexpected: they depend on the version of the
    library and do not affect the output.

    Raises:
        CompressError: Tensors are missing, unexpected or of another shape; up to five are listed.
    """
    own = model.state_dict()
    expected = {key: tuple(value.shape) for key, value in own.items()}
    given = {key: value for key, value in state.items() if key in own or is_relevant_tensor(key, value)}
    lines = describe_mismatch(expected, {key: tuple(value.shape) for key, value in given.items()}, optional_keys(own))
    if lines:
        more = [f"  … and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
        raise CompressError("\n".join([f"{source}: the weights do not fit the network:", *lines[:MAX_LISTED], *more]))
    model.load_state_dict({**own, **given})


def require_finite(model: nn.Module, source: str) -> None:
    """Refuse a model with NaN or infinity in a tensor. A buffer may have -inf, as attention masks do.

    Raises:
        CompressError: The message names the first of these tensors.
    """
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            problem = "NaN" if bool(value.isnan().any()) else "infinity"
            if problem == "infinity" and not isinstance(value, nn.Parameter) and bool((value < torch.inf).all()):
                continue
            name = name.removeprefix("program.")
            raise CompressError(f"{source}: {name} has {problem}, so the model is damaged; use another checkpoint.")


def optional_keys(own: Mapping[str, Tensor]) -> set[str]:
    return {key for key, value in own.items() if not value.is_floating_point()}


def describe_mismatch(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], optional: set[str]
) -> list[str]:
    """One line for every tensor that is missing, unexpected or of another shape."""
    lines = [
        f"  missing     {key} {list(shape)}"
        for key, shape in expected.items()
        if key not in given and key not in optional
    ]
    lines += [f"  unexpected  {key} {list(shape)}" for key, shape in given.items() if key not in expected]
    lines += [
        f"  shape       {key}: found {list(given[key])}, expected {list(shape)}"
        for key, shape in expected.items()
        if key in given and given[key] != shape
    ]
    return lines


def build_from_checkpoint(
    path: Path, weights: CheckpointWeights, overrides: ModelOverrides
) -> tuple[nn.Module, ModelCard]:
    """Build the architecture that the user gave, or that is recognized, with the weights of a checkpoint."""
    if overrides.architecture:
        match = match_given(weights, overrides)
    else:
        weights = drop_unknown_keys(weights)
        match = match_recognized(path, weights)
    architecture = match.candidates[0]
    if overrides.classes is not None and overrides.classes != match.classes:
        raise UsageError(f"{path}: found {match.classes} classes, expected {overrides.classes}; leave out --classes.")
    grayscale = match.channels == 1
    usual = default_preprocessing(architecture, grayscale=grayscale)
    provenance = {"source": path.name, "assumed": assumed_fields(overrides)}
    card = ModelCard(
        architecture,
        match.classes,
        usual.image_size,
        infer_task(architecture),
        mean=usual.mean,
        std=usual.std,
        grayscale=grayscale,
        class_names=weights.class_names if len(weights.class_names or []) == match.classes else None,
        provenance=provenance | also_fits(match) | dropped_heads(weights.state),
        sha256=sha256(path),
    )
    model = build_network(card).body
    load_state_dict_strict(model, align_keys(weights, model), f"{path} (as {architecture})")
    return model, card


def align_keys(weights: CheckpointWeights, model: nn.Module) -> Mapping[str, Tensor]:
    """The weights under the names of the network.

    Its own names may begin with what was taken for a wrapper's prefix, or tensors of a loss lie beside them.
    """
    own = model.state_dict()
    prefix = "".join(part for part in weights.wrapping if part.endswith("."))
    if prefix and all(key.startswith(prefix) for key in own):
        return {prefix + key: value for key, value in weights.state.items()}
    needed = {key for key, value in own.items() if is_relevant_tensor(key, value)}
    parts = iter_prefixed_parts(weights.state)
    return next((part for _, part in parts if needed <= part.keys()), weights.state)


def drop_unknown_keys(weights: CheckpointWeights) -> CheckpointWeights:
    """Drop what a training module stores beside its network, such as class weights of a loss."""
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
    """Yield (prefix, its tensors) for every wrapper prefix that some, but not all, names have."""
    for prefix in WRAPPER_PREFIXES:
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if 0 < len(part) < len(state):
            yield prefix, part


def assumed_fields(overrides: ModelOverrides) -> list[str]:
    """The fields of the card without a value from the user, which are assumed."""
    return [name for name in ("image_size", "mean", "std") if getattr(overrides, name) is None]


def also_fits(match: Match) -> dict[str, list[str]]:
    """Architectures that the weights fit too, but that were not chosen."""
    return {"also_fits": list(match.also_fits)} if match.also_fits else {}


def dropped_heads(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The auxiliary heads in a file, which only training needs."""
    heads = sorted({key.partition(".")[0] for key in state if key.startswith(AUXILIARY_HEADS)})
    return {"dropped": heads} if heads else {}


def match_recognized(path: Path, weights: CheckpointWeights) -> Match:
    """Recognize the architecture; the name in the file decides between candidates, then torchvision's is preferred."""
    try:
        match = recognize_architecture(weights.state)
    except CompressError as error:
        raise CompressError(f"{path}: {error}") from error
    if match.channels not in (1, 3):
        raise UsageError(f"{path}: found {match.channels} input channels, expected 3 (RGB) or 1 (grayscale).")
    stated = {weights.metadata.get(key) for key in ARCHITECTURE_KEYS}
    named = [c for c in match.candidates if c.rpartition("/")[2] in stated]
    published = [c for c in match.candidates if c.startswith("torchvision/")]
    for chosen in (named, published):
        if len(chosen) == 1:
            others = () if chosen is named else tuple(c for c in match.candidates if c not in chosen)
            return replace(match, candidates=tuple(chosen), also_fits=others)
    if not match.is_certain:
        raise UsageError(
            f"{path}: found {len(match.candidates)} architectures that these weights fit, with different outputs; "
            f"choose one with --teacher-arch: {', '.join(match.candidates)}."
        )
    return match


def match_given(weights: CheckpointWeights, overrides: ModelOverrides) -> Match:
    """The architecture of the user, with the class count and channels that the weights have."""
    architecture = str(overrides.architecture)
    channels = 1 if overrides.grayscale else 3
    axes = compute_fingerprint(architecture).axes
    if not axes.classes:
        return Match((architecture,), overrides.classes or count_output_classes(architecture, overrides), channels)
    shapes = tensor_shapes(align_keys(weights, build_on_meta(architecture, classes=DEFAULT_CLASSES)))
    present = all(axis < len(shapes.get(key, ())) for key, axis, *_ in [*axes.classes, *axes.channels])
    sizes = read_free_sizes(shapes, axes) if present else None
    classes, stored = sizes or (overrides.classes or DEFAULT_CLASSES, channels)
    return Match((architecture,), classes, stored if stored in (1, 3) else channels)


def count_output_classes(architecture: str, overrides: ModelOverrides) -> int:
    """The classes of a network whose factory accepts no class count, from one forward pass."""
    size = overrides.image_size or default_preprocessing(architecture).image_size
    model = build_model(architecture, classes=DEFAULT_CLASSES).eval()
    with torch.no_grad():
        return model(torch.zeros(1, 1 if overrides.grayscale else 3, *size)).shape[1]
