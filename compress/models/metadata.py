"""The card in the metadata of an exported file, as strings by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from compress.models.card import ModelCard, parse_card_json

#: key of the whole card as JSON; the other keys repeat parts of it for other readers
CARD_KEY = "compress.card"
INPUT_DESCRIPTION = "images: float32 RGB, NCHW, values in [0, 1]; the graph normalizes them itself"
OUTPUT_DESCRIPTIONS = {
    "classification": "logits: float32 [batch, classes], before softmax",
    "segmentation": "logits: float32 [batch, classes, height, width] at the images' size, before softmax",
    "multilabel_classification": "logits: float32 [batch, labels], before sigmoid",
    "binary_segmentation": "logits: float32 [batch, 1, height, width] at the images' size, before sigmoid",
}


def card_to_metadata(card: ModelCard) -> dict[str, str]:
    """Describe input, output, classes and origin for the metadata of an exported file."""
    height, width = card.image_size
    normalization = {"baked_in": True, "grayscale": card.grayscale, "mean": card.mean, "std": card.std}
    entries = {
        "producer": f"compress {metadata.version('compress-distill')}",
        "task": card.task,
        "architecture": card.architecture,
        "input": INPUT_DESCRIPTION,
        "output": OUTPUT_DESCRIPTIONS[card.task],
        "image_size": f"{height}x{width}",
        "resize": str(card.resize or max(card.image_size)),
        "color_order": "RGB",
        "source_sha256": card.sha256 or "unknown",
        "normalization": json.dumps(normalization),
        "classes": str(card.classes),
        "provenance": json.dumps(card.provenance, default=str),
        CARD_KEY: json.dumps(card.as_dict(), default=str),
    }
    if card.decision_threshold is not None:
        entries["threshold"] = str(card.decision_threshold)
    if card.class_names is not None:
        entries["class_names"] = json.dumps(card.class_names)
    return entries


def card_from_metadata(entries: Mapping[str, str], source: Path) -> ModelCard | None:
    """The card in the metadata of a file; None if it has none. Raises CompressError if it is damaged."""
    if CARD_KEY not in entries:
        return None
    return parse_card_json(entries[CARD_KEY], source)
