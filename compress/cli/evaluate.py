"""`compress eval`: a model, or an exported file, on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.old_options import common, emit, model_options, record_option
from compress.cli.output import print_status
from compress.cli.tables import format_table
from compress.errors import UsageError
from compress.measure import append_measurement
from compress.predictor import load_predictor

if TYPE_CHECKING:
    from compress.models.card import ModelCard

#: what exported files run in
RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
#: before a class's name in the metrics of a segmentation model
IOU = "iou/"


@click.command(name="eval")
@click.argument("model")
@click.option(
    "--data",
    "--val",
    "data",
    required=True,
    metavar="DATA",
    help="Labelled images: a folder of one folder a class, named as it, or of images/ and masks/, or a name.",
)
@click.option("--data-root", type=click.Path(path_type=Path), help="Where data sets known by name lie.")
@click.option(
    "--max-bad",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Share of unreadable images allowed.",
)
@click.option("--runtime", type=click.Choice(RUNTIMES), help="Of an exported file.  [default: its own]")
@model_options
@record_option
@common
def eval_(
    model: str, data: str, data_root: Path | None, max_bad: float, runtime: Any, record: Path | None, as_json: bool,
    **wishes: Any,
) -> None:  # fmt: skip
    """Measure MODEL (a folder, checkpoint, name, or an exported .onnx, .xml or .engine file) on labelled images.

    \b
    Example:
      compress eval embedded/fashion_wrn16_2 --data embedded/fashion
    """
    from compress.engine.place import create_accelerator
    from compress.sources import create_scorer, image_cache_dir, load_validation_images

    opened = load_predictor(model, runtime=runtime, **wishes)
    if opened.preprocesses and opened.card.task == "segmentation":
        raise UsageError(
            f"{model}: cuts the centre out of every picture, so that its maps fit no mask; measure the same model "
            "without --preprocess."
        )
    images = load_validation_images(data, opened.card, root=data_root, folder=image_cache_dir(), max_bad=max_bad, say=print_status)
    metrics = create_scorer(images, opened.card, create_accelerator("cpu", "32"))(opened.predict)
    result = {
        "model": model,
        "data": data,
        "runtime": opened.runtime,
        "precision": opened.precision,
        "images": len(images),
        "unreadable": len(images.unreadable),
        "metrics": metrics,
    }
    ran = "" if opened.file is None else f", in {opened.runtime}, {opened.precision}"
    text = "\n".join([f"{model} on {len(images)} images of {data}{ran}", *describe(metrics, opened.card)])
    if record is not None:
        append_measurement(record, opened, metrics=metrics, run={"val": data})
    emit(result, as_json=as_json, text=text)


def describe(metrics: dict[str, float], card: ModelCard) -> list[str]:
    """A line a metric; then a table of the classes, in the model's order, where they have an IoU each."""
    lines = [f"{name}: {value:.2%}" for name, value in metrics.items() if not name.startswith(IOU)]
    if card.task != "segmentation":
        return lines
    names = card.class_names or [str(i) for i in range(card.classes)]
    found = [metrics.get(f"{IOU}{name}") for name in names]
    rows = [[name, "-" if iou is None else f"{iou:.2%}"] for name, iou in zip(names, found, strict=True)]
    return [*lines, "", format_table(rows, ["class", "IoU"])]
