"""Directories of images at any depth, and pairs of `images/` and `masks/` matched by name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from compress.data.class_mapping import sort_class_names
from compress.data.dataset import (
    IGNORE_INDEX,
    READ_ERRORS,
    ImageSet,
    UnreadableImageError,
    open_image_file,
    oriented_size,
    readable_extensions,
    silence_warnings,
)
from compress.errors import CompressError, UsageError
from compress.files import require_regular_file


def open_folder(folder: Path, *, split: str = "train", labeled: bool = False) -> ImageSet:
    """Open the images below a directory, in natural order.

    Args:
        folder: The directory. If it contains `train` and `val` (or `test`), the one for `split` is used.
        split: "train" or "val".
        labeled: Use the subdirectories at the top as classes.

    Raises:
        UsageError: There are no images.
        CompressError: A subdirectory cannot be listed.
    """
    folder = split_dir(folder, split)
    known = readable_extensions()
    files = [path for path in list_files(folder) if path.suffix.lower() in known]
    paths = sorted(files, key=lambda path: natural_sort_key(path.relative_to(folder)))
    if not paths:
        raise UsageError(f"{folder}: found no images at any depth, expected files such as .jpg or .png.")
    labels, names = label_by_folder(folder, paths) if labeled else (None, None)
    items = [str(path) for path in paths]
    return ImageSet(str(folder), items, lambda i: paths[i], hash_file_stats(folder, paths), labels, names)


def hash_file_stats(folder: Path, paths: list[Path]) -> str:
    """Hash names, sizes and modification times of files below `folder`."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            facts = path.stat()
        except OSError:
            continue  # a broken link is reported when it is read
        line = f"{path.relative_to(folder)} {facts.st_size} {facts.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def split_dir(folder: Path, split: str) -> Path:
    if not (folder / "train").is_dir():
        return folder
    names = ["train"] if split == "train" else [split, "val", "valid", "validation", "test"]
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def list_files(folder: Path) -> list[Path]:
    """All files below a directory except hidden ones. Links are followed, each directory once."""
    paths: list[Path] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=raise_unlistable):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(here) / name for name in files if not name.startswith(".")]
    return paths


def raise_unlistable(error: OSError) -> None:
    """Do not skip part of the data silently."""
    raise CompressError(
        f"{error.filename}: this directory cannot be listed ({error.strerror}); change its permissions."
    ) from error


def natural_sort_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sort img2 before img10; the name decides between names that differ only in case or zeros."""
    parts = re.split(r"(\d+)", str(path).lower())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts], str(path)


def label_by_folder(folder: Path, paths: list[Path]) -> tuple[np.ndarray | None, list[str] | None]:
    """One label per path, by the first directory below `folder`; None if images lie in `folder` itself."""
    tops = [path.relative_to(folder).parts for path in paths]
    if any(len(parts) < 2 for parts in tops):
        return None, None
    folders = sort_class_names({parts[0] for parts in tops})
    number = {name: i for i, name in enumerate(folders)}
    return np.array([number[parts[0]] for parts in tops], dtype=np.int64), [escape_name(name) for name in folders]


def escape_name(name: str) -> str:
    """The name of a directory as text that every file can contain: bytes that are not UTF-8 become `\\xff`."""
    return os.fsencode(name).decode(errors="backslashreplace")


CLASSES_FILE = "classes.txt"
#: bytes of the longest list of class names: 255 names of several hundred characters
MAX_CLASSES_FILE = 1 << 18
#: Pillow scales gray values of 2 and 4 bits to 0-255; the factors
GRAY_SCALES = {"L;2": 85, "L;4": 17}


def is_mask_folder(folder: Path) -> bool:
    """Whether `folder`, or its subdirectory `train`, contains `images` and `masks`."""
    return any((home / "images").is_dir() and (home / "masks").is_dir() for home in (folder, folder / "train"))


def open_mask_folder(folder: Path, *, split: str, labeled: bool) -> ImageSet:
    """Open `images/` and, if `labeled`, `masks/` of a directory; the split is above or below them.

    A mask is a PNG of class numbers as gray values or palette indices, 255 where pixels are ignored. The lines of
    `classes.txt` are the class names.

    Raises:
        UsageError: An image or a mask has no partner.
        CompressError: A mask has another size than its image, or contains no class numbers.
    """
    home = require_split_dir(folder, split, labeled=labeled)
    if not labeled and not (home / "images").is_dir():
        return open_folder(home)
    top = require_split_dir(home / "images", split, labeled=labeled)
    images = replace(open_folder(top), name=str(folder))
    if not labeled:
        return images
    if not (home / "masks").is_dir():
        raise UsageError(f"{home}: found images but no masks, expected a directory masks with a PNG for each image.")
    below = require_split_dir(home / "masks", split, labeled=True)
    paths = match_masks(top, [Path(item) for item in images.names], below)
    for item, path in zip(images.names, paths, strict=True):
        check_mask_header(Path(item), path)
    identity = f"{images.identity} {hash_file_stats(below, paths)}"
    return replace(
        images, identity=identity, class_names=read_class_names(folder), open_mask=lambda i: read_index_mask(paths[i])
    )


def require_split_dir(folder: Path, split: str, *, labeled: bool) -> Path:
    """The subdirectory for `split`. Raises UsageError instead of evaluating on training images."""
    chosen = split_dir(folder, split)
    if chosen != folder or not (folder / "train").is_dir():
        return chosen
    if labeled:
        raise UsageError(f"{folder}: found train, but nothing to validate on; expected val, or give --val other data.")
    return folder / "train"


def match_masks(top: Path, images: list[Path], below: Path) -> list[Path]:
    """The mask of each image, with the same name below `below`. Raises UsageError for missing partners."""
    masks = {
        relative_stem(path, below): path for path in list_files(below) if path.suffix.lower() in readable_extensions()
    }
    wrong = sorted(path for path in masks.values() if path.suffix.lower() != ".png")
    if wrong:
        raise UsageError(f"{wrong[0]}: a mask must be a PNG, which keeps class numbers exactly.")
    keys = [relative_stem(path, top) for path in images]
    name, times = Counter(keys).most_common(1)[0]
    if times > 1:
        raise UsageError(f"{top / name}: {times} images of this name, expected one for its mask; rename them.")
    unmasked = [image for image, name in zip(images, keys, strict=True) if name not in masks]
    if unmasked:
        expected = below / f"{relative_stem(unmasked[0], top)}.png"
        raise UsageError(f"{unmasked[0]}: no mask{format_share(len(unmasked), len(images))}; expected {expected}.")
    extra = [masks[name] for name in sorted(masks.keys() - set(keys))]
    if extra:
        raise UsageError(
            f"{extra[0]}: a mask without image{format_share(len(extra), len(masks))}; expected one in {top}."
        )
    return [masks[name] for name in keys]


def relative_stem(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def format_share(some: int, every: int) -> str:
    return f" ({some} of {every})" if some > 1 else ""


def check_mask_header(image: Path, mask: Path) -> None:
    """Refuse a mask that is no label map or has another size than its image, from the headers of both.

    Files that cannot be opened are reported when they are decoded.
    """
    with silence_warnings(), contextlib.suppress(UnreadableImageError, *READ_ERRORS):
        with open_image_file(mask, ("PNG",)) as file:
            check_mask_mode(mask, file)
            size = file.size
        with open_image_file(image) as file:
            expected = oriented_size(file)
        if size != expected:
            raise CompressError(
                f"{mask}: {size[0]}x{size[1]} pixels, but its image {image.name} has {expected[0]}x{expected[1]}; "
                f"expected the same."
            )


def check_mask_mode(path: Path, mask: Image.Image) -> None:
    if mask.mode not in ("1", "L", "P"):
        found = "16 bits per pixel" if mask.mode.startswith("I") else f"colors (mode {mask.mode})"
        raise CompressError(
            f"{path}: found {found}, expected a class number per pixel: a grayscale PNG of 8 bits, or a palette."
        )


def read_index_mask(path: Path) -> np.ndarray:
    """uint8 [h, w]: the class numbers in a PNG, unscaled. Raises CompressError for colors or 16 bits."""
    with open_image_file(path, ("PNG",)) as image:
        check_mask_mode(path, image)
        step = GRAY_SCALES.get(str(image.tile[0][3]), 1) if image.tile else 1
        return np.asarray(image).astype(np.uint8) // step


def read_class_names(folder: Path) -> list[str] | None:
    """The lines of `classes.txt`; None if there is none. Raises UsageError unless they are different names."""
    path = folder / CLASSES_FILE
    if not path.exists():
        return None
    try:
        with open(require_regular_file(path), "rb") as file:
            content = file.read(MAX_CLASSES_FILE)
        names = [line.strip() for line in content.decode("utf-8-sig").strip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text ({error}); expected one class name per line.") from error
    if any(letter < " " or letter == "\x7f" for name in names for letter in name):
        raise UsageError(f"{path}: found a control character, expected one class name per line.")
    if not names or not all(names) or len(set(names)) < len(names) or len(names) > IGNORE_INDEX:
        raise UsageError(
            f"{path}: found {len(names)} lines, expected up to {IGNORE_INDEX} different names, one per line."
        )
    return names


#
