"""A folder of images, at any depth."""

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
    DECODE_ERRORS,
    IGNORE_INDEX,
    ImageSet,
    check_pixel_limit,
    oriented_size,
    readable_extensions,
    readable_formats,
    reject_special_files,
    silence_warnings,
)
from compress.errors import CompressError, UsageError


def open_folder(folder: Path, *, split: str = "train", labeled: bool = False) -> ImageSet:
    """The images below `folder`, in natural order; with `labeled`, each top folder is a class.

    A folder that holds `train` and `val` (or `test`) folders is taken by its split. Raises UsageError without images,
    CompressError where a folder below cannot be listed.
    """
    folder = split_dir(folder, split)
    known = readable_extensions()
    found = [path for path in list_files(folder) if path.suffix.lower() in known]
    paths = sorted(found, key=lambda path: natural_sort_key(path.relative_to(folder)))
    if not paths:
        raise UsageError(f"{folder}: no images in this folder or below; expected files such as .jpg or .png.")
    labels, names = label_by_folder(folder, paths) if labeled else (None, None)
    items = [str(path) for path in paths]
    return ImageSet(str(folder), items, lambda i: paths[i], hash_file_stats(folder, paths), labels, names)


def hash_file_stats(folder: Path, paths: list[Path]) -> str:
    """A hash of the files' names below `folder`, sizes and dates."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            facts = path.stat()
        except OSError:
            continue  # a link to nowhere: reading it will say so
        line = f"{path.relative_to(folder)} {facts.st_size} {facts.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def split_dir(folder: Path, split: str) -> Path:
    if not (folder / "train").is_dir():
        return folder
    names = ["train"] if split == "train" else [split, "val", "valid", "validation", "test"]
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def list_files(folder: Path) -> list[Path]:
    """Every file below, following links but never in a circle; hidden files and folders are left out."""
    found: list[Path] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=raise_unlistable):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here) / name for name in files if not name.startswith(".")]
    return found


def raise_unlistable(error: OSError) -> None:
    """A part of the data would be missing without a word."""
    raise CompressError(
        f"{error.filename}: this folder cannot be listed ({error.strerror}); allow it, or choose another folder."
    ) from error


def natural_sort_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """A sorting key that puts img2 before img10; where two names differ in case or zeros only, the name decides."""
    parts = re.split(r"(\d+)", str(path).lower())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts], str(path)


def label_by_folder(folder: Path, paths: list[Path]) -> tuple[np.ndarray | None, list[str] | None]:
    """A label a path by the first folder below `folder`; None where images lie in `folder` itself."""
    tops = [path.relative_to(folder).parts for path in paths]
    if any(len(parts) < 2 for parts in tops):
        return None, None
    names = sort_class_names({parts[0] for parts in tops})
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[parts[0]] for parts in tops], dtype=np.int64), names


CLASSES_FILE = "classes.txt"
#: Pillow stretches grey of 2 and 4 bits to 0-255: by how much
GRAY_SCALES = {"L;2": 85, "L;4": 17}


def is_mask_folder(folder: Path) -> bool:
    """Whether `folder`, or its part `train`, holds `images` and `masks`."""
    return any((home / "images").is_dir() and (home / "masks").is_dir() for home in (folder, folder / "train"))


def open_mask_folder(folder: Path, *, split: str, labeled: bool) -> ImageSet:
    """The pictures of `folder`, with their masks if `labeled`: `images/` and `masks/`, each or both by split.

    A mask is a PNG of class numbers, or of palette colours whose numbers they are, 255 where nobody judges. Names of
    the classes are the lines of `classes.txt`. Raises UsageError where a picture or a mask is alone, CompressError for
    a mask that is as large as another picture, or that holds no class numbers.
    """
    home = require_split_dir(folder, split, labeled=labeled)
    if not labeled and not (home / "images").is_dir():
        return open_folder(home)
    top = require_split_dir(home / "images", split, labeled=labeled)
    images = replace(open_folder(top), name=str(folder))
    if not labeled:
        return images
    if not (home / "masks").is_dir():
        raise UsageError(f"{home}: has no folder masks beside images; expected a PNG in it for each image.")
    below = require_split_dir(home / "masks", split, labeled=True)
    paths = match_masks(top, [Path(item) for item in images.names], below)
    for item, path in zip(images.names, paths, strict=True):
        check_mask_header(Path(item), path)
    identity = f"{images.identity} {hash_file_stats(below, paths)}"
    return replace(
        images, identity=identity, class_names=read_class_names(folder), masks=lambda i: read_index_mask(paths[i])
    )


def require_split_dir(folder: Path, split: str, *, labeled: bool) -> Path:
    """The part of `folder` for `split`. Raises UsageError rather than measure on what was trained on."""
    found = split_dir(folder, split)
    if found != folder or not (folder / "train").is_dir():
        return found
    if labeled:
        raise UsageError(
            f"{folder}: has a folder train, but none to measure on; expected val, or give --val other data."
        )
    return folder / "train"


def match_masks(top: Path, images: list[Path], below: Path) -> list[Path]:
    """The mask of each image, the same name below `below`. Raises UsageError where one of a pair is missing."""
    masks = {
        relative_stem(path, below): path for path in list_files(below) if path.suffix.lower() in readable_extensions()
    }
    wrong = sorted(path for path in masks.values() if path.suffix.lower() != ".png")
    if wrong:
        raise UsageError(f"{wrong[0]}: a mask must be a PNG file, which keeps class numbers as they are.")
    keys = [relative_stem(path, top) for path in images]
    name, times = Counter(keys).most_common(1)[0]
    if times > 1:
        raise UsageError(f"{top / name}: {times} pictures of this name, and one mask for them; rename them.")
    alone = [image for image, name in zip(images, keys, strict=True) if name not in masks]
    if alone:
        expected = below / f"{relative_stem(alone[0], top)}.png"
        raise UsageError(f"{alone[0]}: has no mask{format_share(len(alone), len(images))}; expected {expected}.")
    lost = [masks[name] for name in sorted(masks.keys() - set(keys))]
    if lost:
        raise UsageError(
            f"{lost[0]}: a mask without its image{format_share(len(lost), len(masks))}; expected one in {top}."
        )
    return [masks[name] for name in keys]


def relative_stem(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def format_share(some: int, every: int) -> str:
    return f" ({some} of {every})" if some > 1 else ""


def check_mask_header(image: Path, mask: Path) -> None:
    """Refuse, by their headers, a mask that is no label map or has not the size of its image.

    What cannot be opened is left to the reading, which names it and goes on.
    """
    with silence_warnings(), contextlib.suppress(Image.DecompressionBombError, *DECODE_ERRORS):
        with Image.open(mask, formats=("PNG",)) as file:
            check_mask_mode(mask, file)
            size = file.size
        with Image.open(image, formats=readable_formats()) as file:
            expected = oriented_size(file)
        if size != expected:
            raise CompressError(
                f"{mask}: {size[0]}x{size[1]} pixels, but its image {image.name} has {expected[0]}x{expected[1]}; "
                f"expected the same."
            )


def check_mask_mode(path: Path, mask: Image.Image) -> None:
    if mask.mode not in ("1", "L", "P"):
        found = "16 bits a pixel" if mask.mode.startswith("I") else f"colours (mode {mask.mode})"
        raise CompressError(
            f"{path}: found {found}, expected one class number a pixel: a PNG of 8-bit grey, or with a palette."
        )


def read_index_mask(path: Path) -> np.ndarray:
    """uint8 [h, w]: the class numbers of a PNG as they are in the file. Raises CompressError for colours or 16 bits."""
    reject_special_files(path)
    with Image.open(path, formats=("PNG",)) as image:
        check_mask_mode(path, image)
        step = GRAY_SCALES.get(str(image.tile[0][3]), 1) if image.tile else 1
        return np.asarray(check_pixel_limit(image)).astype(np.uint8) // step


def read_class_names(folder: Path) -> list[str] | None:
    """The lines of `classes.txt`; None where there is none. Raises UsageError unless they are different names."""
    path = folder / CLASSES_FILE
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").strip().splitlines()]
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text ({error}); expected the name of a class a line.") from error
    if not names or not all(names) or len(set(names)) < len(names) or len(names) > IGNORE_INDEX:
        raise UsageError(
            f"{path}: found {len(names)} lines, expected up to {IGNORE_INDEX} different names, one a line."
        )
    return names


# # MERGED DOC """A folder of pictures and their masks: `images/` beside `masks/`, matched by name."""
#
