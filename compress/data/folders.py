"""Directories of images at any depth, and pairs of `images/` and `masks/` matched by name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from compress.data.class_mapping import sort_class_names
from compress.data.dataset import (
    IGNORE_INDEX,
    READ_ERRORS,
    UNREAD_ENDINGS,
    ImageSet,
    UnreadableImageError,
    count_endings,
    open_image_file,
    oriented_size,
    readable_extensions,
    silence_warnings,
)
from compress.data.decisions import read_labels_file
from compress.errors import CompressError, UsageError
from compress.files import require_regular_file
from compress.own_files import OWN_IMAGE, POOL, is_report, is_run_dir

#: names of subdirectories with parts of a data set, in lower case
SPLITS = ("train", "val", "valid", "validation", "test")
#: endings of files that are no pictures, whatever they begin with
OTHER_ENDINGS = frozenset((
    ".avi", ".cls", ".csv", ".gz", ".html", ".json", ".jsonl", ".mat", ".md", ".mp4", ".npy", ".npz", ".pkl", ".pt",
    ".pth", ".py", ".tar", ".tsv", ".txt", ".xml", ".yaml", ".yml", ".zip",
))  # fmt: skip
#: first bytes of JPEG, PNG, GIF, TIFF, WebP, and of HEIF and AVIF
PICTURE_HEADER = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\x00|MM\x00\*|RIFF....WEBP|....ftyp(hei|mif1|avi[fs])", re.DOTALL
)


def open_folder(folder: Path, *, split: str = "train", labeled: bool = False) -> ImageSet:
    """Open the images below a directory, in natural order.

    Args:
        folder: The directory. If it contains `train`, perhaps other SPLITS, and no other images, the one for `split` is
            used. Images that runs wrote below it are left out.
        split: "train" or "val".
        labeled: Use the labels in `labels.csv`, else the subdirectories at the top as classes.

    Raises:
        UsageError: There are no images.
        CompressError: A subdirectory cannot be listed.
    """
    if labeled:
        require_validation_split(folder, split)
    folder, notes = choose_split(folder, split)
    files = list_files(folder)
    known = readable_extensions()
    images = [path for path in files if path.suffix.lower() in known]
    paths = [path for path in images if not is_written_by_any_run(folder, path)]
    paths.sort(key=lambda path: natural_sort_key(path.relative_to(folder)))
    if len(paths) < len(images):
        notes.append(f"{folder}: left out {len(images) - len(paths)} images that runs of this package wrote")
    unread = count_unread_pictures(path for path in files if path.suffix.lower() not in known)
    if unread:
        notes.append(f"{folder}: {count_endings(unread)} look like pictures and are not read")
    if not paths:
        reason = "".join(f"; {note.removeprefix(f'{folder}: ')}" for note in notes)
        raise UsageError(f"{folder}: found no images at any depth{reason}, expected files such as .jpg or .png.")
    labels, names = label_images(folder, paths) if labeled else (None, None)
    items = [str(path) for path in paths]
    return ImageSet(
        str(folder), items, lambda i: paths[i], hash_file_stats(folder, paths), labels, names,
        has_class_numbers=os.path.basename(os.path.abspath(folder)) == POOL, notes=tuple(notes),
    )  # fmt: skip


def label_images(folder: Path, paths: list[Path]) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels and class names: from `labels.csv` if there is one, else by folder."""
    return read_labels_file(folder, paths) or label_by_folder(folder, paths)


def is_written_by_any_run(folder: Path, path: Path) -> bool:
    """Whether a run wrote the image `path` below `folder`; the folder itself may be one of a run, such as its pool."""
    parts = path.relative_to(folder).parts
    for i in range(max(0, len(parts) - 3), len(parts)):
        if OWN_IMAGE.fullmatch("/".join(parts[i:])) and is_known_run(folder.joinpath(*parts[:i])):
            return True
    return path.name == "compare.png" and is_report(path.with_suffix(".json"))


def count_unread_pictures(files: Iterable[Path]) -> Counter[str]:
    """Count by ending the files that look like pictures: those of other formats, and pictures with other endings."""
    counts = Counter[str]()
    for path in files:
        ending = path.suffix.lower()
        if ending in UNREAD_ENDINGS or (ending not in OTHER_ENDINGS and begins_like_picture(path)):
            counts[ending] += 1
    return counts


def begins_like_picture(path: Path) -> bool:
    try:
        with open(require_regular_file(path), "rb") as file:
            return PICTURE_HEADER.match(file.read(16)) is not None
    except (OSError, UsageError):
        return False


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


def choose_split(folder: Path, split: str) -> tuple[Path, list[str]]:
    """Return the subdirectory for `split`, or `folder` if it has none, and a sentence about the choice."""
    is_known_run.cache_clear()
    splits, other = find_splits(folder)
    if other is not None:
        return folder, [f"{folder}: train is no split but a folder like others, because {other} is beside it"]
    names = ["train"] if split == "train" else [split, "val", "valid", "validation", "test"]
    chosen = next((splits[name] for name in names if name in splits), None)
    if chosen is None:
        return folder, []
    return chosen, [
        f"{folder}: {chosen.name} is read, of the splits {', '.join(path.name for path in splits.values())}"
    ]


def find_splits(folder: Path) -> tuple[dict[str, Path], str | None]:
    """Return the splits of a directory by name, and what lies beside `train` so that it is no split; else None.

    Only images count: directories without any, and files of other kinds, may lie beside splits.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return {}, None  # reported when the directory is listed
    directories = {path.name.casefold(): path for path in entries if path.is_dir()}
    splits = {name: path for name, path in directories.items() if name in SPLITS}
    if "train" not in splits:
        return {}, None
    for path in entries:
        if path in splits.values():
            continue
        images = (one for one in iter_files(path) if one.suffix.lower() in readable_extensions())
        if any(not is_written_by_any_run(folder, one) for one in images):
            return {}, path.name
    return splits, None


def require_validation_split(folder: Path, split: str) -> None:
    """Raise UsageError if there are splits, but none to validate on, instead of evaluating on training images."""
    if split != "train" and list(find_splits(folder)[0]) == ["train"]:
        raise UsageError(
            f"{folder}: found train, but nothing to validate on; expected val beside it, or give other data, such as "
            f"{folder / 'train'} itself."
        )


def list_files(folder: Path) -> list[Path]:
    """All files below a directory except hidden ones. Links are followed, each directory once."""
    return list(iter_files(folder))


@cache
def is_known_run(directory: Path) -> bool:
    return is_run_dir(directory) or (directory / POOL).is_dir()


def iter_files(folder: Path) -> Iterator[Path]:
    """Yield what `list_files` returns; a file yields itself."""
    if not os.path.isdir(folder):
        yield folder
        return
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=raise_unlistable):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here) / name for name in files if not name.startswith("."))


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
        images, identity=identity, class_names=read_class_names(folder), open_mask=lambda i: read_index_mask(paths[i]),
        notes=(*choose_split(folder, split)[1], *choose_split(home / "images", split)[1], *images.notes),
    )  # fmt: skip


def require_split_dir(folder: Path, split: str, *, labeled: bool) -> Path:
    """The subdirectory for `split`. Raises UsageError instead of evaluating on training images."""
    if labeled:
        require_validation_split(folder, split)
    chosen = choose_split(folder, split)[0]
    return folder / "train" if chosen == folder and list(find_splits(folder)[0]) == ["train"] else chosen


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
