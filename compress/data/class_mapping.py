"""Map the folders of labeled images to the classes of a model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from compress.data.cache import ImageCache
from compress.errors import UsageError

#: the order of numbered class folders: 2 before 10, or 10 before 2
LabelOrder = Literal["number", "text"]


def sort_class_names(names: set[str]) -> list[str]:
    """Class folders in the order of torchvision's ImageFolder, but numbers by value: 2 before 10."""
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def match_class_names(names: Sequence[str], known: Sequence[str] | None) -> list[int] | None:
    """The model's class of each folder, if all are names of the model's classes (`known`); else None.

    Names are equal as they are, else after Unicode's NFKC and case folding, else also without punctuation. Some classes
    may be missing.
    """
    for normalize in (str, fold_name, lambda name: "".join(filter(str.isalnum, fold_name(name)))):
        classes: dict[str, int | None] = {}
        for i, name in enumerate(map(normalize, known or [])):
            classes[name] = None if name in classes else i  # None: two classes have this name
        mapping = [classes.get(normalize(name)) for name in names]
        if None not in mapping and len(set(mapping)) == len(names):
            return [number for number in mapping if number is not None]
    return None


def fold_name(name: str) -> str:
    """The form of a name in which names are compared; file systems change composed letters and case."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def match_class_numbers(
    names: Sequence[str], classes: int, order: LabelOrder | None, *, are_indices: bool, spec: str
) -> list[int] | None:
    """The model's class of each folder, if all names begin with different numbers; else None.

    Folders of all classes were counted in their order when the model was trained: by number, or as text, as
    torchvision's ImageFolder does. Folders of some classes are numbered from 0 if one of them is 0.

    Args:
        names: Names of the folders.
        classes: Class count of the model.
        order: The order of the folders that the model was trained with; None: unknown.
        are_indices: The numbers are those of the classes, as in the pool of a run.
        spec: Name of the data, for messages.

    Raises:
        UsageError: The numbers do not determine the classes.
    """
    matches = [re.fullmatch(r"(\d{1,9})(?: .*)?", name) for name in names]
    numbers = [int(match[1]) for match in matches if match]
    if len(numbers) < len(names) or len(set(numbers)) < len(names):
        return None
    if are_indices and max(numbers) < classes:
        return numbers
    if len(names) == classes:
        by_number, by_text = rank(numbers), rank(names)
    elif 0 in numbers and max(numbers) < classes:
        is_padded = any(re.match(r"0\d", name) for name in names)
        text_ranks = rank([str(number) for number in range(classes)])
        by_number, by_text = numbers, numbers if is_padded else [text_ranks[number] for number in numbers]
    elif max(numbers) <= classes:
        raise UsageError(
            f"{spec}: found folders {', '.join(sorted(names, key=int_prefix)[:5])} for {len(names)} of the model's "
            f"{classes} classes, which may be numbered from 0 or from 1; give the names of all classes in the order of "
            "the model with --class-names."
        )
    else:
        return None
    if by_number == by_text:
        return by_number
    if order is None:
        first, second = (sorted(names, key=int_prefix)[:3], sorted(names)[:3])
        raise UsageError(
            f"{spec}: the model has no class names, and its folders may have been in the order of numbers "
            f"({', '.join(first)}, …) or of text ({', '.join(second)}, …), as torchvision's ImageFolder has them; give "
            "--label-order number or text, or --class-names."
        )
    return by_number if order == "number" else by_text


def rank(values: Sequence[Any]) -> list[int]:
    """The position of each value in sorted order."""
    positions = {value: i for i, value in enumerate(sorted(values))}
    return [positions[value] for value in values]


def int_prefix(name: str) -> int:
    return int(name.partition(" ")[0])


def map_labels(
    images: ImageCache, classes: int, known: Sequence[str] | None, *, order: LabelOrder | None = None, spec: str,
    progress: Callable[[str], None],
) -> ImageCache:  # fmt: skip
    """Convert labels to the model's classes: by the names of the folders, else by their order.

    Args:
        images: Labeled images.
        classes: Class count of the model.
        known: Class names of the model.
        order: The order of numbered folders that the model was trained with; see `match_class_numbers`.
        spec: Name of the data, for messages.
        progress: Called with a sentence if classes are missing or the order decides.

    Raises:
        UsageError: The names do not determine the classes, and the counts differ.
    """
    names = images.class_names
    mapping = None if names is None else match_class_names(names, known)
    if names is not None and mapping is None:
        rest = [re.sub(r"^\d{1,9} ", "", name) for name in names]  # without numbers, as the pool of a run has them
        mapping = match_class_names(rest, known) or match_class_numbers(
            names, classes, order, are_indices=images.has_class_numbers, spec=spec
        )
    if names is None or mapping is None:
        if (count := images.count_classes()) != classes:
            raise UsageError(
                f"{spec}: found {count} classes, expected {classes} as in the model; use data with its classes."
            )
        if names is not None and known:
            progress(f"{spec}: folder names differ from the model's class names; by order, {names[0]} is {known[0]}")
        elif names is not None:
            progress(
                f"Assumed: class 0 is {names[0]} and class {classes - 1} is {names[-1]}, the folders of {spec} as text "
                "(the model has no class names). If wrong: --class-names."
            )
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
