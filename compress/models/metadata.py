"""The card inside an exported file: strings by name, for our own tools to read back and for anyone to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from compress.errors import CompressError
from compress.models.card import ModelCard, parse_card

#: key under which the whole card stands as JSON; the other keys repeat parts of it for other readers
CARD_KEY = "compress.card"
INPUT_DESCRIPTION = "images: float32 RGB, NCHW, values in [0, 1]; the graph normalises them itself"
OUTPUT_DESCRIPTIONS = {
    "classification": "logits: float32 [batch, classes], before softmax",
    "segmentation": "logits: float32 [batch, classes, height, width] at the images' size, before softmax",
}


def card_to_metadata(card: ModelCard) -> dict[str, str]:
    """What the metadata of an exported file says: what goes in, what comes out, what it means, where it came from."""
    height, width = card.image_size
    found = {
        "producer": f"compress {metadata.version('compress-distill')}",
        "task": card.task,
        "architecture": card.architecture,
        "input": INPUT_DESCRIPTION,
        "output": OUTPUT_DESCRIPTIONS[card.task],
        "image_size": f"{height}x{width}",
        "resize": str(card.resize or max(card.image_size)),
        "colour_order": "RGB",
        "source_sha256": card.sha256 or "unknown",
        "normalisation": json.dumps({"baked_in": True, "grey": card.grayscale, "mean": card.mean, "std": card.std}),
        "classes": str(card.classes),
        "provenance": json.dumps(card.provenance, default=str),
        CARD_KEY: json.dumps(card.as_dict(), default=str),
    }
    if card.class_names is not None:
        found["class_names"] = json.dumps(card.class_names)
    return found


def card_from_metadata(found: Mapping[str, str], where: Path) -> ModelCard | None:
    """The card in a file's metadata; None in a stranger's file. Raises CompressError for a card that is damaged."""
    if CARD_KEY not in found:
        return None
    try:
        content = json.loads(found[CARD_KEY])
    except ValueError as error:
        raise CompressError(f"{where}: the card in its metadata is damaged ({error}); export it again.") from error
    return parse_card(content, where)
