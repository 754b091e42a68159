"""`compress export`."""

from __future__ import annotations

from typing import Any

import click

from compress import api
from compress.cli import options, tables
from compress.cli.options import COUNT, PATH, CommaList, MinOptMax, Size
from compress.cli.output import emit, print_status


class Joined(click.Option):
    """An option that may be repeated: all its comma lists together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, multiple=True, callback=lambda _, __, lists: join_lists(lists), **kwargs)


def join_lists(lists: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for values in lists for value in values))


export_options = options.add_options(
    click.option("--format", "formats", cls=Joined, default=["onnx"], metavar="NAME[,…]",
                 type=CommaList((*api.FORMATS, "engine")),
                 help="onnx, openvino, tensorrt (or engine), tensorrt-rtx.  [default: onnx]"),
    click.option("--precision", "precisions", cls=Joined, default=["fp32"], type=CommaList(api.PRECISIONS),
                 metavar="NAME[,…]", help="fp32, fp16, bf16, int8.  [default: fp32]"),
    click.option("--out", "output_path", type=PATH, metavar="FILE|DIR",
                 help="A file; for several files a directory.  [default: beside the model]"),
    click.option("--images", metavar="DATA",
                 help="Real images to compare outputs on: a directory or a name.  [default: embedded images]"),
    options.data_root,
    click.option("--tolerance", type=options.Number(min=0),
                 help="Largest difference of a logit, relative to the largest |logit|.  [default: by precision]"),
    click.option("--min-agreement", type=options.Number(0, 1),
                 help="Least share of equal predictions in fp16, bf16 and int8.  [default: by precision]"),
    click.option("--batch", type=MinOptMax(COUNT), metavar="N|MIN:OPT:MAX",
                 help="Batch size: fixed, or a range (used by engines).  [default: 1:1:16]"),
    click.option("--static-batch", is_flag=True, help="Same as --batch 1."),
    click.option("--sizes", type=MinOptMax(Size()), metavar="HxW:HxW:HxW",
                 help="Minimum, optimal and maximum input size of an engine with dynamic size."),
    click.option("--preprocess", is_flag=True,
                 help="Accept uint8 images of any size, [n, h, w, 3]; crop, resize and normalize in the graph."),
    click.option("--postprocess", type=click.Choice(["none", "softmax", "argmax", "topk", "sigmoid", "threshold"]),
                 default="none", show_default=True,
                 help="Return probabilities, labels (or label maps), or the top five; sigmoid and threshold (0 and 1, "
                      "or masks) are for models that decide by threshold."),
    click.option("--script", is_flag=True,
                 help="Write a script beside each file that runs it on a picture, without compress and PyTorch."),
    click.option("--calibration", metavar="DATA|RUN|synthetic",
                 help="Images for int8, without labels; synthetic: from the model's run.  [default: synthetic]"),
    click.option("--calibration-images", type=COUNT, default=256, show_default=True,
                 help="Number of calibration images."),
    click.option("--calibrator", type=click.Choice(api.CALIBRATORS), default="auto", show_default=True,
                 help="How activation ranges are computed; auto tries several and keeps the best."),
    click.option("--quantizer", type=click.Choice(api.QUANTIZERS), default="onnxruntime", show_default=True,
                 help="Quantizer for int8; modelopt is NVIDIA's, for its runtimes."),
    click.option("--target", type=click.Choice(api.INT8_TARGETS),
                 help="Runtime that int8 is optimized for.  [default: by format]"),
    click.option("--max-drop", type=options.Number(min=0), metavar="POINTS",
                 help="Maximum accuracy loss in points; layers stay in fp32 until it holds."),
    click.option("--val", "--validation", "validation", metavar="DATA",
                 help="Labeled images for --max-drop.  [default: agreement with PyTorch]"),
    click.option("--allow-slower", is_flag=True, help="Keep an int8 file that is slower here than fp32."),
    click.option("--workspace", type=options.SIZE_IN_BYTES, metavar="2GiB", help="GPU memory per layer of an engine."),
    click.option("--timing-cache", type=PATH, help="TensorRT: file that stores kernel timings."),
    click.option("--version-compatible", is_flag=True, help="TensorRT: build for later versions too."),
    click.option("--hardware-compatible", type=click.Choice(["ampere+", "same-capability"]),
                 help="TensorRT: build for other GPUs too."),
    click.option("--compute-capability", "compute_capabilities", multiple=True, metavar="8.6",
                 help="TensorRT-RTX: GPUs to build for; may be repeated.  [default: 8.0 and later]"),
    click.option("--opset", type=click.IntRange(min=18), default=18, show_default=True, help="ONNX opset version."),
    click.option("--exporter", type=click.Choice(["auto", "dynamo", "torchscript"]), default="auto", show_default=True,
                 help="PyTorch's ONNX exporter."),
)  # fmt: skip


@click.command()
@click.argument("model")
@export_options
@options.model_options(dynamic=True)
@options.allow_code
@options.record_option
@options.common_options
def export(model: str, as_json: bool, **settings: Any) -> int:
    """Export MODEL in every requested format and precision.

    Each file includes normalization and is saved only after its outputs match PyTorch. With --image-size dynamic the
    files accept images of any height and width, if the network does. Exit code 1 if a file is rejected, because its
    outputs differ too much or because int8 is slower than fp32.

    \b
    Examples:
      compress export embedded/fashion_wrn16_2 --out teacher.onnx
      compress export embedded/fashion_wrn16_2 --precision fp32,fp16,int8 --calibration embedded/photos --out teacher
    """
    result = api.export(model, **settings, progress=print_status)
    emit(result, as_json, tables.export_summary)
    return 1 if result.rejected else 0
