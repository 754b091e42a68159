"""`compress export`: one ONNX file that has proven, on real images, that it answers as PyTorch does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.opening import DYNAMIC, export_options
from compress.cli.output import common, emit, say

if TYPE_CHECKING:
    from exporters.onnx import Export


@click.command()
@click.argument("model")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE.onnx", help="[default: model.onnx, beside the model]"
)
@click.option(
    "--opset", type=click.IntRange(min=18), default=18, show_default=True, help="Version of ONNX's operators."
)
@click.option(
    "--images", metavar="DATA", help="Real images to compare on: a folder or a name.  [default: shipped ones]"
)
@click.option("--data-root", type=click.Path(path_type=Path), help="Where data sets known by name lie.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="Greatest difference of a logit, as a share of the greatest |logit|.  [default: 0.001]",
)
@click.option("--static-batch", is_flag=True, help="Batches of one image only.")
@click.option(
    "--postprocess",
    type=click.Choice(["none", "argmax"]),
    default="none",
    show_default=True,
    help="argmax: the file of a segmentation model answers with uint8 label maps, not logits.",
)
@click.option(
    "--exporter",
    type=click.Choice(["auto", "dynamo", "torchscript"]),
    default="auto",
    show_default=True,
    help="Of PyTorch's two.",
)
@export_options
@common
def export(
    model: str,
    out: Path | None,
    opset: int,
    images: str | None,
    data_root: Path | None,
    tolerance: float | None,
    static_batch: bool,
    postprocess: Any,
    exporter: Any,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Write MODEL as one ONNX file, normalisation included, and compare it with PyTorch before it gets its name.

    With --input-size dynamic the file takes images of any height and width, where the network does.

    \b
    Example:
      compress export embedded/fashion_wrn16_2 --out teacher.onnx
    """
    from compress.cli.measuring import default_images, export_model, real_images
    from compress.cli.opening import open_model

    dynamic = wishes["image_size"] == DYNAMIC
    opened = open_model(model, **{**wishes, "image_size": None if dynamic else wishes["image_size"]})
    network, card = opened.network, opened.card
    images = images or default_images(card)
    found = export_model(
        network,
        card,
        out or beside(model),
        images=real_images(images, card, root=data_root),
        opset=opset,
        tolerance=tolerance,
        dynamic_batch=not static_batch,
        exporter=exporter,
        postprocess=postprocess,
        dynamic_size=dynamic,
    )
    for name, reason in found.refused.items():
        say(f"The exporter {name} was refused: {reason}")
    emit({"model": model, "images": images, **asdict(found)}, as_json=as_json, text=describe(found, images))


def beside(model: str) -> Path:
    """Where an export goes without --out: into the model's folder, beside its file, or here if it has only a name."""
    path = Path(model)
    if path.is_dir():
        return path / "model.onnx"
    return path.with_suffix(".onnx") if path.exists() else Path("model.onnx")


def describe(found: Export, images: str) -> str:
    parity, sizes = found.parity, ", ".join(map(str, found.batch_sizes))
    any_size = ", any height and width" if found.dynamic_size else ""
    lines = [
        f"{found.path}: {found.bytes / 1e6:.2f} MB, opset {found.opset}, exporter {found.exporter}{any_size}",
        f"compared with PyTorch on {parity.images} images of {images}, batch sizes {sizes}",
    ]
    if parity.max_abs is not None:
        lines.append(
            f"greatest difference {parity.max_abs:.2e}, {parity.max_rel:.2e} of the greatest logit "
            f"(tolerance {found.tolerance:g})"
        )
    if parity.miou is None:
        lines.append(f"top-1 agreement {parity.top1_agreement:.2%}")
    else:
        lines.append(f"same label for {parity.top1_agreement:.4%} of the pixels, mIoU of the two {parity.miou:.4%}")
    return "\n".join([*lines, f"sha256 {found.sha256}"])
