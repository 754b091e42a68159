"""Scores of models and exported files on labeled images; the implementation of `compress.evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UsageError
from compress.measure import append_measurement
from compress.predictor import batched_predict, identity, load_predictor, spec_name

if TYPE_CHECKING:
    from compress.data.class_mapping import LabelOrder
    from compress.models.card import ModelCard
    from compress.models.model_input import ModelInput
    from exporters.runtimes import Runtime
    from exporters.runtimes.base import Runner


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a model on labeled images."""

    model: str  #: as given
    data: str  #: as given
    #: "classification", "multilabel_classification", "segmentation" or "binary_segmentation"
    task: str
    runtime: str  #: "torch", or the runtime of an exported file
    precision: str  #: precision that really ran: "fp32", "fp16", "bf16" or "int8"
    images: int  #: images that were scored
    unreadable: int  #: images that were skipped
    #: accuracy (and accuracy_top5 from 50 classes on), or miou, pixel_accuracy and iou/CLASS, in [0, 1]; f1,
    #: map, label_accuracy and f1/LABEL for several labels; iou, dice and pixel_accuracy for binary segmentation
    metrics: dict[str, float]
    class_names: list[str]  #: names of the classes, or their numbers, in the order of the logits
    input: ModelInput  #: how the model reads images, and where these facts come from


def evaluate(
    model: Any, data: Any, *, data_root: Path | None, max_unreadable: float, runtime: Runtime | None,
    label_order: LabelOrder | None = None, record: Path | None, progress: Callable[[str], None], **overrides: Any,
) -> EvaluationResult:  # fmt: skip
    """Score a model; see `compress.evaluate`."""
    from compress.engine.accelerator import create_accelerator
    from compress.training.config import DataConfig
    from compress.training.data import create_scorer, load_validation_images

    predictor = load_predictor(model, runtime=runtime, progress=progress, **overrides)
    card = predictor.card
    if predictor.preprocesses and card.predicts_maps:
        raise UsageError(
            f"{predictor.spec}: found a file that crops images, so its maps do not match the masks; evaluate the same "
            "model exported without --preprocess."
        )
    source = DataConfig(
        validation=register_data(data), root=data_root, max_unreadable=max_unreadable, label_order=label_order
    )
    images = load_validation_images(source, card, input_size=predictor.input_size, progress=progress)
    metrics = create_scorer(images, card, create_accelerator("cpu", "32"))(predictor.predict)
    name = spec_name(data)
    if record is not None:
        append_measurement(record, predictor, metrics=metrics, run={"val": name})
    return EvaluationResult(
        predictor.spec, name, card.task, predictor.runtime, predictor.precision, len(images), len(images.unreadable),
        metrics, card.class_names or [str(i) for i in range(card.classes)],
        predictor.input,
    )  # fmt: skip


def create_file_scorer(
    data: Any, card: ModelCard, root: Path | None, progress: Callable[[str], None]
) -> Callable[[Runner], float]:
    """Return a function that computes the accuracy or mIoU of an exported file."""
    from compress.engine.accelerator import create_accelerator
    from compress.training.config import DataConfig
    from compress.training.data import create_scorer, load_validation_images

    images = load_validation_images(DataConfig(validation=register_data(data), root=root), card, progress=progress)
    score = create_scorer(images, card, create_accelerator("cpu", "32"))
    return lambda runner: next(iter(score(batched_predict(runner, identity)).values()))


def register_data(data: Any) -> str:
    """Return the name of data; an object is registered under one."""
    if isinstance(data, str | Path):
        return str(data)
    from compress.data import register_dataset

    return register_dataset(data)
