"""Small real things that the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from invoking import distill, read_result


@pytest.fixture(autouse=True)
def _one_random_state():
    """What a test in this process leaves behind in PyTorch's global state is not the next one's concern."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(scope="session")
def first_run(tmp_path_factory, photos, clothes) -> tuple[Path, dict[str, object]]:
    """A finished run of two steps, with its validation, and what it printed with --json."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    return folder, read_result(distill("--val", clothes, "--json", ood=photos, out=folder))
