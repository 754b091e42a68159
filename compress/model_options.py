"""Keyword arguments for what a user says about a model, the same for every command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

Size = tuple[int, int]
TaskName = Literal["classification", "multilabel_classification", "segmentation", "binary_segmentation"]


class ModelOptions(TypedDict, total=False):
    """What the file of a model does not contain, or contains wrongly; None: as in the file."""

    arch: str | None  #: architecture of a state dict that is not recognized
    classes: int | None  #: number of classes; must match the model's
    image_size: Size | Literal["dynamic"] | None  #: input (height, width) in pixels; "dynamic": for `export` only
    resize: int | None  #: short side in pixels before the center crop
    mean: Sequence[float] | None  #: normalization mean per channel, or one for all, of values in [0, 1]
    std: Sequence[float] | None  #: normalization standard deviation, the same
    grayscale: bool | None  #: the model reads one channel, made from RGB images
    class_names: Sequence[str] | None  #: a name for every class, in the order of the model's outputs
    task: TaskName | None  #: what the outputs of the model mean, if they can mean several things
    threshold: float | None  #: probability above which a label or a pixel is positive, for models that decide so
    output: str | int | None  #: name or index of the output with the logits, of a model with several
    ema: bool  #: load the averaged weights of a file that contains both
    trust_pickle: bool  #: load a full pickle, TorchScript file or version-compatible engine, which can run any code


MODEL_OPTIONS = tuple(ModelOptions.__annotations__)


def merge_model_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with those of the mapping `options` among them.

    Raises:
        TypeError: `options` contains a name that `ModelOptions` does not have.
    """
    merged = dict(arguments)
    options = merged.pop("options")
    unknown = options.keys() - set(MODEL_OPTIONS)
    if unknown:
        raise TypeError(f"unexpected arguments: {', '.join(sorted(unknown))}")
    return merged | options


def split_model_options(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (model options, other arguments)."""
    options = {name: value for name, value in arguments.items() if name in MODEL_OPTIONS}
    return options, {name: value for name, value in arguments.items() if name not in MODEL_OPTIONS}
