"""Synthetic images on disk: lossless, browsable, and readable as an image folder."""

from __future__ import annotations

import hashlib
import io
import re
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from compress.engine.accelerator import Accelerator
from compress.engine.augmentation import random_crop_flip
from compress.engine.logging import GRID_COLUMNS, save_image_grid
from compress.errors import CompressError
from compress.files import fsync_dir, make_directory, sync_file, write_error

SHEET_CLASSES = 100  #: maximum number of classes on the contact sheet
SHEET_PIXELS = 64  #: maximum image side on the contact sheet
#: exceptions that Pillow raises for damaged PNG files
PNG_ERRORS = (OSError, SyntaxError, ValueError, EOFError, zlib.error)


class ImagePool:
    """A growing set of uint8 images with class labels, stored as `CLASS/RANK-NUMBER.png`.

    The folder is a labeled image-folder data set. Checkpoints contain only the labels and a hash of the images.
    Memory: 3 * h * w bytes per image. Every process has its own part.

    Args:
        folder: The folder.
        accelerator: Ranks of the run, and the device of samples.
        class_names: Names of all classes.

    Attributes:
        capacity: Maximum number of images of this process; further images are dropped. None: no limit.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, class_names: list[str]) -> None:
        width = len(str(len(class_names) - 1))
        self.folder, self.accelerator = folder, accelerator
        self.class_dirs = [f"{c:0{width}d} {slugify(name)}".strip() for c, name in enumerate(class_names)]
        self.capacity: int | None = None
        self.labels: Int64[Tensor, " n"] = torch.empty(0, dtype=torch.int64)
        self._buffer: UInt8[Tensor, "m 3 h w"] | None = None  # grows by doubling; the first `len(self)` are in use
        self._hash = hashlib.sha256()
        self._unsynced: list[Path] = []

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pixels(self) -> UInt8[Tensor, "n 3 h w"]:
        assert self._buffer is not None, "the pool is empty"
        return self._buffer[: len(self)]

    def add(self, images: Float[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"]) -> None:
        """Add images in [0, 1], rounded to 8 bits, to memory and disk."""
        if not len(self):
            self.remove_images_from(0)
        if images.is_meta:  # a dry run without numbers
            images, labels = torch.zeros(images.shape), torch.zeros(labels.shape, dtype=torch.int64)
        free = None if self.capacity is None else max(0, self.capacity - len(self))
        images, labels = images[:free].detach(), labels[:free].cpu()
        pixels = (images.float().clamp(0, 1) * 255).round().byte().cpu().contiguous()
        for i, (image, label) in enumerate(zip(pixels.permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True)):
            self._write(self.image_path(len(self) + i, label), image)
        self._append(pixels, labels)

    def _write(self, path: Path, image: np.ndarray) -> None:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
        try:
            path.write_bytes(buffer.getvalue())
        except OSError as error:
            raise write_error(path, error, buffer.tell()) from error
        self._unsynced.append(path)

    def _append(self, pixels: Tensor, labels: Tensor) -> None:
        old, new = len(self), len(self) + len(labels)
        if self._buffer is None or new > len(self._buffer):
            buffer = torch.empty(max(new, 2 * old), *pixels.shape[1:], dtype=torch.uint8)
            if self._buffer is not None:
                buffer[:old] = self.pixels
            self._buffer = buffer
        self._buffer[old:new] = pixels
        self.labels = torch.cat([self.labels, labels])
        self._hash.update(pixels.numpy().tobytes())

    def sample(self, n: int) -> Float[Tensor, "n 3 h w"]:
        """Draw `n` images with replacement, each randomly shifted and flipped, in [0, 1] on the device."""
        return random_crop_flip(self.accelerator.to_float_images(self.pixels[torch.randint(len(self), (n,))]))

    def image_path(self, number: int, label: int) -> Path:
        """Return the file of image `number` of this process."""
        return self.folder / self.class_dirs[label] / f"{self.accelerator.rank}-{number:07d}.png"

    def remove_images_from(self, number: int) -> None:
        """Remove this process's files from `number` on, which belong to undone steps or an earlier run.

        The first process also removes the files of ranks that no longer exist.
        """
        try:
            for name in self.class_dirs:
                make_directory(self.folder / name)
            for path in self.folder.glob("*/*-*.png"):
                if self._is_stale(path.stem, number):
                    path.unlink()
        except OSError as error:
            raise write_error(self.folder, error) from error

    def _is_stale(self, stem: str, first: int) -> bool:
        match = re.fullmatch(r"(\d+)-(\d{7,})", stem)
        if match is None:
            return False  # not a file of a pool
        rank, number = map(int, match.groups())
        is_own = rank == self.accelerator.rank and number >= first
        return is_own or (self.accelerator.rank == 0 and rank >= self.accelerator.world_size)

    def save_contact_sheet(self, path: Path) -> None:
        """Save the newest images of each class, one row per class, for up to 100 classes."""
        if not len(self):
            return
        labels = np.linspace(0, len(self.class_dirs) - 1, min(SHEET_CLASSES, len(self.class_dirs))).astype(int)
        rows = []
        for label in labels.tolist():
            newest = self.pixels[(self.labels == label).nonzero()[-GRID_COLUMNS:, 0]]
            rows.append(torch.cat([newest, newest.new_full((GRID_COLUMNS - len(newest), *newest.shape[1:]), 255)]))
        images = torch.cat(rows).float() / 255
        factor = max(images.shape[2:]) / SHEET_PIXELS
        if factor > 1:
            images = F.interpolate(images, scale_factor=1 / factor, mode="area")
        save_image_grid(path, [images])

    def state_dict(self) -> dict[str, object]:
        """Return labels and hash of all images; the files are flushed to disk first.

        Raises:
            WriteError: The disk is full or fails.
        """
        try:
            for path in self._unsynced:
                sync_file(path)
            for folder in {folder for path in self._unsynced for folder in path.parents[:3]}:
                fsync_dir(folder)
        except OSError as error:
            raise write_error(self.folder, error) from error
        self._unsynced = []
        return {"labels": self.labels, "sha256": self._hash.hexdigest()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Read the images of a checkpoint.

        Raises:
            CompressError: If a file is missing or has changed.
        """
        labels = state["labels"]
        assert isinstance(labels, Tensor)
        self._buffer, self.labels, self._hash, self._unsynced = None, labels[:0], hashlib.sha256(), []
        pixels: Tensor | None = None
        for i, label in enumerate(labels.tolist()):
            image = torch.from_numpy(self._read(self.image_path(i, label))).permute(2, 0, 1)
            pixels = torch.empty(len(labels), *image.shape, dtype=torch.uint8) if pixels is None else pixels
            if image.shape != pixels.shape[1:]:
                raise self._changed_error()
            pixels[i] = image
        if pixels is not None:
            self._append(pixels, labels)
        if self._hash.hexdigest() != state["sha256"]:
            raise self._changed_error()
        self.remove_images_from(len(labels))

    def _read(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path, formats=["PNG"]) as image:
                return np.array(image.convert("RGB"))
        except PNG_ERRORS as error:
            raise CompressError(
                f"{path}: this image of the pool is missing or damaged, so the run cannot resume; start again with "
                "--fresh."
            ) from error

    def _changed_error(self) -> CompressError:
        return CompressError(
            f"{self.folder}: images of the pool have changed since the checkpoint, so the run cannot resume; start "
            "again with --fresh."
        )


def slugify(name: str) -> str:
    """Convert a class name to a part of a folder name."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name).strip("-")[:60]
