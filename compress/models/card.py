"""The card of a model: everything needed to use it. Stored as `config.json` beside the weights."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from compress.errors import CompressError, first_line
from compress.units import MAX_CLASSES, MAX_IMAGE_SIDE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CARD_FORMAT = 2
#: a mean or a standard deviation beyond it makes all images equal
MAX_STATISTIC = 1e6
TASKS = ("classification", "multilabel_classification", "segmentation", "binary_segmentation")
#: task with a softmax over classes -> the one with a sigmoid per logit. A single logit always belongs to the latter,
#: because a softmax over one class is 1 for every image.
SIGMOID_TASKS = {"classification": "multilabel_classification", "segmentation": "binary_segmentation"}
MAX_TEXT, MAX_PROVENANCE, MAX_DEPTH = 1_000, 1_000_000, 16
#: where a field of a card comes from, see `ModelCard.provenance`; other texts are allowed, such as "timm's args"
ASSUMED, FROM_FILE, FROM_OPTION, PUBLISHED = "assumed", "the file", "option", "published weights"
#: fields of a card that have a source
FIELDS_WITH_SOURCE = ("image_size", "resize", "mean", "std", "grayscale", "class_names")
SOURCES_KEY = "field_sources"


@dataclass(config=ConfigDict(extra="forbid"))
class ModelCard:
    """What a model is and expects. Images are float RGB in [0, 1], NCHW; the network normalizes them itself."""

    architecture: str  #: built-in name, torchvision/…, timm/…, smp/…, package.module:factory, module:…, or "exported"
    classes: int  #: number of classes or labels: the logits per image or pixel
    image_size: tuple[int, int]  #: (height, width) in pixels
    #: "classification" or "segmentation": one class per image or pixel; "multilabel_classification": a decision for
    #: every label; "binary_segmentation": one decision per pixel. A single logit makes the first two the last two.
    task: str = "classification"
    mean: tuple[float, ...] = IMAGENET_MEAN  #: per channel, of values in [0, 1]; one entry if `grayscale`
    std: tuple[float, ...] = IMAGENET_STD  #: per channel, of values in [0, 1]; one entry if `grayscale`
    grayscale: bool = False  #: the network converts RGB to luma (ITU-R 601) before it normalizes
    resize: int | None = None  #: short side in pixels before the center crop; None: the larger side of image_size
    class_names: list[str] | None = None  #: a name for every class, in the order of the logits
    metrics: dict[str, float] = field(default_factory=dict)  #: metrics on the validation set, in [0, 1]
    #: teacher's hash, recipe, versions; "field_sources" maps a field to where it comes from: "assumed", "the file",
    #: "option", "published weights" or another text. Set it by `with_sources`; a field without one is the file's.
    provenance: dict[str, Any] = field(default_factory=dict)
    sha256: str | None = None  #: hash of model.safetensors, or of the file that the model was loaded from
    format: int = CARD_FORMAT  #: version of this format
    threshold: float = 0.5  #: probability above which a label or a pixel is positive; for sigmoid tasks only

    def __post_init__(self) -> None:
        if self.classes == 1:
            self.task = SIGMOID_TASKS.get(self.task, self.task)

    def as_dict(self) -> dict[str, Any]:
        """The card as JSON types."""
        return asdict(self)  # pyright: ignore[reportArgumentType]

    @property
    def channels(self) -> int:
        """Channels that the body reads: 1 for a grayscale model, else 3."""
        return 1 if self.grayscale else 3

    @property
    def predicts_maps(self) -> bool:
        """Whether there is a prediction for every pixel."""
        return base_task(self.task) == "segmentation"

    @property
    def decides_by_threshold(self) -> bool:
        """Whether every logit is a decision of its own: a sigmoid and a threshold, no softmax."""
        return self.task in SIGMOID_TASKS.values()

    @property
    def decision_threshold(self) -> float | None:
        """The threshold; None for a task that takes the class of the largest logit."""
        return self.threshold if self.decides_by_threshold else None

    @property
    def decision_names(self) -> list[str]:
        """Names of what a label map can hold: the classes, or background and foreground for one logit per pixel."""
        names = self.class_names or [str(i) for i in range(self.classes)]
        if self.task != "binary_segmentation":
            return names
        return ["background", self.class_names[0] if self.class_names else "foreground"]

    def example_input(self, n: int = 1) -> Tensor:
        """Random images float32 [n, 3, h, w] in [0, 1] of the size that the model reads; the same at every call."""
        return torch.rand(n, 3, *self.image_size, generator=torch.Generator().manual_seed(0))


def base_task(task: str) -> str:
    """Return the task with the same shape of outputs and one class each: "classification" or "segmentation"."""
    return next((base for base, sigmoid in SIGMOID_TASKS.items() if sigmoid == task), task)


def with_sources(provenance: dict[str, Any], source: str, *names: str) -> dict[str, Any]:
    """Return the provenance with `source` as the source of the fields `names` of the card."""
    if not names:
        return provenance
    return provenance | {SOURCES_KEY: provenance.get(SOURCES_KEY, {}) | dict.fromkeys(names, source)}


def parse_card(content: dict[str, Any], source: Path) -> ModelCard:
    """The card in `content`, which was read from `source`. Raises CompressError naming the wrong field."""
    try:
        card = TypeAdapter(ModelCard).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part)[:80] for part in first["loc"])
        raise CompressError(f"{source}: {name}: {first['msg'].lower()}; expected a model card.") from error
    except RecursionError as error:
        raise CompressError(f"{source}: is nested too deeply; expected a model card.") from error
    check_card(card, str(source))
    return card


def parse_card_json(text: str, source: Path) -> ModelCard:
    """The card in JSON `text`. Raises CompressError if it is damaged."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CompressError(f"{source}: its card is damaged ({first_line(error)}); copy or export it again.") from error
    return parse_card(content, source)


def check_card(card: ModelCard, source: str) -> None:
    """Raise CompressError if no model can be as the card says."""
    check_image_size(card.image_size, source)
    texts = [card.architecture, *(card.class_names or []), *card.metrics, *card.provenance]
    statistics = (*card.mean, *card.std)
    checks = {
        f"classes: found {card.classes}, expected 1 to {MAX_CLASSES}": 1 <= card.classes <= MAX_CLASSES,
        f"resize: found {card.resize}, expected 1 to {MAX_IMAGE_SIDE} pixels": card.resize is None
        or 1 <= card.resize <= MAX_IMAGE_SIDE,
        f"task: found {card.task[:80]!r}, expected {' or '.join(TASKS)}": card.task in TASKS,
        f"task: found {card.task[:80]!r} with {card.classes} classes, expected one; one class per pixel is "
        "segmentation": card.task != "binary_segmentation" or card.classes == 1,
        f"threshold: found {card.threshold}, expected a number between 0 and 1": 0 < card.threshold < 1,
        f"format: found {card.format}, expected 1 to {CARD_FORMAT}": 1 <= card.format <= CARD_FORMAT,
        f"mean and std: found {list(card.mean)[:4]} and {list(card.std)[:4]}, expected {card.channels} finite numbers "
        "each, std above 0": len(card.mean) == len(card.std) == card.channels
        and all(math.isfinite(value) and abs(value) <= MAX_STATISTIC for value in statistics)
        and all(value > 0 for value in card.std),
        f"class_names: found {len(card.class_names or [])}, expected {card.classes}": card.class_names is None
        or len(card.class_names) == card.classes,
        "metrics: found NaN or infinity": all(map(math.isfinite, card.metrics.values())),
        f"found a text of more than {MAX_TEXT} characters": all(len(text) <= MAX_TEXT for text in texts),
        f"provenance: found more than {MAX_PROVENANCE} characters, {MAX_DEPTH} levels, or another type than those of "
        "JSON": is_small_json(card.provenance),
    }
    for wrong, is_right in checks.items():
        if not is_right:
            raise CompressError(f"{source}: {wrong}; the model card is damaged.")


def check_image_size(size: tuple[int, int], source: str) -> None:
    """Raise CompressError for image sizes that no model has."""
    if not all(1 <= side <= MAX_IMAGE_SIDE for side in size):
        height, width = size
        raise CompressError(
            f"{source}: found the image size {height}x{width}, expected 1 to {MAX_IMAGE_SIDE} pixels a side."
        )


def is_small_json(content: object) -> bool:
    """Whether `content` can be written as JSON, is not nested deeply and not long."""
    level = [content]
    for _ in range(MAX_DEPTH):
        parts = [list(part.values()) for part in level if isinstance(part, dict)]
        parts += [list(part) for part in level if isinstance(part, list | tuple)]
        level = [part for group in parts for part in group]
    if level:
        return False
    try:
        return len(json.dumps(content, allow_nan=False)) <= MAX_PROVENANCE
    except (TypeError, ValueError):
        return False
