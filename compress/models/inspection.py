"""What is in a checkpoint, as far as it can be told without running anything in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressError, UsageError
from compress.files import sha256
from compress.models.architecture_index import recognize_architecture
from compress.models.card import ModelCard
from compress.models.checkpoints import CheckpointWeights, read_checkpoint
from compress.models.exported_programs import EXPORTED
from compress.models.file_safety import detect_file_kind
from compress.models.loading import load_model, resolve_model_path
from compress.models.onnx_teacher import is_black_box
from compress.models.overrides import ModelOverrides, apply_overrides
from compress.models.pretrained import PRETRAINED_PREFIXES
from compress.models.registry import is_user_code
from compress.models.state_dicts import build_from_checkpoint, drop_unknown_keys, match_recognized

FORMAT_NAMES = {
    "onnx": "ONNX",
    "program": "torch.export program",
    "script": "TorchScript",
    "safetensors": "safetensors",
    "torch": "torch file",
}
#: tensors with NaN or infinity that are named, the rest is counted
MAX_LISTED = 20


@dataclass
class Inspection:
    """The contents of one checkpoint. Fields that nothing is known of are None or empty."""

    model: str  #: as it was asked for
    format: str
    wrapping: tuple[str, ...] = ()  #: keys and prefixes around the weights, outermost first
    has_ema: bool = False  #: averaged weights lie beside the plain ones
    architecture: str | None = None
    same_as: tuple[str, ...] = ()  #: other names of that architecture
    candidates: tuple[str, ...] = ()  #: where several architectures fit
    problem: str | None = None  #: why it cannot be loaded as it stands, and what to do
    card: ModelCard | None = None
    params: int | None = None  #: learned numbers
    dtypes: dict[str, int] = field(default_factory=dict)  #: tensors by type of number
    non_finite: list[str] = field(default_factory=list)  #: tensors with NaN or infinity in them
    metadata: dict[str, Any] = field(default_factory=dict)  #: epoch, arch … as the file has them
    sha256: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """One flat object: the card's fields stand beside the rest, with `image_size` as [height, width]."""
        own = {key: value for key, value in asdict(self).items() if key != "card"}
        known = self.card.as_dict() if self.card else {"classes": None, "image_size": None}
        return {**known, **own, "format": self.format, "sha256": self.sha256}


def inspect_model(spec: str, wishes: ModelOverrides) -> Inspection:
    """What `spec` (see `load_model`) holds. Weights that fit no network, or several, are described, not refused.

    Raises UsageError where there is no such file or name, CompressError for a damaged or hostile file.
    """
    named = spec.startswith(PRETRAINED_PREFIXES) or (is_user_code(spec) and not Path(spec).exists())
    path = None if named else resolve_model_path(spec)
    if path is None or path.is_dir():
        return inspect_loaded_model(spec, "published weights" if named else "model folder", wishes)
    kind = detect_file_kind(path)
    if kind != "weights":
        return inspect_loaded_model(spec, FORMAT_NAMES[kind], wishes)
    weights = read_checkpoint(path, trust_pickle=wishes.trust_pickle, ema=wishes.ema)
    found = Inspection(
        spec,
        FORMAT_NAMES.get(weights.container, weights.container),
        weights.wrapping,
        weights.has_ema,
        metadata=weights.metadata,
        sha256=sha256(path),
    )
    count_tensors(found, weights.state)
    if weights.module is not None and wishes.architecture is None:
        found.card = load_model(spec, wishes)[1]
        found.architecture, found.params = EXPORTED, count_parameters(weights.module)
    else:
        match_architecture(found, path, weights, wishes)
    return found


def inspect_loaded_model(spec: str, form: str, wishes: ModelOverrides) -> Inspection:
    """A model that brings its card along, or is a program; of an ONNX file's numbers nothing is known."""
    model, card = load_model(spec, wishes)
    found = Inspection(spec, form, architecture=card.architecture, card=card, sha256=card.sha256)
    if not is_black_box(model):
        count_tensors(found, model.body.state_dict())
        found.params = count_parameters(model.body)
    return found


def match_architecture(found: Inspection, path: Path, weights: CheckpointWeights, wishes: ModelOverrides) -> None:
    """Find the network that the weights belong to, and see whether they fit."""
    if wishes.architecture is None:
        try:
            match = match_recognized(path, drop_unknown_keys(weights))
            found.same_as = match.equivalents
        except UsageError:
            found.candidates = recognize_architecture(drop_unknown_keys(weights).state).candidates
        except CompressError:
            pass  # told in full by the attempt below
    try:
        model, card = build_from_checkpoint(path, weights, wishes)
        found.card = apply_overrides(card, wishes, found.model)
        found.architecture, found.params = card.architecture, count_parameters(model)
    except CompressError as error:
        found.problem = str(error).removeprefix(f"{path}: ")


def count_tensors(found: Inspection, state: Mapping[str, Tensor]) -> None:
    found.dtypes = dict(Counter(str(value.dtype).removeprefix("torch.") for value in state.values()))
    floats = {key: value for key, value in state.items() if value.is_floating_point()}
    found.params = sum(value.numel() for key, value in floats.items() if "running_" not in key)
    found.non_finite = [key for key, value in floats.items() if not bool(torch.isfinite(value).all())][:MAX_LISTED]


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
