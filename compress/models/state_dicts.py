"""Fit a state dict to an architecture that is given or recognized, and state what is assumed about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressError, UsageError
from compress.files import sha256
from compress.models.architecture_index import (
    AUXILIARY_HEADS,
    Match,
    compute_fingerprint,
    find_match,
    is_relevant_tensor,
    load_index,
    nearest_architectures,
    read_free_sizes,
    recognize_architecture,
    tensor_shapes,
)
from compress.models.card import ASSUMED, FROM_FILE, ModelCard, with_sources
from compress.models.checkpoints import PART_MARK, CheckpointWeights
from compress.models.key_names import NetworkInFile, State, find_network
from compress.models.outputs import detector_message, is_detector_state
from compress.models.overrides import ModelOverrides
from compress.models.pretrained import DefaultPreprocessing, default_preprocessing
from compress.models.registry import DEFAULT_CLASSES, build_model, build_network, build_on_meta, infer_task
from compress.models.stated_input import normalize_name, read_stated_architectures, read_stated_input

#: differences that an error lists
MAX_LISTED = 5
#: fields of a card that a state dict does not contain
INPUT_FIELDS = ("image_size", "resize", "mean", "std")


class AmbiguousArchitectureError(UsageError):
    """Weights fit several architectures with different outputs."""

    def __init__(self, path: Path, candidates: tuple[str, ...]) -> None:
        super().__init__(
            f"{path}: found {len(candidates)} architectures that these weights fit, with different outputs; "
            f"choose one with --teacher-arch: {', '.join(candidates)}."
        )
        self.candidates = candidates


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
    lines += [
        f"  type        {key}: found {str(value.dtype).removeprefix('torch.')}, expected a floating type"
        for key, value in given.items()
        if key in own and own[key].is_floating_point() and not value.is_floating_point()
    ]
    if lines:
        more = [f"  … and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
        raise CompressError("\n".join([f"{source}: the weights do not fit the network:", *lines[:MAX_LISTED], *more]))
    own.update(given)  # an ordered dictionary with the versions of the modules, which MNASNet requires
    model.load_state_dict(own)


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
        network, match = match_given(path, weights, overrides)
    else:
        network, match = match_recognized(path, weights)
    architecture = match.candidates[0]
    if overrides.classes is not None and overrides.classes != match.classes:
        raise UsageError(f"{path}: found {match.classes} classes, expected {overrides.classes}; leave out --classes.")
    grayscale = match.channels == 1
    usual = default_preprocessing(architecture, grayscale=grayscale)
    card = ModelCard(
        architecture,
        match.classes,
        usual.image_size,
        infer_task(architecture),
        mean=usual.mean,
        std=usual.std,
        grayscale=grayscale,
        resize=usual.resize,
        class_names=weights.class_names if len(weights.class_names or []) == match.classes else None,
        provenance={"source": path.name} | also_fits(match) | dropped_heads(network.state) | others(path, network),
        sha256=sha256(path),
    )
    card = with_stated_input(card, usual, weights, network)
    model = build_network(card).body
    load_state_dict_strict(model, network.state, f"{path} (as {architecture})")
    return model, card


def with_stated_input(
    card: ModelCard, usual: DefaultPreprocessing, weights: CheckpointWeights, network: NetworkInFile
) -> ModelCard:
    """The card with the input that the file states; the rest is assumed, from its layout and its architecture."""
    stated = read_stated_input(weights)
    if network.statistics is not None:
        stated["mean"], stated["std"] = network.statistics
    stated = {
        name: value * card.channels if name in ("mean", "std") and len(value) == 1 else value
        for name, value in stated.items()
        if name not in ("mean", "std") or len(value) in (1, card.channels)
    }
    assumed: dict[str, Any] = {}
    if network.layout is not None and network.layout.statistics is not None and not card.grayscale:
        assumed["mean"], assumed["std"] = network.layout.statistics
    if "image_size" in stated and stated["image_size"] != usual.image_size:
        assumed["resize"] = None
    provenance = with_sources(card.provenance, ASSUMED, *(name for name in INPUT_FIELDS if name not in stated))
    return replace(card, provenance=with_sources(provenance, FROM_FILE, *stated), **{**assumed, **stated})


def others(path: Path, network: NetworkInFile) -> dict[str, Any]:
    """How to load the other networks in a file."""
    return {"other_networks": [f"{path}{PART_MARK}{name}" for name in network.others]} if network.others else {}


def also_fits(match: Match) -> dict[str, list[str]]:
    """Architectures that the weights fit too, but that were not chosen."""
    return {"also_fits": list(match.also_fits)} if match.also_fits else {}


def dropped_heads(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The auxiliary heads in a file, which only training needs."""
    heads = sorted({key.partition(".")[0] for key in state if key.startswith(AUXILIARY_HEADS)})
    return {"dropped": heads} if heads else {}


def match_recognized(path: Path, weights: CheckpointWeights) -> tuple[NetworkInFile, Match]:
    """Recognize the architecture; the name in the file decides between candidates, then torchvision's is preferred.

    Raises:
        AmbiguousArchitectureError: Several architectures remain.
        CompressError: No known architecture has these tensors.
    """
    if weights.part is None and is_detector_state(weights.stored or weights.state):
        raise CompressError(detector_message(str(path)))
    network = find_network(weights, str(path), lambda state: find_match(state) is not None, list_nearest)
    if network is None:
        try:
            recognize_architecture(weights.state)
        except CompressError as error:
            raise CompressError(f"{path}: {error}") from error
        network = NetworkInFile(weights.state)
    match = recognize_architecture(network.state)
    if match.channels not in (1, 3):
        raise UsageError(f"{path}: found {match.channels} input channels, expected 3 (RGB) or 1 (grayscale).")
    network = replace(network, others=(*weights.others, *network.others))
    stated = read_stated_architectures(weights)
    same = next((name for name in match.equivalents if normalize_name(name) in stated), None)
    if same is not None and normalize_name(match.candidates[0]) not in stated:
        return network, replace(match, candidates=(same,), equivalents=(match.candidates[0], *match.equivalents))
    padding = network.layout.architectures if network.layout is not None else ""
    named = [c for c in match.candidates if normalize_name(c) in stated]
    known = [c for c in match.candidates if padding and c.startswith(padding)]
    published = [c for c in match.candidates if c.startswith("torchvision/")]
    for chosen in (known, named, published):
        if len(chosen) == 1:
            rest = tuple(c for c in match.candidates if c not in chosen) if chosen is published else ()
            return network, replace(match, candidates=tuple(chosen), also_fits=rest)
    if not match.is_certain:
        raise AmbiguousArchitectureError(path, match.candidates)
    return network, match


def list_nearest(state: State) -> list[str]:
    return [name for name, _ in nearest_architectures(tensor_shapes(state), load_index())]


def match_given(path: Path, weights: CheckpointWeights, overrides: ModelOverrides) -> tuple[NetworkInFile, Match]:
    """The architecture of the user, with the class count and channels that the weights have."""
    architecture = str(overrides.architecture)
    own = build_on_meta(architecture, classes=DEFAULT_CLASSES).state_dict()
    needed = {key for key, value in own.items() if is_relevant_tensor(key, value)}
    network = find_network(
        weights, str(path), lambda state: needed <= state.keys(), lambda _: [architecture]
    ) or NetworkInFile(weights.state)
    network = replace(network, others=(*weights.others, *network.others))
    channels = 1 if overrides.grayscale else 3
    axes = compute_fingerprint(architecture).axes
    if not axes.classes:
        classes = overrides.classes or count_output_classes(architecture, overrides)
        return network, Match((architecture,), classes, channels)
    shapes = tensor_shapes(network.state)
    present = all(axis < len(shapes.get(key, ())) for key, axis, *_ in [*axes.classes, *axes.channels])
    sizes = read_free_sizes(shapes, axes) if present else None
    classes, stored = sizes or (overrides.classes or DEFAULT_CLASSES, channels)
    return network, Match((architecture,), classes, stored if stored in (1, 3) else channels)


def count_output_classes(architecture: str, overrides: ModelOverrides) -> int:
    """The classes of a network whose factory accepts no class count, from one forward pass."""
    size = overrides.image_size or default_preprocessing(architecture).image_size
    model = build_model(architecture, classes=DEFAULT_CLASSES).eval()
    with torch.no_grad():
        return model(torch.zeros(1, 1 if overrides.grayscale else 3, *size)).shape[1]
