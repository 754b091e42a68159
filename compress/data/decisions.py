"""Targets of models that decide by threshold: masks of 0 and 1 or 255, and labels of 0 and 1."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from compress.data.cache import ImageCache
from compress.data.dataset import IGNORE_INDEX, ImageSet, UnreadableImageError
from compress.errors import CompressError, UsageError
from compress.files import require_regular_file
from compress.units import MAX_CLASSES

#: file in a folder of images: a header "file,NAME,NAME,…", and per image its path and 0 or 1 for each label
LABELS_FILE = "labels.csv"
#: bytes of the largest one: a million images with a hundred labels
MAX_LABELS_FILE = 1 << 28
#: masks with 255 and without 1 after which 255 is the foreground; a later 1 is an error
MASKS_TO_DECIDE = 200


def to_binary_masks(images: ImageSet) -> ImageSet:
    """Convert masks of two classes to 0, 1 and IGNORE_INDEX.

    If masks contain 1, then 1 is the foreground, and 255 is ignored. If they contain 0 and 255 only, 255 is the
    foreground.
    """
    foreground = find_foreground(images)

    def open_mask(i: int) -> np.ndarray:
        values = images.read_mask(i)
        strange = values[(values != 0) & (values != foreground) & (values != IGNORE_INDEX)]
        if strange.size:
            raise CompressError(
                f"{images.name}: the mask of {images.name_of(i)} holds {int(strange.flat[0])}, expected 0 and "
                f"{foreground}; the model knows background and foreground only."
            )
        return (values == foreground).astype(np.uint8) if foreground == IGNORE_INDEX else values

    identity = f"{images.identity} foreground {foreground}"
    return replace(images, open_mask=open_mask, identity=identity)


def find_foreground(images: ImageSet) -> int:
    """Return the value of the foreground in the masks: 1, or 255 if they contain that and no 1."""
    with_high = 0
    for i in range(len(images)):
        try:
            values = images.read_mask(i)
        except UnreadableImageError:
            continue  # the cache lists it
        if (values == 1).any():
            return 1
        with_high += bool((values == IGNORE_INDEX).any())
        if with_high == MASKS_TO_DECIDE:
            break
    return IGNORE_INDEX if with_high else 1


def to_label_targets(
    images: ImageCache, classes: int, known: Sequence[str] | None, *, spec: str, progress: Callable[[str], None]
) -> ImageCache:
    """Convert labels to targets [n, classes] of 0 and 1, in the order of the model's labels.

    Labels of two folders become the targets of a model with one label: the folder with its name, or the second one, is
    positive.

    Raises:
        UsageError: The data do not have the labels of the model.
    """
    labels, names = images.labels, images.class_names
    assert labels is not None
    if labels.ndim == 1:
        count = images.count_classes()
        if classes != 1 or count > 2 or (names is not None and count != 2):
            raise UsageError(
                f"{spec}: found one of {count} classes per image, expected "
                + (f"0 or 1 for each of the model's {classes} labels, from {LABELS_FILE}." if classes > 1 else "two.")
            )
        positive = next((i for i, name in enumerate(names or []) if has_same_name(known, 0, name)), 1)
        if names is not None and not has_same_name(known, 0, names[positive]):
            progress(f"Assumed: {names[1]} is the positive class of {spec}, not {names[0]}. If wrong: --class-names.")
        return replace(
            images, labels=(labels == positive)[:, None].astype(np.int64),
            class_names=None if names is None else [names[positive]],
        )  # fmt: skip
    if labels.shape[1] != classes:
        raise UsageError(f"{spec}: found {labels.shape[1]} labels per image, expected the model's {classes}.")
    if names is None:
        return images
    columns = [next((j for j, name in enumerate(names) if has_same_name(known, i, name)), None) for i in range(classes)]
    if None in columns or len(set(columns)) < classes:
        if known:
            progress(f"{spec}: its labels differ from the model's; by order, {names[0]} is {known[0]}")
        return images
    order = [column for column in columns if column is not None]
    return replace(images, labels=labels[:, order], class_names=[names[column] for column in order])


def has_same_name(known: Sequence[str] | None, i: int, name: str) -> bool:
    return known is not None and known[i].casefold() == name.casefold()


def read_labels_file(folder: Path, paths: Sequence[Path]) -> tuple[np.ndarray, list[str]] | None:
    """Return 0 and 1 int64 [n, labels] for images below `folder`, and the names of the labels; None without a file.

    Raises:
        UsageError: The file has another form, or its rows are not those of the images.
    """
    path = folder / LABELS_FILE
    if not path.exists():
        return None
    try:
        if require_regular_file(path).stat().st_size > MAX_LABELS_FILE:
            raise UsageError(f"{path}: found more than {MAX_LABELS_FILE >> 20} MB, expected a table of labels.")
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [(line, row) for line, row in enumerate(csv.reader(file), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as CSV ({error}); expected file,LABEL,LABEL,… .") from error
    names = [name.strip() for name in rows[0][1][1:]] if rows else []
    if not names or not all(names) or len(set(names)) < len(names) or len(names) > MAX_CLASSES:
        raise UsageError(f"{path}: found the header {rows[0][1][:5] if rows else []}, expected file,LABEL,LABEL,… .")
    known: dict[str, list[int]] = {}
    for line, row in rows[1:]:
        values = [value.strip() for value in row[1:]]
        if len(values) != len(names) or not set(values) <= {"0", "1"} or row[0] in known:
            raise UsageError(
                f"{path}: line {line} ({row[0][:80]}): expected a new file and {len(names)} values, 0 or 1."
            )
        known[row[0]] = [int(value) for value in values]
    files = [path.relative_to(folder).as_posix() for path in paths]
    without = next((file for file in files if file not in known), None)
    if without is not None:
        raise UsageError(f"{path}: has no line for {without}, expected one for every image below {folder}.")
    if len(known) > len(files):
        missing = sorted(known.keys() - set(files))[0]
        raise UsageError(f"{path}: names {missing[:200]}, but there is no such image in {folder}.")
    return np.array([known[file] for file in files], dtype=np.int64), names
