"""A folder of pictures and their masks: `images/` beside `masks/`, matched by name."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from compress.data.folders import by_split, folder_images, stamp, walk
from compress.data.images import (
    BROKEN,
    IGNORE,
    Images,
    extensions,
    formats,
    quiet,
    refuse_devices,
    upright_size,
    within_limit,
)
from compress.errors import CompressError, UsageError

NAMES = "classes.txt"
#: Pillow stretches grey of 2 and 4 bits to 0-255: by how much
STRETCHED = {"L;2": 85, "L;4": 17}


def is_pairs(folder: Path) -> bool:
    """Whether `folder`, or its part `train`, holds `images` and `masks`."""
    return any((home / "images").is_dir() and (home / "masks").is_dir() for home in (folder, folder / "train"))


def pair_images(folder: Path, *, split: str, labelled: bool) -> Images:
    """The pictures of `folder`, with their masks if `labelled`: `images/` and `masks/`, each or both by split.

    A mask is a PNG of class numbers, or of palette colours whose numbers they are, 255 where nobody judges. Names of
    the classes are the lines of `classes.txt`. Raises UsageError where a picture or a mask is alone, CompressError for
    a mask that is as large as another picture, or that holds no class numbers.
    """
    home = at_split(folder, split, labelled=labelled)
    if not labelled and not (home / "images").is_dir():
        return folder_images(home)
    top = at_split(home / "images", split, labelled=labelled)
    images = replace(folder_images(top), name=str(folder))
    if not labelled:
        return images
    if not (home / "masks").is_dir():
        raise UsageError(f"{home}: has no folder masks beside images; expected a PNG in it for each image.")
    below = at_split(home / "masks", split, labelled=True)
    paths = matched(top, [Path(item) for item in images.items], below)
    for item, path in zip(images.items, paths, strict=True):
        check(Path(item), path)
    identity = f"{images.identity} {stamp(below, paths)}"
    return replace(images, identity=identity, class_names=class_names(folder), masks=lambda i: index_mask(paths[i]))


def at_split(folder: Path, split: str, *, labelled: bool) -> Path:
    """The part of `folder` for `split`. Raises UsageError rather than measure on what was trained on."""
    found = by_split(folder, split)
    if found != folder or not (folder / "train").is_dir():
        return found
    if labelled:
        raise UsageError(
            f"{folder}: has a folder train, but none to measure on; expected val, or give --val other data."
        )
    return folder / "train"


def matched(top: Path, images: list[Path], below: Path) -> list[Path]:
    """The mask of each image, the same name below `below`. Raises UsageError where one of a pair is missing."""
    masks = {key(path, below): path for path in walk(below) if path.suffix.lower() in extensions()}
    wrong = sorted(path for path in masks.values() if path.suffix.lower() != ".png")
    if wrong:
        raise UsageError(f"{wrong[0]}: a mask must be a PNG file, which keeps class numbers as they are.")
    keys = [key(path, top) for path in images]
    name, times = Counter(keys).most_common(1)[0]
    if times > 1:
        raise UsageError(f"{top / name}: {times} pictures of this name, and one mask for them; rename them.")
    alone = [image for image, name in zip(images, keys, strict=True) if name not in masks]
    if alone:
        expected = below / f"{key(alone[0], top)}.png"
        raise UsageError(f"{alone[0]}: has no mask{among(len(alone), len(images))}; expected {expected}.")
    lost = [masks[name] for name in sorted(masks.keys() - set(keys))]
    if lost:
        raise UsageError(f"{lost[0]}: a mask without its image{among(len(lost), len(masks))}; expected one in {top}.")
    return [masks[name] for name in keys]


def key(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def among(some: int, every: int) -> str:
    return f" ({some} of {every})" if some > 1 else ""


def check(image: Path, mask: Path) -> None:
    """Refuse, by their headers, a mask that is no label map or has not the size of its image.

    What cannot be opened is left to the reading, which names it and goes on.
    """
    with quiet(), contextlib.suppress(Image.DecompressionBombError, *BROKEN):
        with Image.open(mask, formats=("PNG",)) as file:
            refuse_colours(mask, file)
            size = file.size
        with Image.open(image, formats=formats()) as file:
            expected = upright_size(file)
        if size != expected:
            raise CompressError(
                f"{mask}: {size[0]}x{size[1]} pixels, but its image {image.name} has {expected[0]}x{expected[1]}; "
                f"expected the same."
            )


def refuse_colours(path: Path, mask: Image.Image) -> None:
    if mask.mode not in ("1", "L", "P"):
        found = "16 bits a pixel" if mask.mode.startswith("I") else f"colours (mode {mask.mode})"
        raise CompressError(
            f"{path}: found {found}, expected one class number a pixel: a PNG of 8-bit grey, or with a palette."
        )


def index_mask(path: Path) -> np.ndarray:
    """uint8 [h, w]: the class numbers of a PNG as they are in the file. Raises CompressError for colours or 16 bits."""
    refuse_devices(path)
    with Image.open(path, formats=("PNG",)) as image:
        refuse_colours(path, image)
        step = STRETCHED.get(str(image.tile[0][3]), 1) if image.tile else 1
        return np.asarray(within_limit(image)).astype(np.uint8) // step


def class_names(folder: Path) -> list[str] | None:
    """The lines of `classes.txt`; None where there is none. Raises UsageError unless they are different names."""
    path = folder / NAMES
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").strip().splitlines()]
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text ({error}); expected the name of a class a line.") from error
    if not names or not all(names) or len(set(names)) < len(names) or len(names) > IGNORE:
        raise UsageError(f"{path}: found {len(names)} lines, expected up to {IGNORE} different names, one a line.")
    return names
