"""NYUv2 as it is distributed: one MATLAB file of 1,449 frames and the official split, read frame by frame.

`nyu_depth_v2_labeled.mat` is HDF5, in which MATLAB's axes are reversed; its labels go from 0 (unlabeled) to 894.
`classMapping40.mat` (Gupta et al., CVPR 2013) maps them to 40 classes, which map to the paper's 13 (Couprie et al.,
ICLR 2013).
"""

from __future__ import annotations

import hashlib
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compress.data.dataset import DECODE_ERRORS, IGNORE_INDEX, MAX_PIXELS, ImageSet
from compress.errors import CompressError, UsageError

FRAMES_FILE, SPLITS_FILE, MAPPING_40_FILE, MAPPING_13_FILE = (
    "nyu_depth_v2_labeled.mat",
    "splits.mat",
    "classMapping40.mat",
    "class13Mapping.mat",
)
#: official source of each file
SOURCES = {
    FRAMES_FILE: "the labeled dataset of cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
    SPLITS_FILE: "horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat",
    MAPPING_40_FILE: "github.com/ankurhanda/nyuv2-meta-data",
}
#: the class, from 1 to 13, of each of the 40 classes, as in `class13Mapping.mat`
CLASS_OF_40_IN_13 = (
    12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5,
    7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7,
)  # fmt: skip
CLASSES = [
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv", "wall",
    "window",
]  # fmt: skip
#: classes with the same name as a label of the file, to check that a mapping belongs to it
CHECKED_CLASSES = ("wall", "floor", "chair", "ceiling")
#: bytes of unpacked chunks cached per dataset, for frames that share a chunk
CHUNK_CACHE_BYTES = 64 << 20
#: bytes of a MATLAB 5 file, which is compressed up to a thousand times; number of label names, and their length
MAX_MATLAB, MAX_NAMES, MAX_NAME = 1 << 20, 10_000, 1000

NYU: dict[str, tuple[int, str]] = {
    "nyuv2": (13, "NYUv2, indoor scenes for segmentation, 795 images of 640x480, 13 classes (extra `nyu`)"),
    "nyuv2-40": (40, "NYUv2 for segmentation with 40 classes (extra `nyu`)"),
}


def open_nyu(name: str, root: Path, *, split: str, labeled: bool) -> ImageSet:
    """Open a split of NYUv2, with masks if `labeled`, from `root` or its subdirectory `nyuv2`.

    Raises:
        UsageError: The extra `nyu` is not installed.
        CompressError: A file is missing, damaged or of another structure.
    """
    paths = locate_files(
        name, root, (FRAMES_FILE, SPLITS_FILE, MAPPING_40_FILE) if labeled else (FRAMES_FILE, SPLITS_FILE)
    )
    frames = FrameReader(paths[FRAMES_FILE])
    count = frames.check_datasets(labeled=labeled)
    chosen = read_split(paths[SPLITS_FILE], "trainNdxs" if split == "train" else "testNdxs", count)
    facts = paths[FRAMES_FILE].stat()
    identity = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}".encode() + chosen.tobytes())
    items = [f"{name}/{number + 1:04}" for number in chosen]

    def open_image(i: int) -> Image.Image:
        return Image.fromarray(frames.read_frame("images", int(chosen[i])).transpose(2, 1, 0))

    if not labeled:
        return ImageSet(name, items, open_image, identity.hexdigest())
    table, names = build_class_table(paths, frames.label_names(), NYU[name][0])
    identity.update(table.tobytes())

    def open_mask(i: int) -> np.ndarray:
        labels = frames.read_frame("labels", int(chosen[i])).T
        if labels.max(initial=0) >= len(table):
            raise CompressError(
                f"{paths[FRAMES_FILE]}: frame {chosen[i] + 1}: found label {labels.max()}, expected < {len(table)}."
            )
        return table[labels]

    return ImageSet(name, items, open_image, identity.hexdigest(), class_names=names, open_mask=open_mask)


def locate_files(name: str, root: Path, wanted: tuple[str, ...]) -> dict[str, Path]:
    """The path of each file, and of the mapping to 13 if it exists. Raises CompressError naming what is missing."""
    folders = [root, root / "nyuv2"]
    paths = {
        file: folder / file
        for file in (*wanted, MAPPING_13_FILE)
        for folder in folders[::-1]
        if (folder / file).is_file()
    }
    missing = [file for file in wanted if file not in paths]
    if missing:
        sources = "; ".join(f"{file} is at {SOURCES[file]}" for file in missing)
        raise CompressError(
            f"{name}: {' and '.join(missing)} not found in {root} or {folders[1]}; {sources}; download them there, or "
            "choose another directory with --data-root."
        )
    return paths


class FrameReader:
    """Reader of single frames of the MATLAB file; each thread has its own handle."""

    def __init__(self, path: Path) -> None:
        self.path, self.own = path, threading.local()

    def open_file(self) -> Any:
        """The h5py file of this thread. Raises UsageError without h5py, CompressError if it cannot be opened."""
        try:
            import h5py
        except ImportError as error:
            raise UsageError(
                f"{self.path}: h5py is not installed; run `pip install 'compress-distill[nyu]'`."
            ) from error
        if not hasattr(self.own, "file"):
            try:
                self.own.file, self.own.data = (
                    h5py.File(self.path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES, locking="best-effort"),
                    {},
                )
            except OSError as error:
                reason = "truncated" if "truncated" in str(error) else " ".join(str(error).split())[:120]
                raise CompressError(
                    f"{self.path}: not a complete MATLAB 7.3 file ({reason}); download {SOURCES[FRAMES_FILE]}."
                ) from error
        return self.own.file

    def read_frame(self, name: str, i: int) -> np.ndarray:
        """Frame `i` of a dataset: uint8 [3, w, h] of `images`, uint16 [w, h] of `labels`. Raises OSError if damaged."""
        file = self.open_file()
        if name not in self.own.data:
            self.own.data[name] = file[name]  # kept open, so that its unpacked chunks stay cached
        return self.own.data[name][i]

    def check_datasets(self, *, labeled: bool) -> int:
        """The number of frames. Raises CompressError unless the datasets have the expected shapes and types."""
        images = self.dataset_info("images")
        if images is None or len(images[0]) != 4 or images[0][1] != 3 or images[1] != "uint8":
            raise self.format_error("images", images, "uint8 [frames, 3, width, height]")
        n, _, *size = images[0]
        if math.prod(size) > MAX_PIXELS:
            raise self.format_error("images", images, f"at most {MAX_PIXELS:,} pixels")
        labels = self.dataset_info("labels")
        if labeled and (labels is None or labels[0] != (n, *size) or labels[1] not in ("uint8", "uint16")):
            raise self.format_error("labels", labels, f"uint16 {[n, *size]}")
        return n

    def dataset_info(self, name: str) -> tuple[tuple[int, ...], str] | None:
        """(shape, type) of a dataset; None if there is none of that name, or if its values lie in another file."""
        file = self.open_file()
        import h5py

        try:
            data = file.get(name) if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
            if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
                return None
            return tuple(data.shape), str(data.dtype)
        except DECODE_ERRORS as error:
            raise CompressError(f"{self.path}: {name}: cannot be read ({error}); download the file again.") from error

    def format_error(self, name: str, facts: tuple[tuple[int, ...], str] | None, expected: str) -> CompressError:
        found = "nothing of that name" if facts is None else f"{facts[1]} {list(facts[0])}"
        return CompressError(
            f"{self.path}: {name}: found {found}, expected {expected}; download {SOURCES[FRAMES_FILE]}."
        )

    def label_names(self) -> list[str]:
        """The names of labels 1, 2, … from a cell array, which contains references to arrays of characters."""
        import h5py

        facts, file = self.dataset_info("names"), self.open_file()
        if facts is None or h5py.check_ref_dtype(file["names"].dtype) is not h5py.Reference:
            raise self.format_error("names", facts, "a cell array of names")
        if math.prod(facts[0]) > MAX_NAMES:
            raise self.format_error("names", facts, f"at most {MAX_NAMES:,} names")
        try:
            cells = [file[cell] for cell in file["names"][()].flat]
            if any(cell.size > MAX_NAME for cell in cells):
                raise ValueError(f"a name of more than {MAX_NAME} letters")
            return ["".join(map(chr, cell[()].flat)) for cell in cells]
        except DECODE_ERRORS as error:
            raise CompressError(f"{self.path}: names: cannot be read ({error}); download the file again.") from error


def read_split(path: Path, key: str, count: int) -> np.ndarray:
    """int64 [n], sorted, from 0: the frames of a split. Raises CompressError unless the file has them."""
    numbers = to_integers(path, read_matlab_variable(path, key), key)
    if len(numbers) == 0 or numbers.min() < 1 or numbers.max() > count or len(set(numbers)) < len(numbers):
        raise CompressError(
            f"{path}: {key}: found {len(numbers)} frames, expected different numbers from 1 to {count}; download "
            f"{SOURCES[SPLITS_FILE]}."
        )
    return np.sort(numbers) - 1


def build_class_table(paths: dict[str, Path], labels: list[str], classes: int) -> tuple[np.ndarray, list[str]]:
    """(uint8 [labels + 1]: the class of each label, class names)."""
    path = paths[MAPPING_40_FILE]
    to_40 = to_integers(path, read_matlab_variable(path, "mapClass"), "mapClass")
    names = to_strings(path, read_matlab_variable(path, "className"))
    if not labels or len(to_40) != len(labels) or len(names) != 40 or to_40.min() < 0 or to_40.max() > 40:
        raise CompressError(
            f"{path}: found {len(to_40)} labels mapped to {len(names)} classes, expected the {len(labels)} of "
            f"{FRAMES_FILE} mapped to 40; download {SOURCES[MAPPING_40_FILE]}."
        )
    for name in CHECKED_CLASSES:
        if name in labels and name in names and to_40[labels.index(name)] != names.index(name) + 1:
            raise CompressError(f"{path}: found another class for {name}, expected the mapping for {FRAMES_FILE}.")
    table = np.full(len(labels) + 1, IGNORE_INDEX, dtype=np.uint8)
    table[1:] = np.where(to_40 > 0, to_40 - 1, IGNORE_INDEX)
    if classes == 40:
        return table, names
    fewer = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    fewer[:40] = np.array(read_13_mapping(paths.get(MAPPING_13_FILE))) - 1
    return fewer[table], CLASSES


def read_13_mapping(path: Path | None) -> list[int]:
    """The class, from 1 to 13, of each of the 40: from the file if it exists."""
    if path is None:
        return list(CLASS_OF_40_IN_13)
    mapping = read_matlab_variable(path, "classMapping13")
    if mapping.dtype.names is None or "labels13" not in mapping.dtype.names or mapping.size != 1:
        raise CompressError(
            f"{path}: classMapping13: expected a struct with labels13; remove it, the mapping is built in."
        )
    numbers = to_integers(path, mapping["labels13"].item(), "labels13")
    if len(numbers) != 40 or numbers.min() < 1 or numbers.max() > 13:
        raise CompressError(f"{path}: labels13: expected 40 classes from 1 to 13; remove it, the mapping is built in.")
    return numbers.tolist()


def read_matlab_variable(path: Path, key: str) -> np.ndarray:
    """Read a variable of a MATLAB 5 file. Raises CompressError if there is none."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        check_matlab_size(path)
        content = loadmat(path, variable_names=[key])
    except (*DECODE_ERRORS, MatReadError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CompressError(f"{path}: not a complete MATLAB file ({reason}); download it again.") from error
    if key not in content:
        raise CompressError(f"{path}: found no {key}, expected {path.name} of NYUv2; download it again.")
    return np.asarray(content[key])


def check_matlab_size(path: Path) -> None:
    """Raise ValueError for a MATLAB 5 file that could fill the memory when it is unpacked."""
    if path.stat().st_size > MAX_MATLAB:
        raise ValueError(f"found {path.stat().st_size:,} bytes, expected at most {MAX_MATLAB:,}")


def to_integers(path: Path, values: np.ndarray, key: str) -> np.ndarray:
    """int64 [n] of a row or column of integers of any type."""
    flat = np.asarray(values).ravel()
    if flat.dtype.kind not in "iuf" or not np.isfinite(flat).all() or not np.array_equal(flat, np.floor(flat)):
        raise CompressError(f"{path}: {key}: found {flat.dtype} values, expected whole numbers; download it again.")
    return flat.astype(np.int64)


def to_strings(path: Path, cells: np.ndarray) -> list[str]:
    """The strings of a cell array."""
    found = [cell.item() if isinstance(cell, np.ndarray) and cell.size == 1 else "" for cell in cells.ravel()]
    if not all(isinstance(name, str) and name for name in found):
        raise CompressError(f"{path}: className: expected a cell array of names; download it again.")
    return found
