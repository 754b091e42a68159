"""Describe a checkpoint without running anything in it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.files import sha256
from compress.models.card import ModelCard
from compress.models.checkpoints import CheckpointWeights, read_checkpoint, split_part
from compress.models.exported_programs import EXPORTED
from compress.models.file_safety import detect_file_kind
from compress.models.hugging_face import find_folder
from compress.models.loading import load_unchecked, resolve_model_path
from compress.models.onnx_teacher import is_black_box
from compress.models.overrides import ModelOverrides, apply_overrides
from compress.models.pretrained import PRETRAINED_PREFIXES
from compress.models.registry import MODULE_PREFIX, is_user_code, register_module
from compress.models.state_dicts import AmbiguousArchitectureError, build_from_checkpoint, match_recognized

FORMAT_NAMES = {
    "onnx": "ONNX",
    "program": "torch.export program",
    "script": "TorchScript",
    "safetensors": "safetensors",
    "torch": "torch file",
    "folder": "weights with config.json",
}
#: tensors with NaN or infinity that are named
MAX_LISTED = 20


@dataclass
class Inspection:
    """The contents of a checkpoint. Unknown fields are None or empty."""

    model: str  #: name or path that was given
    format: str  #: kind of file, such as "safetensors" or "model directory"
    wrapping: tuple[str, ...] = ()  #: keys and prefixes around the weights, outermost first
    has_ema: bool = False  #: the file contains averaged weights beside the plain ones
    architecture: str | None = None  #: the architecture that the weights fit
    same_as: tuple[str, ...] = ()  #: other names of this architecture
    candidates: tuple[str, ...] = ()  #: architectures that fit, if there are several
    problem: str | None = None  #: why it cannot be loaded as it is, and what to do
    card: ModelCard | None = None  #: image size, classes, normalization
    params: int | None = None  #: number of parameters
    dtypes: dict[str, int] = field(default_factory=dict)  #: type of number -> tensors
    non_finite: list[str] = field(default_factory=list)  #: tensors that contain NaN or infinity
    metadata: dict[str, Any] = field(default_factory=dict)  #: other values in the file: epoch, arch, …
    sha256: str | None = None  #: hash of the file


def inspect_model(spec: str | Path | nn.Module, overrides: ModelOverrides) -> Inspection:
    """Describe what `load_model(spec, overrides)` loads. Weights that fit no network, or several, are described too.

    Raises:
        UsageError: There is no such file or name.
        CompressError: The file is damaged or unsafe.
    """
    if isinstance(spec, nn.Module):
        spec = register_module(spec)
    spec = str(spec)
    is_name = spec.startswith(PRETRAINED_PREFIXES) or (is_user_code(spec) and not os.path.exists(spec))
    path = None if is_name else resolve_model_path(spec)
    if path is None or path.is_dir():
        kind = "module" if spec.startswith(MODULE_PREFIX) else "published weights"
        return inspect_loaded_model(spec, kind if is_name else "model directory", overrides)
    chosen, (path, part) = path, split_part(path)
    if part is None and find_folder(path) is not None:
        return inspect_loaded_model(spec, FORMAT_NAMES["folder"], overrides)
    kind = detect_file_kind(path)
    if kind != "weights":
        return inspect_loaded_model(spec, FORMAT_NAMES[kind], overrides)
    weights = read_checkpoint(chosen, trust_pickle=overrides.trust_pickle, ema=overrides.ema)
    result = Inspection(
        spec,
        FORMAT_NAMES.get(weights.container, weights.container),
        weights.wrapping,
        weights.has_ema,
        metadata=weights.metadata,
        sha256=sha256(path),
    )
    count_tensors(result, weights.state)
    if weights.module is not None and overrides.architecture is None:
        result.card = load_unchecked(spec, overrides)[1]
        result.architecture, result.params = EXPORTED, count_parameters(weights.module)
    else:
        match_architecture(result, path, weights, overrides)
    return result


def inspect_loaded_model(spec: str, format_name: str, overrides: ModelOverrides) -> Inspection:
    """Describe a model that loads by itself; the tensors of an ONNX file are not counted."""
    model, card = load_unchecked(spec, overrides)
    result = Inspection(spec, format_name, architecture=card.architecture, card=card, sha256=card.sha256)
    if not is_black_box(model):
        count_tensors(result, model.body.state_dict())
        result.params = count_parameters(model.body)
    return result


def match_architecture(result: Inspection, path: Path, weights: CheckpointWeights, overrides: ModelOverrides) -> None:
    """Find the architecture of the weights and check that they fit."""
    if overrides.architecture is None:
        try:
            result.same_as = match_recognized(path, weights)[1].equivalents
        except AmbiguousArchitectureError as error:
            result.candidates = error.candidates
        except CompressError:
            pass  # reported in full below
    try:
        model, card = build_from_checkpoint(path, weights, overrides)
        result.card = apply_overrides(card, overrides, result.model)
        result.architecture, result.params = card.architecture, count_parameters(model)
    except CompressError as error:
        result.problem = str(error).removeprefix(f"{path}: ")


def count_tensors(result: Inspection, state: Mapping[str, Tensor]) -> None:
    result.dtypes = dict(Counter(str(value.dtype).removeprefix("torch.") for value in state.values()))
    floats = {key: value for key, value in state.items() if value.is_floating_point()}
    result.params = sum(value.numel() for key, value in floats.items() if "running_" not in key)
    result.non_finite = [key for key, value in floats.items() if not bool(torch.isfinite(value).all())][:MAX_LISTED]


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
