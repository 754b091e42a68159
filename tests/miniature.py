"""NYUv2 in miniature: files of exactly the structure that is distributed, with a few frames of 48x64 pixels."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from scipy.io import savemat

#: of the 894 names; the first stand for what is in the real list at other places
RAW = ["wall", "floor", "chair", "ceiling", "bed", "lamp", "oven mitt", "television"]
FORTY = [
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refridgerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
]  # fmt: skip
#: the class of each of RAW, counted from 1; 0: in none of the 40
MAPPED = [1, 2, 5, 22, 4, 35, 0, 25]
#: and what becomes of it in the 13, counted from 0
IN_13 = [11, 4, 3, 2, 0, 6, 255, 10]


def frames(count: int, height: int = 48, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, h, w, 3] and uint16 [n, h, w] with every label: as one sees them, not as the file holds them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    labels = np.repeat(rng.integers(0, len(RAW) + 1, (count, height // 4, width), dtype=np.uint16), 4, axis=1)
    labels[:, 0, : len(RAW) + 1] = np.arange(len(RAW) + 1)
    return images, labels


def write_frames(path: Path, images: np.ndarray, labels: np.ndarray, names: list[str] | None = None) -> Path:
    """A MATLAB 7.3 file: HDF5 behind a block of 512 bytes, axes reversed, cells as references to characters."""
    with h5py.File(path, "w", userblock_size=512) as file:
        n, height, width, _ = images.shape
        file.create_dataset(
            "images", data=images.transpose(0, 3, 2, 1), chunks=(min(2, n), 1, width, height), compression="gzip"
        )
        file.create_dataset(
            "labels", data=labels.transpose(0, 2, 1), chunks=(min(3, n), width, height // 2), compression="gzip"
        )
        file.create_dataset("depths", data=np.zeros((n, width, height), dtype=np.float32))
        cells = file.create_dataset("names", (1, len(names or RAW)), dtype=h5py.ref_dtype)
        for i, name in enumerate(names or RAW):
            letters = np.array([[ord(letter)] for letter in name], dtype=np.uint16)
            cells[0, i] = file.create_dataset(f"#refs#/{i}", data=letters).ref
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x02IM"
    with open(path, "r+b") as file:
        file.write(header)
    return path


def cells(names: list[str]) -> np.ndarray:
    found = np.empty((1, len(names)), dtype=object)
    found[0, :] = names
    return found


def write_mappings(folder: Path, mapped: list[int] | None = None) -> None:
    mapping = np.array([mapped or MAPPED], dtype=np.uint8)
    savemat(folder / "classMapping40.mat", {"mapClass": mapping, "className": cells(FORTY), "allClassName": cells(RAW)})


def write_splits(folder: Path, train: list[int], test: list[int]) -> None:
    columns = {"trainNdxs": np.array([train], dtype=np.uint16).T, "testNdxs": np.array([test], dtype=np.uint16).T}
    savemat(folder / "splits.mat", columns)


def write_nyu(folder: Path, count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """All the files in `folder`; odd frames, counted from 1, are for training. Returns the frames as one sees them."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = frames(count)
    write_frames(folder / "nyu_depth_v2_labeled.mat", images, labels)
    numbers = list(range(1, count + 1))
    write_splits(folder, numbers[0::2], numbers[1::2])
    write_mappings(folder)
    return images, labels
