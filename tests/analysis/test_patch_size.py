"""`--patch-size auto`: a monotone rule, patches that can be built, and a number in the recipe."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.analysis import patch_size
from compress.analysis.patch_size import (
    DEFAULT_PATCH_SIZE,
    PATCH_SIZE_BY_SHIFT,
    PatchSizeChoice,
    choice_for_shift,
    choose_patch_size,
    measure_shift,
    patch_size_for_shift,
)
from compress.config import document_from_mapping, load_yaml
from compress.data.cache import ImageCache
from compress.errors import CompressError, UsageError
from compress.methods.mosaic import MosaicKD
from compress.models.discriminators import build_discriminator
from compress.models.loading import load_model
from compress.training.setup import RECIPE, TrainingSetup, create_run, load_config, prepare_training

TEACHER = "embedded/fashion_wrn16_2"


@pytest.mark.parametrize("side", [16, 20, 32, 64, 224])
def test_larger_shift_gives_smaller_patches(side):
    sizes = [patch_size_for_shift(shift, side) for shift in np.linspace(0, 2, 201)]
    assert all(now >= after for now, after in pairwise(sizes))
    assert len(set(sizes)) > 1
    assert max(sizes) < side


def test_rule_covers_all_shifts():
    limits, sizes = zip(*PATCH_SIZE_BY_SHIFT, strict=True)
    assert list(limits) == sorted(limits)
    assert limits[-1] == math.inf
    assert list(sizes) == sorted(sizes, reverse=True)
    assert [patch_size_for_shift(limit, 32) for limit in limits] == list(sizes)
    assert MosaicKD().patch_size == DEFAULT_PATCH_SIZE


@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize("shift", [None, 0.0, 0.3, 5.0])
def test_chosen_patches_can_be_built(side, shift):
    choice = choice_for_shift(shift, side)
    scores = build_discriminator(choice.patch_size, side, width=8)(torch.rand(2, 3, side, side))
    assert scores.shape[2] > 1
    assert f"patch size {choice.patch_size}" in choice.reason


def create_noise(count: int, size: int = 32) -> ImageCache:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageCache("noise", pixels, None, None, np.arange(count), [], "noise")


def test_shift_is_measured_on_a_sample():
    net, _ = load_model(TEACHER)
    cache = create_noise(40)
    shift = measure_shift(net, cache, 10)
    assert shift == measure_shift(net, cache.subset(np.arange(0, 40, 4)), 100)
    assert shift != measure_shift(net, cache, 40)
    assert measure_shift(nn.Flatten(), cache, 10) is None
    with torch.no_grad():
        next(net.parameters()).fill_(math.nan)
    with pytest.raises(CompressError, match="noise"):
        measure_shift(net, cache, 10)


def create_setup(data: dict[str, Any] | None = None, **method: object) -> TrainingSetup:
    recipe = {
        "teachers": [{"model": TEACHER}],
        "data": {"unlabeled": "embedded/photos", "views": 2, **(data or {})},
        "method": {"name": "mosaic", "width_G": 8, "width_D": 8, "patch_size": "auto", **method},
        "training": {"steps": 1, "batch_size": 8, "device": "cpu"},
    }
    return prepare_training(*load_config(document_from_mapping(recipe)))


def choose(setup: TrainingSetup, run_dir: Path, resume: bool | None = None) -> PatchSizeChoice | None:
    return choose_patch_size(setup, run_dir, resume=resume, progress=lambda _: None)


def test_auto_becomes_a_number_in_the_recipe(tmp_path):
    setup = create_setup()
    choice = choose(setup, tmp_path / "run")
    assert choice is not None
    assert setup.config.method["patch_size"] == choice.patch_size
    create_run(setup, tmp_path / "run", quiet=True).close()
    recipe = load_yaml(tmp_path / "run" / RECIPE)
    assert recipe.get("method.patch_size") == choice.patch_size
    assert choose(prepare_training(*load_config(recipe)), tmp_path / "run") is None


def test_resumed_run_keeps_its_patch_size(tmp_path):
    (tmp_path / RECIPE).write_text("method: {name: mosaic, patch_size: 22}\n")
    setup = create_setup()
    choose(setup, tmp_path)
    assert setup.config.method["patch_size"] == 22
    fresh = create_setup()
    choose(fresh, tmp_path, resume=False)
    assert fresh.config.method["patch_size"] != 22


def test_without_discriminator_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(patch_size, "measure_patch_size", None)
    setup = create_setup(local=0.0)
    choose(setup, tmp_path)
    assert setup.config.method["patch_size"] == DEFAULT_PATCH_SIZE


def test_shift_is_measured_on_the_subset(monkeypatch):
    counts: list[int] = []
    monkeypatch.setattr(patch_size, "measure_shift", lambda net, cache, max_images: counts.append(len(cache)))
    choose(create_setup({"subset": 5}), Path("none"))
    assert counts == [5]


def test_unresolved_auto_is_refused(tmp_path):
    setup = create_setup()
    run = create_run(setup, tmp_path / "run", quiet=True)
    with pytest.raises(UsageError, match=r"method\.patch_size"):
        setup.method.setup(run)
    run.close()
