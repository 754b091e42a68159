"""The model folder: `config.json` (the card) beside `model.safetensors` (the weights), tied together by a sha256.

The weights are written first and the card last, so a folder whose card agrees with its weights is complete.
"""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from compress.errors import CompressError, UsageError
from compress.files import atomic_write, sha256, write_json
from compress.models.card import ModelCard, parse_card
from compress.models.network import Network
from compress.models.registry import build_network, is_user_code
from compress.models.state_dicts import load_state_dict_strict

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "config.json"


def package_versions() -> dict[str, str]:
    """What this model was made with, for its card's provenance: package -> version."""
    found = {"python": platform.python_version()}
    for package in ("compress-distill", "torch", "torchvision", "timm", "segmentation-models-pytorch"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def save_model(folder: Path, network: Network, card: ModelCard) -> None:
    """Write `network` and its `card` to `folder`, each file whole or not at all; `card.sha256` is set to the weights'.

    Raises CompressError where the disk is full or the folder cannot be written; what was there before stays readable.
    """
    folder = Path(folder)
    state = {key: to_cpu_copy(value) for key, value in network.body.state_dict().items()}
    with atomic_write(folder / WEIGHTS_FILE) as file:
        file.write(save(state, metadata={"format": "pt"}))
    card.sha256 = sha256(folder / WEIGHTS_FILE)
    write_json(folder / CARD_FILE, card.as_dict())


def to_cpu_copy(value: Tensor) -> Tensor:
    """`value` as a contiguous tensor on the CPU with storage of its own, as safetensors wants it."""
    return value.detach().to("cpu", copy=True).contiguous()


def is_model_directory(folder: Path) -> bool:
    return (folder / CARD_FILE).is_file() or (folder / WEIGHTS_FILE).is_file()


def load_card(folder: Path) -> ModelCard:
    """The card of a model folder. Raises CompressError where it is missing or damaged."""
    path = Path(folder) / CARD_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: no {CARD_FILE} in it, so this is not a model folder of ours.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CompressError(f"{path}: cannot be read ({error}); the model folder is damaged, copy it again.") from error
    if not isinstance(content, dict):
        raise CompressError(f"{path}: found a {type(content).__name__}, expected a model card; copy the folder again.")
    return parse_card(content, path)


def load_model_directory(folder: Path, *, user_code: str | None = None) -> tuple[Network, ModelCard]:
    """The network in `folder`, in eval mode on the CPU, and its card.

    A card may name code of the user's own, `package.module:factory`. It is imported only where `own` says the same: a
    file alone never makes code run.

    Raises CompressError if the weights are not the bytes that were saved (a flipped bit loads without complaint in
    every format, so the hash is checked first), or do not fit the architecture that the card names.
    """
    folder = Path(folder)
    card = load_card(folder)
    if is_user_code(card.architecture) and user_code != card.architecture:
        raise UsageError(
            f"{folder}: built by code outside this package, {card.architecture}; if you trust it, "
            f"name it: --teacher-arch {card.architecture}."
        )
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CompressError(f"{folder}: {WEIGHTS_FILE} is missing beside {CARD_FILE}; copy the whole folder again.")
    if card.sha256 is not None and sha256(path) != card.sha256:
        raise CompressError(
            f"{path}: its sha256 is not the one in {CARD_FILE}, so the weights were changed or damaged after saving; "
            f"copy the folder again, or take an older checkpoint."
        )
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CompressError(f"{path}: cannot be read ({error}); copy the folder again.") from error
    model = build_network(card)
    with torch.no_grad():
        load_state_dict_strict(model.body, state, f"{path} (architecture {card.architecture})")
    return model.eval(), card
