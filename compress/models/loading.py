"""One door for every teacher: name, folder, run, a stranger's checkpoint, program -> a network and its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from torch import nn

from compress.errors import UsageError, nearest
from compress.models import MODELS, network
from compress.models.card import Card
from compress.models.fitting import fit
from compress.models.folder import is_model_folder, load_model_folder
from compress.models.network import Network
from compress.models.weights import read_weights

#: where a run folder keeps its models, the first found is taken
RUN_PARTS = ("best", "student", "last")


@dataclass(frozen=True)
class Wishes:
    """What the user said of a model, over what the model says of itself; None: nothing."""

    arch: str | None = None
    classes: int | None = None
    image_size: tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    grey: bool | None = None
    class_names: Sequence[str] | None = None
    trust_pickle: bool = False
    ema: bool = False


def load_model(
    spec: str,
    *,
    arch: str | None = None,
    classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    grey: bool | None = None,
    class_names: Sequence[str] | None = None,
    trust_pickle: bool = False,
    ema: bool = False,
) -> tuple[nn.Module, Card]:
    """The model that `spec` names, in eval mode on the CPU: images [n, 3, h, w] in [0, 1] -> logits [n, classes].

    `spec`: `embedded/NAME`, a model folder, a run folder, a .pt/.pth/.safetensors file, a `torch.export` program
    (.pt2), a TorchScript file, `torchvision/NAME` or `timm/NAME` (with their published weights). The other arguments
    fill in, or override, what the file does not say of itself.

    Raises UsageError for a request that cannot be right (no such file or name, another class count), CompressError for
    a file that is damaged, hostile or does not fit.
    """
    wishes = Wishes(arch, classes, image_size, mean, std, grey, class_names, trust_pickle, ema)
    path = find(spec)
    model, card = load_folder(path) if path.is_dir() else load_file(path, wishes)
    return settle(model, card, wishes, spec)


def find(spec: str) -> Path:
    """The file or folder that `spec` means. Raises UsageError where there is none."""
    if spec.startswith("embedded/"):
        return embedded(spec.removeprefix("embedded/"))
    path = Path(spec).expanduser()
    if not path.exists():
        raise UsageError(f"{spec}: no such file or folder; see `compress models` for models known by name.")
    return path


def embedded(name: str) -> Path:
    root = Path(str(resources.files("compress"))) / "embedded"
    known = embedded_names()
    if name not in known:
        raise UsageError(f"embedded/{name}: no such embedded model{nearest(name, known)} Known: {', '.join(known)}.")
    return root / name


def embedded_names() -> list[str]:
    """Models shipped with the package, as `embedded/NAME` without the prefix."""
    root = Path(str(resources.files("compress"))) / "embedded"
    return sorted(folder.name for folder in root.iterdir() if folder.is_dir() and is_model_folder(folder))


def load_folder(folder: Path) -> tuple[nn.Module, Card]:
    """A model folder, or the best model in a run folder."""
    if is_model_folder(folder):
        return load_model_folder(folder)
    part = next((folder / name for name in RUN_PARTS if is_model_folder(folder / name)), None)
    if part is None:
        raise UsageError(f"{folder}: neither a model folder (config.json) nor a run folder ({', '.join(RUN_PARTS)}).")
    return load_model_folder(part)


def load_file(path: Path, wishes: Wishes) -> tuple[nn.Module, Card]:
    weights = read_weights(path, trust_pickle=wishes.trust_pickle, ema=wishes.ema)
    if wishes.arch is None or wishes.classes is None:
        raise UsageError(f"{path}: give --teacher-arch and the class count.")
    card = Card(
        wishes.arch, wishes.classes, wishes.image_size or default_size(wishes.arch), class_names=weights.class_names
    )
    model = network(card)
    fit(model.body, weights.state, f"{path} (as {wishes.arch})")
    return model.eval(), card


def default_size(architecture: str) -> tuple[int, int]:
    return (32, 32) if architecture in MODELS else (224, 224)


def settle(model: nn.Module, card: Card, wishes: Wishes, spec: str) -> tuple[nn.Module, Card]:
    """Check what the user said against the card, and let it override what the card may be told."""
    if wishes.classes is not None and wishes.classes != card.classes:
        raise UsageError(f"{spec}: this model has {card.classes} classes, found {wishes.classes} asked for.")
    return model, card


def new_model(architecture: str, *, like: Card) -> tuple[Network, Card]:
    """A fresh network with random weights for the task, classes, image size and normalisation of `like`."""
    card = replace(like, architecture=architecture, metrics={}, provenance={}, sha256=None)
    return network(card), card
