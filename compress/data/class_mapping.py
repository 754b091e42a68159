"""Map the folders of labeled images to the classes of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from compress.data.cache import ImageCache
from compress.errors import UsageError


def sort_class_names(names: set[str]) -> list[str]:
    """Class folders in the order of torchvision's ImageFolder, but numbers by value: 2 before 10."""
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def match_class_names(names: Sequence[str], classes: int, known: Sequence[str] | None) -> list[int] | None:
    """The model's class of each folder; None if the names do not determine it.

    They do if all are names of the model's classes (`known`), apart from case and punctuation, or if all begin with
    different numbers below `classes`, as the folders of an image pool do. Some classes may be missing.
    """
    exact = {name: i for i, name in enumerate(known or [])}
    similar = {normalize_name(name): i for i, name in enumerate(known or [])}
    numbered = [re.fullmatch(r"(\d{1,9})(?: .*)?", name) for name in names]
    for mapping in (
        [exact.get(name) for name in names],
        [similar.get(normalize_name(name)) for name in names],
        [int(match[1]) if match and int(match[1]) < classes else None for match in numbered],
    ):
        if None not in mapping and len(set(mapping)) == len(names):
            return [number for number in mapping if number is not None]
    return None


def normalize_name(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def map_labels(
    images: ImageCache, classes: int, known: Sequence[str] | None, *, spec: str, progress: Callable[[str], None]
) -> ImageCache:
    """Convert labels to the model's classes: by the names of the folders, else by their order.

    Args:
        images: Labeled images.
        classes: Class count of the model.
        known: Class names of the model.
        spec: Name of the data, for messages.
        progress: Called with a sentence if classes are missing or the order decides.

    Raises:
        UsageError: The names do not determine the classes, and the counts differ.
    """
    names = images.class_names
    mapping = None if names is None else match_class_names(names, classes, known)
    if names is None or mapping is None:
        if (count := images.count_classes()) != classes:
            raise UsageError(
                f"{spec}: found {count} classes, expected {classes} as in the model; use data with its classes."
            )
        if names is not None and known:
            progress(f"{spec}: folder names differ from the model's class names; by order, {names[0]} is {known[0]}")
        return images
    if missing := sorted(set(range(classes)) - set(mapping)):
        listed = ", ".join(str(known[i]) if known else str(i) for i in missing[:3]) + ", …" * (len(missing) > 3)
        progress(f"{spec}: no images of {len(missing)} of the model's {classes} classes ({listed})")
    if mapping == list(range(classes)) or images.labels is None:
        return images
    all_names = [""] * classes
    for number, name in zip(mapping, names, strict=True):
        all_names[number] = name
    return replace(images, labels=np.array(mapping, dtype=np.int64)[images.labels], class_names=all_names)
