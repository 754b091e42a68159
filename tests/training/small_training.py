"""A MosaicKD training of two steps that takes about a second."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from compress.training.estimate import EstimateResult
from compress.training.launch import estimate_training, run_training
from compress.training.recipes import resolve_config
from compress.training.results import RunResult

TEACHER = "embedded/fashion_wrn16_2"
ARGUMENTS = {"student": "wrn16_1", "steps": 2, "batch_size": 8, "precision": "32", "device": "cpu"}
SETTINGS = {"method.width_G": 8, "method.width_D": 8, "data.views": 1}


def train(output_dir: Path, *, options: dict[str, Any] | None = None, **arguments: Any) -> RunResult:
    """Train with these arguments of `resolve_config`; `options` are those of `run_training`."""
    result = run_training(*resolve_config(**arguments), output_dir=output_dir, **options or {})
    assert result is not None
    return result


def mosaic(photos: Path, **changes: Any) -> dict[str, Any]:
    """Return the arguments of the small training; `settings` are added to its own."""
    settings = SETTINGS | changes.pop("settings", {})
    return {"teacher": TEACHER, "unlabeled": str(photos), **ARGUMENTS, **changes, "settings": settings}


def estimate(**arguments: Any) -> EstimateResult:
    return estimate_training(*resolve_config(**arguments))


def hash_weights(run_dir: Path, name: str = "last") -> str:
    return hashlib.sha256((run_dir / name / "model.safetensors").read_bytes()).hexdigest()
