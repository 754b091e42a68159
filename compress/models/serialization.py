"""Save and load a model directory: `config.json` (the card) and `model.safetensors` (the weights).

The card contains the hash of the weights, and its own. A model is replaced in three atomic steps: the new weights are
written to a hidden file with their hash in its name, the card is replaced, and the hidden file is renamed to
`model.safetensors`. The second step decides: before it, the old card and weights are loaded, after it the new ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from compress.errors import CompressError, UsageError
from compress.files import add_hash, fsync_dir, require_regular_file, write_bytes, write_error, write_json
from compress.models.card import CARD_FORMAT, ModelCard, parse_card
from compress.models.network import Network
from compress.models.registry import MODULE_PREFIX, build_network, is_user_code
from compress.models.state_dicts import load_state_dict_strict

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "config.json"
#: new weights until the card is replaced; and what `atomic_write` leaves if it is killed
STAGED_WEIGHTS = ".model-{sha256}.safetensors"
ALL_STAGED = STAGED_WEIGHTS.format(sha256="[0-9a-f]" * 64)
LEFTOVERS = (ALL_STAGED, f".{ALL_STAGED}.*.tmp", f".{WEIGHTS_FILE}.*.tmp", f".{CARD_FILE}.*.tmp")
#: field of the card file with the hash of the others; cards of format 1 can lack it
CARD_HASH = "card_sha256"
#: how often a directory is read again that another process replaces meanwhile
READ_ATTEMPTS = 5


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
    """Save a network and its card, or replace both as one; `card.sha256` becomes the hash of the weights.

    Other files of the directory are not changed.

    Raises:
        WriteError: The disk is full or the directory cannot be written; the previous model can be loaded, or the new.
    """
    directory = Path(directory)
    state = {key: to_cpu_copy(value) for key, value in network.body.state_dict().items()}
    content = save(state, metadata={"format": "pt"})
    card.sha256, card.format = hashlib.sha256(content).hexdigest(), CARD_FORMAT
    staged = directory / STAGED_WEIGHTS.format(sha256=card.sha256)
    write_bytes(staged, content)
    write_card(directory, card)
    try:
        os.replace(staged, directory / WEIGHTS_FILE)
        fsync_dir(directory)
    except OSError as error:
        raise write_error(directory / WEIGHTS_FILE, error) from error
    for pattern in LEFTOVERS:
        for leftover in directory.glob(pattern):
            with contextlib.suppress(OSError):
                leftover.unlink()


def write_card(directory: Path, card: ModelCard) -> None:
    """Replace the card of a model directory."""
    write_json(directory / CARD_FILE, add_hash(card.as_dict(), CARD_HASH))


def to_cpu_copy(value: Tensor) -> Tensor:
    """A contiguous copy on the CPU with its own storage, as safetensors requires."""
    return value.detach().to("cpu", copy=True).contiguous()


def is_model_directory(directory: Path) -> bool:
    return (directory / CARD_FILE).is_file() or (directory / WEIGHTS_FILE).is_file()


def load_card(directory: Path) -> ModelCard:
    """Load the card of a model directory. Raises CompressError if it is missing, edited or damaged."""
    path = Path(directory) / CARD_FILE
    content = read_card_file(path)
    found = content.pop(CARD_HASH, None)
    is_old = found is None and content.get("format", 1) == 1
    if not is_old and add_hash(content, CARD_HASH)[CARD_HASH] != found:
        raise CompressError(
            f"{path}: its {CARD_HASH} is not that of its content, so it was edited or damaged after saving; copy the "
            "model directory again, and give other facts as options, such as --image-size."
        )
    return parse_card(content, path)


def read_card_file(path: Path) -> dict[str, Any]:
    """Read the JSON of a card. Raises CompressError if it is missing or no JSON object."""
    if not path.exists():
        raise UsageError(f"{path.parent}: found no {CARD_FILE}, expected a model directory.")
    try:
        content = json.loads(require_regular_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CompressError(f"{path}: cannot be read ({error}); copy the model directory again.") from error
    if not isinstance(content, dict):
        raise CompressError(f"{path}: found a {type(content).__name__}, expected a model card; copy it again.")
    return content


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
    card, weights = read_model_files(directory)
    if card.architecture.startswith(MODULE_PREFIX):
        card = replace(card, architecture=user_code or card.architecture)
    elif is_user_code(card.architecture) and user_code != card.architecture:
        raise UsageError(
            f"{directory}: found the architecture {card.architecture}, code outside this package; if you trust it, "
            f"name it: --teacher-arch {card.architecture}."
        )
    path = directory / WEIGHTS_FILE
    try:
        state = load(weights)
    except SafetensorError as error:
        raise CompressError(f"{path}: cannot be read ({error}); copy the directory again.") from error
    model = build_network(card)
    with torch.no_grad():
        load_state_dict_strict(model.body, state, f"{path} (architecture {card.architecture})")
    return model.eval(), card


def read_model_files(directory: Path) -> tuple[ModelCard, bytes]:
    """Read the card of a model directory, and the bytes of its weights.

    If another process replaces the model meanwhile, both files are of the old model, or both of the new one.

    Raises:
        CompressError: The weights are missing, or their hash is not the one in the card.
    """
    card = load_card(directory)
    for _ in range(READ_ATTEMPTS):
        found = False
        for name in (STAGED_WEIGHTS.format(sha256=card.sha256), WEIGHTS_FILE):
            weights = read_weights(directory / name)
            found = found or weights is not None
            if weights is not None and card.sha256 in (None, hashlib.sha256(weights).hexdigest()):
                return card, weights
        before, card = card, load_card(directory)
        if card == before:
            break
    else:
        raise CompressError(f"{directory}: other processes replace this model all the time; wait for them.")
    if not found:
        raise CompressError(f"{directory}: {WEIGHTS_FILE} is missing beside {CARD_FILE}; copy the directory again.")
    raise CompressError(
        f"{directory / WEIGHTS_FILE}: its sha256 is not the one in {CARD_FILE}, so it was changed or damaged after "
        "saving; copy the directory again, or take an older checkpoint."
    )


def read_weights(path: Path) -> bytes | None:
    """Read a file of weights; None if there is none."""
    if not path.exists():
        return None
    try:
        return require_regular_file(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CompressError(f"{path}: cannot be read ({error}); copy the directory again.") from error
