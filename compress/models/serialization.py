"""Save and load a model directory: `config.json` (the card) and `model.safetensors` (the weights).

The weights are written first and the card, which contains their hash, last. So a directory whose card agrees with its
weights is complete.
"""

from __future__ import annotations

import json
import platform
from dataclasses import replace
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
from compress.models.registry import MODULE_PREFIX, build_network, is_user_code
from compress.models.state_dicts import load_state_dict_strict

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "config.json"


def package_versions() -> dict[str, str]:
    """Package -> version of what a model was made with."""
    versions = {"python": platform.python_version()}
    for package in ("compress-distill", "torch", "torchvision", "timm", "segmentation-models-pytorch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def save_model(directory: Path, network: Network, card: ModelCard) -> None:
    """Save a network and its card; `card.sha256` becomes the hash of the weights.

    Raises:
        CompressError: The disk is full or the directory cannot be written; the previous files stay readable.
    """
    directory = Path(directory)
    state = {key: to_cpu_copy(value) for key, value in network.body.state_dict().items()}
    with atomic_write(directory / WEIGHTS_FILE) as file:
        file.write(save(state, metadata={"format": "pt"}))
    card.sha256 = sha256(directory / WEIGHTS_FILE)
    write_json(directory / CARD_FILE, card.as_dict())


def to_cpu_copy(value: Tensor) -> Tensor:
    """A contiguous copy on the CPU with its own storage, as safetensors requires."""
    return value.detach().to("cpu", copy=True).contiguous()


def is_model_directory(directory: Path) -> bool:
    return (directory / CARD_FILE).is_file() or (directory / WEIGHTS_FILE).is_file()


def load_card(directory: Path) -> ModelCard:
    """Load the card of a model directory. Raises CompressError if it is missing or damaged."""
    path = Path(directory) / CARD_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{directory}: found no {CARD_FILE}, expected a model directory.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CompressError(f"{path}: cannot be read ({error}); copy the model directory again.") from error
    if not isinstance(content, dict):
        raise CompressError(f"{path}: found a {type(content).__name__}, expected a model card; copy it again.")
    return parse_card(content, path)


def load_model_directory(directory: Path, *, user_code: str | None = None) -> tuple[Network, ModelCard]:
    """Load the network of a model directory, in eval mode on the CPU, and its card.

    Args:
        directory: The model directory.
        user_code: The architecture that the user trusts. A card may name code of the user, `package.module:factory`; it
            is imported only if this says the same, so a file alone never runs code. For a network that was given as a
            module, it names the architecture to build instead.

    Raises:
        UsageError: The card names code that `user_code` does not.
        CompressError: The weights are damaged (their hash is checked first, because a flipped bit loads without an
            error in every format), or do not fit the architecture.
    """
    directory = Path(directory)
    card = load_card(directory)
    if card.architecture.startswith(MODULE_PREFIX):
        card = replace(card, architecture=user_code or card.architecture)
    elif is_user_code(card.architecture) and user_code != card.architecture:
        raise UsageError(
            f"{directory}: found the architecture {card.architecture}, code outside this package; if you trust it, "
            f"name it: --teacher-arch {card.architecture}."
        )
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        raise CompressError(f"{directory}: {WEIGHTS_FILE} is missing beside {CARD_FILE}; copy the directory again.")
    if card.sha256 is not None and sha256(path) != card.sha256:
        raise CompressError(
            f"{path}: its sha256 is not the one in {CARD_FILE}, so it was changed or damaged after saving; "
            "copy the directory again, or take an older checkpoint."
        )
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CompressError(f"{path}: cannot be read ({error}); copy the directory again.") from error
    model = build_network(card)
    with torch.no_grad():
        load_state_dict_strict(model.body, state, f"{path} (architecture {card.architecture})")
    return model.eval(), card
