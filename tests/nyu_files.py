"""Small NYUv2 files with the structure of the distributed ones: a few frames of 48x64 pixels."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from scipy.io import savemat

#: some of the 894 names
RAW = ["wall", "floor", "chair", "ceiling", "bed", "lamp", "oven mitt", "television"]
FORTY = [
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refridgerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
]  # fmt: skip
#: 40-class number of each of RAW, from 1; 0: none
MAPPED = [1, 2, 5, 22, 4, 35, 0, 25]
#: 13-class number of each of RAW, from 0
IN_13 = [11, 4, 3, 2, 0, 6, 255, 10]


def create_frames(count: int, height: int = 48, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Create uint8 images [n, h, w, 3] and uint16 labels [n, h, w] with every label."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    labels = np.repeat(rng.integers(0, len(RAW) + 1, (count, height // 4, width), dtype=np.uint16), 4, axis=1)
    labels[:, 0, : len(RAW) + 1] = np.arange(len(RAW) + 1)
    return images, labels


def write_frames(path: Path, images: np.ndarray, labels: np.ndarray, names: list[str] | None = None) -> Path:
    """Write a MATLAB 7.3 file: HDF5 after a block of 512 bytes, reversed axes, cells as references to characters."""
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


def create_cells(names: list[str]) -> np.ndarray:
    array = np.empty((1, len(names)), dtype=object)
    array[0, :] = names
    return array


def write_mappings(folder: Path, mapped: list[int] | None = None) -> None:
    mapping = np.array([mapped or MAPPED], dtype=np.uint8)
    savemat(
        folder / "classMapping40.mat",
        {"mapClass": mapping, "className": create_cells(FORTY), "allClassName": create_cells(RAW)},
    )


def write_splits(folder: Path, train: list[int], test: list[int]) -> None:
    columns = {"trainNdxs": np.array([train], dtype=np.uint16).T, "testNdxs": np.array([test], dtype=np.uint16).T}
    savemat(folder / "splits.mat", columns)


def write_nyu(folder: Path, count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Write all files; odd frames (from 1) are for training. Returns images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = create_frames(count)
    write_frames(folder / "nyu_depth_v2_labeled.mat", images, labels)
    numbers = list(range(1, count + 1))
    write_splits(folder, numbers[0::2], numbers[1::2])
    write_mappings(folder)
    return images, labels
