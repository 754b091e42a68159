"""`compress eval`: a model, or an exported file, on labelled data."""

from __future__ import annotations

from pathlib import Path

import click

from compress.cli.output import common, emit


@click.command(name="eval")
@click.argument("model")
@click.option("--data", required=True, metavar="DATA", help="Labelled images: a folder of one folder a class, or a name.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Where data sets known by name lie.")
@click.option("--teacher-arch", metavar="NAME", help="Architecture of a bare state dict, where it is not recognised.")
@click.option("--max-bad", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Share of unreadable images allowed.")
@click.option("--trust-pickle", is_flag=True, help="Load a full pickle, which can run any code.")
@common
def eval_(
    model: str, data: str, data_root: Path | None, teacher_arch: str | None, max_bad: float, trust_pickle: bool, as_json: bool
) -> None:
    """Measure MODEL (a folder, checkpoint, name, or .onnx file) on labelled images.

    \b
    Example:
      compress eval embedded/fashion_wrn16_2 --data embedded/fashion
    """
    from compress.cli.opening import open_model
    from compress.cli.output import say
    from compress.plan import cache_folder, validation_images
    from compress.tasks.scoring import score

    opened = open_model(model, arch=teacher_arch, trust_pickle=trust_pickle)
    images = validation_images(data, opened.card, root=data_root, folder=cache_folder(), max_bad=max_bad, say=say)
    metrics = score(opened.answer, opened.card, images)
    result = {"model": model, "data": data, "images": len(images), "metrics": metrics}
    lines = [f"{name}: {value:.2%}" for name, value in metrics.items()]
    emit(result, as_json=as_json, text="\n".join([f"{model} on {len(images)} images of {data}", *lines]))
