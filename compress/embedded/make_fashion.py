"""Create `fashion.npz` from the original Fashion-MNIST files: the first images of each class, so it is balanced.

    python -m compress.embedded.make_fashion FOLDER

FOLDER contains the four .gz files of Fashion-MNIST, such as /usr/share/datasets/fashion-mnist of the Debian package
dataset-fashion-mnist.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

PARTS = {"train": ("train", 1000), "val": ("t10k", 200)}
CLASSES = 10


def read_idx(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read (images [n, 28, 28] uint8, labels [n] uint8) of one part from IDX files."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def write_fashion(folder: Path, target: Path) -> None:
    """Write the balanced subset of the files in `folder` to `target`."""
    arrays: dict[str, np.ndarray] = {}
    for split, (part, per_class) in PARTS.items():
        images, labels = read_idx(folder, part)
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(CLASSES)]))
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
    np.savez_compressed(target, **arrays)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    write_fashion(Path(sys.argv[1]), Path(__file__).with_name("fashion.npz"))
