"""Which class of a model each folder of labeled images is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from compress.data.cache import ImageCache
from compress.errors import UsageError


def sort_class_names(names: set[str]) -> list[str]:
    """Class folders as torchvision's ImageFolder orders them; numbers by their size, 2 before 10."""
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def match_class_names(names: Sequence[str], classes: int, known: Sequence[str] | None) -> list[int] | None:
    """The model's number of each class folder, or None where the names do not tell.

    They tell where all are names of the model's classes (`known`), signs and case aside, or begin with a number below
    `classes`, as the folders of a pool do; each its own. Then some of the classes may be missing.
    """
    exact = {name: i for i, name in enumerate(known or [])}
    alike = {normalize_name(name): i for i, name in enumerate(known or [])}
    begun = [re.fullmatch(r"(\d+)(?: .*)?", name) for name in names]
    for found in (
        [exact.get(name) for name in names],
        [alike.get(normalize_name(name)) for name in names],
        [int(match[1]) if match and int(match[1]) < classes else None for match in begun],
    ):
        if None not in found and len(set(found)) == len(names):
            return [number for number in found if number is not None]
    return None


def normalize_name(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def map_labels(
    images: ImageCache, classes: int, known: Sequence[str] | None, *, spec: str, progress: Callable[[str], None]
) -> ImageCache:
    """Labeled images with the model's numbers for labels: told by the folders' names, else in their order.

    Raises UsageError where the names do not tell and there are more or fewer classes than the model has.
    """
    names = images.class_names
    found = None if names is None else match_class_names(names, classes, known)
    if names is None or found is None:
        if (count := images.count_classes()) != classes:
            raise UsageError(
                f"{spec}: found {count} classes, expected the model's {classes}; is this the right data for it?"
            )
        if names is not None and known:
            progress(
                f"{spec}: its folders are not named as the model's classes; by their order {names[0]} is {known[0]}"
            )
        return images
    if missing := sorted(set(range(classes)) - set(found)):
        which = ", ".join(str(known[i]) if known else str(i) for i in missing[:3]) + ", …" * (len(missing) > 3)
        progress(f"{spec}: no images of {len(missing)} of the model's {classes} classes ({which})")
    if found == list(range(classes)) or images.labels is None:
        return images
    all_names = [""] * classes
    for number, name in zip(found, names, strict=True):
        all_names[number] = name
    return replace(images, labels=np.array(found, dtype=np.int64)[images.labels], class_names=all_names)
