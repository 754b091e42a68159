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
from compress.models import is_own
from compress.models.archive import kind_of
from compress.models.blackbox import is_black_box
from compress.models.card import Card
from compress.models.foreign import from_weights, narrowed, recognised
from compress.models.loading import find, load_model
from compress.models.programs import EXPORTED
from compress.models.published import PREFIXES
from compress.models.recognise import recognise
from compress.models.weights import Weights, read_weights
from compress.models.wishes import Wishes, settle

FORMATS = {
    "onnx": "ONNX",
    "program": "torch.export program",
    "script": "TorchScript",
    "safetensors": "safetensors",
    "torch": "torch file",
}
#: tensors with NaN or infinity that are named, the rest is counted
NAMED = 20


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
    card: Card | None = None
    params: int | None = None  #: learned numbers
    dtypes: dict[str, int] = field(default_factory=dict)  #: tensors by type of number
    non_finite: list[str] = field(default_factory=list)  #: tensors with NaN or infinity in them
    facts: dict[str, Any] = field(default_factory=dict)  #: epoch, arch … as the file has them
    sha256: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """One flat object: the card's fields stand beside the rest, with `image_size` as [height, width]."""
        own = {key: value for key, value in asdict(self).items() if key != "card"}
        known = self.card.as_dict() if self.card else {"classes": None, "image_size": None}
        return {**known, **own, "format": self.format, "sha256": self.sha256}


def inspect_model(spec: str, wishes: Wishes) -> Inspection:
    """What `spec` (see `load_model`) holds. Weights that fit no network, or several, are described, not refused.

    Raises UsageError where there is no such file or name, CompressError for a damaged or hostile file.
    """
    named = spec.startswith(PREFIXES) or (is_own(spec) and not Path(spec).exists())
    path = None if named else find(spec)
    if path is None or path.is_dir():
        return whole(spec, "published weights" if named else "model folder", wishes)
    kind = kind_of(path)
    if kind != "weights":
        return whole(spec, FORMATS[kind], wishes)
    weights = read_weights(path, trust_pickle=wishes.trust_pickle, ema=wishes.ema)
    found = Inspection(
        spec,
        FORMATS.get(weights.container, weights.container),
        weights.wrapping,
        weights.has_ema,
        facts=weights.facts,
        sha256=sha256(path),
    )
    count(found, weights.state)
    if weights.module is not None and wishes.arch is None:
        found.card = load_model(spec, **vars(wishes))[1]
        found.architecture, found.params = EXPORTED, parameters(weights.module)
    else:
        fitted(found, path, weights, wishes)
    return found


def whole(spec: str, form: str, wishes: Wishes) -> Inspection:
    """A model that brings its card along, or is a program; of an ONNX file's numbers nothing is known."""
    model, card = load_model(spec, **vars(wishes))
    found = Inspection(spec, form, architecture=card.architecture, card=card, sha256=card.sha256)
    if not is_black_box(model):
        count(found, model.body.state_dict())
        found.params = parameters(model.body)
    return found


def fitted(found: Inspection, path: Path, weights: Weights, wishes: Wishes) -> None:
    """Find the network that the weights belong to, and see whether they fit."""
    if wishes.arch is None:
        try:
            match = recognised(path, narrowed(weights))
            found.same_as = match.same
        except UsageError:
            found.candidates = recognise(narrowed(weights).state).candidates
        except CompressError:
            pass  # told in full by the attempt below
    try:
        model, card = from_weights(path, weights, wishes)
        found.card = settle(card, wishes, found.model)
        found.architecture, found.params = card.architecture, parameters(model)
    except CompressError as error:
        found.problem = str(error).removeprefix(f"{path}: ")


def count(found: Inspection, state: Mapping[str, Tensor]) -> None:
    found.dtypes = dict(Counter(str(value.dtype).removeprefix("torch.") for value in state.values()))
    floats = {key: value for key, value in state.items() if value.is_floating_point()}
    found.params = sum(value.numel() for key, value in floats.items() if "running_" not in key)
    found.non_finite = [key for key, value in floats.items() if not bool(torch.isfinite(value).all())][:NAMED]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
