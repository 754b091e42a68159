"""NYUv2 as it is distributed: one MATLAB file of 1,449 frames and the official split, read frame by frame.

`nyu_depth_v2_labeled.mat` is HDF5, in which MATLAB's axes appear reversed; its labels go from 0, nobody's pixels, to
894. `classMapping40.mat` (Gupta et al., CVPR 2013) makes 40 classes of them, and those make the paper's 13 (Couprie et
al., ICLR 2013).
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compress.data.dataset import DECODE_ERRORS, IGNORE_INDEX, ImageSet
from compress.errors import CompressError, UsageError

FRAMES, SPLITS, TO_40, TO_13 = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat", "class13Mapping.mat"
#: where each is officially had
SOURCES = {
    FRAMES: "the labeled dataset of cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
    SPLITS: "horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat",
    TO_40: "github.com/ankurhanda/nyuv2-meta-data",
}
#: the class, counted from 1, of each of the 40 in the 13: what `class13Mapping.mat` holds
CLASS_OF_40_IN_13 = (
    12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5,
    7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7,
)  # fmt: skip
CLASSES = [
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv", "wall",
    "window",
]  # fmt: skip
#: classes of the 40 that are labels of the file by the same name: they tell whether a mapping is made for it
CHECKED_CLASSES = ("wall", "floor", "chair", "ceiling")
#: bytes of chunks kept unpacked a dataset, for frames that share one
CHUNK_CACHE_BYTES = 64 << 20

NYU: dict[str, tuple[int, str]] = {
    "nyuv2": (13, "NYUv2, indoor scenes for segmentation, 795 images of 640x480, 13 classes (extra `nyu`)"),
    "nyuv2-40": (40, "NYUv2 for segmentation with 40 classes (extra `nyu`)"),
}


def open_nyu(name: str, root: Path, *, split: str, labeled: bool) -> ImageSet:
    """The frames of a part of NYUv2, with their masks if `labeled`, from `root` or its folder `nyuv2`.

    Raises CompressError where a file is missing or is not what it should be, UsageError without the extra.
    """
    places = locate_files(name, root, (FRAMES, SPLITS, TO_40) if labeled else (FRAMES, SPLITS))
    frames = FrameReader(places[FRAMES])
    count = frames.check_datasets(labeled=labeled)
    chosen = read_split(places[SPLITS], "trainNdxs" if split == "train" else "testNdxs", count)
    facts = places[FRAMES].stat()
    identity = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}".encode() + chosen.tobytes())
    items = [f"{name}/{number + 1:04}" for number in chosen]

    def opened(i: int) -> Image.Image:
        return Image.fromarray(frames.read_frame("images", int(chosen[i])).transpose(2, 1, 0))

    if not labeled:
        return ImageSet(name, items, opened, identity.hexdigest())
    table, names = build_class_table(places, frames.label_names(), NYU[name][0])
    identity.update(table.tobytes())

    def mask(i: int) -> np.ndarray:
        labels = frames.read_frame("labels", int(chosen[i])).T
        if labels.max(initial=0) >= len(table):
            raise CompressError(
                f"{places[FRAMES]}: frame {chosen[i] + 1} has the label {labels.max()}; expected 0 to {len(table) - 1}."
            )
        return table[labels]

    return ImageSet(name, items, opened, identity.hexdigest(), class_names=names, open_mask=mask)


def locate_files(name: str, root: Path, wanted: tuple[str, ...]) -> dict[str, Path]:
    """Where each file lies, the mapping to 13 too if it is there. Raises CompressError naming what is missing."""
    folders = [root, root / "nyuv2"]
    places = {file: folder / file for file in (*wanted, TO_13) for folder in folders[::-1] if (folder / file).is_file()}
    missing = [file for file in wanted if file not in places]
    if missing:
        had = "; ".join(f"{file} is had from {SOURCES[file]}" for file in missing)
        raise CompressError(
            f"{name}: {' and '.join(missing)} not found in {root} or {folders[1]}: {had}; put what is missing there, "
            f"or name another place with --data-root."
        )
    return places


class FrameReader:
    """The MATLAB file, read a frame at a time; each thread has a handle of its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.own = path, threading.local()

    def open_file(self) -> Any:
        """The thread's h5py file. Raises UsageError without h5py, CompressError where it cannot be opened."""
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
                why = "cut short" if "truncated" in str(error) else " ".join(str(error).split())[:120]
                raise CompressError(
                    f"{self.path}: not a whole MATLAB 7.3 file ({why}); fetch it again from {SOURCES[FRAMES]}."
                ) from error
        return self.own.file

    def read_frame(self, name: str, i: int) -> np.ndarray:
        """Frame `i` of a dataset: uint8 [3, w, h] of `images`, uint16 [w, h] of `labels`. Raises OSError if damaged."""
        file = self.open_file()
        if name not in self.own.data:
            self.own.data[name] = file[name]  # held open, so that its unpacked chunks are kept
        return self.own.data[name][i]

    def check_datasets(self, *, labeled: bool) -> int:
        """How many frames there are. Raises CompressError unless the datasets have their shapes and types."""
        images = self.dataset_info("images")
        if images is None or len(images[0]) != 4 or images[0][1] != 3 or images[1] != "uint8":
            raise self.format_error("images", images, "uint8 [frames, 3, width, height]")
        n, _, *size = images[0]
        labels = self.dataset_info("labels")
        if labeled and (labels is None or labels[0] != (n, *size) or labels[1] not in ("uint8", "uint16")):
            raise self.format_error("labels", labels, f"uint16 {[n, *size]}")
        return n

    def dataset_info(self, name: str) -> tuple[tuple[int, ...], str] | None:
        """(shape, type) of a dataset; None where there is none of that name."""
        data = self.open_file().get(name)
        return (tuple(data.shape), str(data.dtype)) if hasattr(data, "shape") else None

    def format_error(self, name: str, facts: tuple[tuple[int, ...], str] | None, expected: str) -> CompressError:
        seen = "nothing of that name" if facts is None else f"{facts[1]} {list(facts[0])}"
        return CompressError(
            f"{self.path}: {name}: found {seen}, expected {expected}; is this the file of {SOURCES[FRAMES]}?"
        )

    def label_names(self) -> list[str]:
        """What label 1 is called, label 2, and so on: a cell array, so references to arrays of characters."""
        import h5py

        file = self.open_file()
        cells = file.get("names")
        if not isinstance(cells, h5py.Dataset) or h5py.check_ref_dtype(cells.dtype) is not h5py.Reference:
            raise self.format_error("names", self.dataset_info("names"), "a cell array of names")
        try:
            return ["".join(map(chr, file[cell][()].flat)) for cell in cells[()].flat]
        except DECODE_ERRORS as error:
            raise CompressError(f"{self.path}: names: cannot be read ({error}); fetch the file again.") from error


def read_split(path: Path, key: str, count: int) -> np.ndarray:
    """int64 [n], sorted, counted from 0: the frames of a part. Raises CompressError unless the file has them."""
    numbers = to_integers(path, read_matlab_variable(path, key), key)
    if len(numbers) == 0 or numbers.min() < 1 or numbers.max() > count or len(set(numbers)) < len(numbers):
        raise CompressError(
            f"{path}: {key}: found {len(numbers)} frames, expected different numbers from 1 to {count}; fetch it from "
            f"{SOURCES[SPLITS]}."
        )
    return np.sort(numbers) - 1


def build_class_table(places: dict[str, Path], labels: list[str], classes: int) -> tuple[np.ndarray, list[str]]:
    """(uint8 [labels + 1]: the class of each label, the classes' names)."""
    path = places[TO_40]
    to_40 = to_integers(path, read_matlab_variable(path, "mapClass"), "mapClass")
    names = to_strings(path, read_matlab_variable(path, "className"))
    if len(to_40) != len(labels) or len(names) != 40 or to_40.min() < 0 or to_40.max() > 40:
        raise CompressError(
            f"{path}: found {len(to_40)} labels mapped to {len(names)} classes, expected the {len(labels)} of "
            f"{FRAMES} mapped to 40; fetch it from {SOURCES[TO_40]}."
        )
    for name in CHECKED_CLASSES:
        if name in labels and name in names and to_40[labels.index(name)] != names.index(name) + 1:
            raise CompressError(f"{path}: maps {name} to another class; it is not the mapping for {FRAMES}.")
    table = np.full(len(labels) + 1, IGNORE_INDEX, dtype=np.uint8)
    table[1:] = np.where(to_40 > 0, to_40 - 1, IGNORE_INDEX)
    if classes == 40:
        return table, names
    fewer = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    fewer[:40] = np.array(read_13_mapping(places.get(TO_13))) - 1
    return fewer[table], CLASSES


def read_13_mapping(path: Path | None) -> list[int]:
    """The class, counted from 1, of each of the 40: as the file says if there is one."""
    if path is None:
        return list(CLASS_OF_40_IN_13)
    found = read_matlab_variable(path, "classMapping13")
    if found.dtype.names is None or "labels13" not in found.dtype.names or found.size != 1:
        raise CompressError(
            f"{path}: classMapping13: expected a struct with labels13; remove it, the mapping is known."
        )
    numbers = to_integers(path, found["labels13"].item(), "labels13")
    if len(numbers) != 40 or numbers.min() < 1 or numbers.max() > 13:
        raise CompressError(f"{path}: labels13: expected 40 classes from 1 to 13; remove it, the mapping is known.")
    return numbers.tolist()


def read_matlab_variable(path: Path, key: str) -> np.ndarray:
    """A variable of a MATLAB file of version 5. Raises CompressError."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=[key])
    except (*DECODE_ERRORS, MatReadError) as error:
        why = " ".join(str(error).split())[:120]
        raise CompressError(f"{path}: not a whole MATLAB file ({why}); fetch it again.") from error
    if key not in content:
        raise CompressError(f"{path}: holds no {key}; is this {path.name} of NYUv2? Fetch it again.")
    return content[key]


def to_integers(path: Path, values: np.ndarray, key: str) -> np.ndarray:
    """int64 [n] of a row or column of whole numbers, whatever type MATLAB gave them."""
    flat = np.asarray(values).ravel()
    if flat.dtype.kind not in "iuf" or not np.array_equal(flat, np.floor(flat)):
        raise CompressError(f"{path}: {key}: found {flat.dtype} values, expected whole numbers; fetch it again.")
    return flat.astype(np.int64)


def to_strings(path: Path, cells: np.ndarray) -> list[str]:
    """The strings of a cell array."""
    found = [cell.item() if getattr(cell, "size", 0) == 1 else "" for cell in cells.ravel()]
    if not all(isinstance(name, str) and name for name in found):
        raise CompressError(f"{path}: className: expected a cell array of names; fetch it again.")
    return found
