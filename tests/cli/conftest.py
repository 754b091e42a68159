"""Small real things that the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from invoking import distill, read_result
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Decoded images go into a folder of this session: each data set is decoded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _one_random_state():
    """What a test in this process leaves behind in PyTorch's global state is not the next one's concern."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Eight small pictures of noise, as out-of-domain data."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def clothes(tmp_path_factory) -> Path:
    """Forty labeled pictures of Fashion-MNIST's ten classes, one folder a class."""
    from compress.data import open_images

    folder = tmp_path_factory.mktemp("clothes")
    images = open_images("embedded/fashion", split="val", labeled=True)
    assert images.labels is not None
    for label in range(10):
        (folder / f"class{label}").mkdir()
        for i in np.flatnonzero(np.asarray(images.labels) == label)[:4]:
            images.read_image(int(i)).save(folder / f"class{label}" / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def first_run(tmp_path_factory, photos, clothes) -> tuple[Path, dict[str, object]]:
    """A finished run of two steps, with its validation, and what it printed with --json."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    return folder, read_result(distill("--val", clothes, "--json", ood=photos, out=folder))
