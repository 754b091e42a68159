"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_training import mosaic, train

from compress.training.results import RunResult


@pytest.fixture(autouse=True)
def random_state():
    """Restore PyTorch's random state after each test."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, photos, clothes) -> tuple[Path, RunResult]:
    """A finished run of two steps, and its result."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    return folder, train(folder, **mosaic(photos, validation=str(clothes)))
