"""Teachers whose weights are not finite."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.reliability.counts import Counts, Scale
from benchmarks.reliability.isolated import call_isolated, expect_refusal
from benchmarks.reliability.writers import TEACHER, save_noise


def distill_from_poisoned(images: Path, folder: Path, key: str | None, value: float) -> dict[str, Any]:
    """Save the embedded teacher with one bad weight, and distill from it."""
    import torch
    from small_training import ARGUMENTS, SETTINGS

    import compress
    from compress.models.loading import load_model
    from compress.models.serialization import save_model

    network, card = load_model(TEACHER)
    weights = {name: one for name, one in network.body.state_dict().items() if one.is_floating_point()}
    with torch.no_grad():
        weights[key or ""].reshape(-1)[-1] = value
    save_model(folder / "teacher", network, card)
    result = compress.distill(
        str(folder / "teacher"), unlabeled=str(images), settings=SETTINGS, output_dir=folder / "run", **ARGUMENTS
    )  # fmt: skip
    return {"steps": result.steps}


def list_weights() -> list[str]:
    from compress.models.loading import load_model

    network, _ = load_model(TEACHER)
    return [name for name, one in network.body.state_dict().items() if one.is_floating_point()]


def run_nan_teachers(scale: Scale, counts: Counts) -> None:
    """One weight of the teacher is NaN or infinite: refused before training, with the name of its layer."""
    rng = random.Random(scale.seed)
    names = call_isolated(list_weights).value
    with TemporaryDirectory(prefix="reliability-") as folder:
        here = Path(folder)
        images = save_noise(here / "images", 8)
        for i in range(scale.count(6)):
            key, value = rng.choice(names), rng.choice([float("nan"), float("inf")])
            outcome = call_isolated(distill_from_poisoned, images, here / str(i), key, value)
            if expect_refusal(counts, "weights of the teacher", outcome, f"{key} = {value}"):
                layer = key.rpartition(".")[0]
                if layer not in outcome.text:
                    counts.note(f"the error for {key} does not name {layer}: {outcome.text[:160]}")
