"""Exported files that a test edits as other software does: without the hash at their end."""

from __future__ import annotations

from pathlib import Path

import onnx

from exporters.seal import KEY


def load_unsealed(path: Path) -> onnx.ModelProto:
    """Load an exported file without its hash."""
    model = onnx.load(path)
    entries = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(entries)
    return model
