"""A folder of images, at any depth."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np

from compress.data.classes import ordered
from compress.data.images import Images, extensions
from compress.errors import CompressError, UsageError


def folder_images(folder: Path, *, split: str = "train", labelled: bool = False) -> Images:
    """The images below `folder`, in natural order; with `labelled`, each top folder is a class.

    A folder that holds `train` and `val` (or `test`) folders is taken by its split. Raises UsageError without images,
    CompressError where a folder below cannot be listed.
    """
    folder = by_split(folder, split)
    known = extensions()
    found = [path for path in walk(folder) if path.suffix.lower() in known]
    paths = sorted(found, key=lambda path: natural(path.relative_to(folder)))
    if not paths:
        raise UsageError(f"{folder}: no images in this folder or below; expected files such as .jpg or .png.")
    labels, names = class_folders(folder, paths) if labelled else (None, None)
    items = [str(path) for path in paths]
    return Images(str(folder), items, lambda i: paths[i], stamp(folder, paths), labels, names)


def stamp(folder: Path, paths: list[Path]) -> str:
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


def by_split(folder: Path, split: str) -> Path:
    if not (folder / "train").is_dir():
        return folder
    names = ["train"] if split == "train" else [split, "val", "valid", "validation", "test"]
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def walk(folder: Path) -> list[Path]:
    """Every file below, following links but never in a circle; hidden files and folders are left out."""
    found: list[Path] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here) / name for name in files if not name.startswith(".")]
    return found


def refuse(error: OSError) -> None:
    """A part of the data would be missing without a word."""
    raise CompressError(
        f"{error.filename}: this folder cannot be listed ({error.strerror}); allow it, or choose another folder."
    ) from error


def natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """A sorting key that puts img2 before img10; where two names differ in case or zeros only, the name decides."""
    parts = re.split(r"(\d+)", str(path).lower())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts], str(path)


def class_folders(folder: Path, paths: list[Path]) -> tuple[np.ndarray | None, list[str] | None]:
    """A label a path by the first folder below `folder`; None where images lie in `folder` itself."""
    tops = [path.relative_to(folder).parts for path in paths]
    if any(len(parts) < 2 for parts in tops):
        return None, None
    names = ordered({parts[0] for parts in tops})
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[parts[0]] for parts in tops], dtype=np.int64), names
