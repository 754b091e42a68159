"""Fixtures of all tests; this directory is on the path, for `tiny` and `contract`."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def default_signals():
    """Receive signals here and in children, even if a shell has started the tests with some of them ignored."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    for number, handler in handlers.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def image_cache(tmp_path_factory):
    """Decode images into a directory of this session, each data set once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def probe_in_this_process():
    """Run programs without a process of their own, which takes seconds; tests of the limits set one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_PROBE_SECONDS", "0")
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Eight small images of noise, as out-of-domain data."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def clothes(tmp_path_factory) -> Path:
    """Forty labeled images of Fashion-MNIST's ten classes, one folder per class."""
    from compress.data import open_images

    folder = tmp_path_factory.mktemp("clothes")
    images = open_images("embedded/fashion", split="val", labeled=True)
    assert images.labels is not None
    for label in range(10):
        (folder / f"class{label}").mkdir()
        for i in np.flatnonzero(np.asarray(images.labels) == label)[:4]:
            images.read_image(int(i)).save(folder / f"class{label}" / f"{i}.png")
    return folder
