"""`compress export`: files for each target that have proven, on real images, that they answer as PyTorch does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.old_options import DYNAMIC, byte_size, common, emit, export_options, parse_size, record_option
from compress.cli.output import print_status
from compress.errors import UsageError, suggest_nearest
from compress.measure import append_format_measurement

if TYPE_CHECKING:
    from compress.cli.calibrating import Calibration
    from compress.models.card import ModelCard
    from exporters.artifacts import AccuracyBudget, ExportSettings
    from exporters.onnx_export import ReferenceModel

FORMATS = ("onnx", "openvino", "tensorrt", "tensorrt-rtx")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
TARGETS = ("ort-cpu", "ort-cpu-vnni", "ort-cuda", "openvino", "openvino-vnni", "tensorrt", "tensorrt-rtx")
CALIBRATORS = ("auto", "minmax", "percentile", "entropy")
QUANTIZERS = ("onnxruntime", "modelopt")
#: images in a batch of an engine, where nothing is said: fewest, usual, most
BATCH = (1, 1, 16)
CALIBRATED = 256


def several(known: tuple[str, ...]) -> Any:
    """A callback: names separated by commas, each one of `known`."""

    def parse(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [name.strip() for part in value for name in part.split(",")]
        for name in names:
            if name not in known:
                raise click.BadParameter(f"found {name!r}, expected some of {', '.join(known)}{suggest_nearest(name, known)}")
        return tuple(dict.fromkeys(names))

    return parse


def parse_batch(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int, int] | None:
    """`8` -> (8, 8, 8); `1:8:64` as it is."""
    if value is None:
        return None
    parts = value.split(":")
    if len(parts) not in (1, 3) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"found {value!r}, expected a number of images as 8, or least:usual:most as 1:8:64")
    least, usual, most = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    if not least <= usual <= most:
        raise click.BadParameter(f"found {value!r}, expected numbers that rise, as 1:8:64")
    return least, usual, most


def parse_sizes(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    """`HxW:HxW:HxW` -> three (height, width)."""
    if value is None:
        return None
    parts = [parse_size(context, option, part) for part in value.split(":")]
    if len(parts) not in (1, 3):
        raise click.BadParameter(f"found {value!r}, expected HxW, or least:usual:greatest as 256x256:512x512:1024x1024")
    return tuple(parts * 3 if len(parts) == 1 else parts)


OPTIONS = [
    click.option("--format", "formats", multiple=True, default=["onnx"], callback=several(FORMATS), metavar="NAME[,…]",
                 help="onnx, openvino, tensorrt, tensorrt-rtx.  [default: onnx]"),
    click.option("--precision", "precisions", multiple=True, default=["fp32"], callback=several(PRECISIONS),
                 metavar="NAME[,…]", help="fp32, fp16, bf16, int8.  [default: fp32]"),
    click.option("--out", type=click.Path(path_type=Path), metavar="FILE|FOLDER",
                 help="A file; of several, a folder.  [default: beside the model]"),
    click.option("--images", metavar="DATA",
                 help="Real images to compare on: a folder or a name.  [default: shipped ones]"),
    click.option("--data-root", type=click.Path(path_type=Path), help="Where data sets known by name lie."),
    click.option("--tolerance", type=click.FloatRange(min=0),
                 help="Greatest difference of a logit, as a share of the greatest |logit|.  [default: by precision]"),
    click.option("--min-agreement", type=click.FloatRange(0, 1),
                 help="Least share of answers as PyTorch's, of fp16, bf16 and int8.  [default: by precision]"),
    click.option("--batch", callback=parse_batch, metavar="N|LEAST:USUAL:MOST",
                 help="Images at a time: a fixed number, or any; engines take least to most."),
    click.option("--static-batch", is_flag=True, help="As --batch 1."),
    click.option("--sizes", callback=parse_sizes, metavar="HxW:HxW:HxW",
                 help="Least, usual and greatest pictures of an engine that takes any size."),
    click.option("--preprocess", is_flag=True,
                 help="The file takes uint8 pictures of any size, [n, h, w, 3], and cuts, scales and normalises them."),
    click.option("--postprocess", type=click.Choice(["none", "softmax", "argmax", "topk"]), default="none",
                 show_default=True, help="Answers with probabilities, labels (or maps of them), or the best five."),
    click.option("--calibration", metavar="DATA|RUN|synthetic",
                 help="Images for int8: any, without labels; synthetic: of the model's own run.  [default: synthetic]"),
    click.option("--calibration-images", type=click.IntRange(min=1), default=CALIBRATED, show_default=True,
                 help="How many."),
    click.option("--calibrator", type=click.Choice(CALIBRATORS), default="auto", show_default=True,
                 help="How ranges are found: auto tries several and keeps the best."),
    click.option("--quantizer", type=click.Choice(QUANTIZERS), default="onnxruntime", show_default=True,
                 help="Who makes int8: modelopt is NVIDIA's, for its runtimes."),
    click.option("--target", type=click.Choice(TARGETS), help="What int8 shall be fast on.  [default: by format]"),
    click.option("--max-drop", type=click.FloatRange(min=0), metavar="POINTS",
                 help="Leave layers in fp32 until at most so many points are lost."),
    click.option("--val", metavar="DATA", help="Labelled images for --max-drop.  [default: agreement with PyTorch]"),
    click.option("--allow-slower", is_flag=True, help="Keep int8 that is slower here than fp32."),
    click.option("--workspace", callback=byte_size, metavar="2GiB", help="GPU memory a layer of an engine may use."),
    click.option("--timing-cache", type=click.Path(path_type=Path), help="TensorRT: what was timed before, kept."),
    click.option("--version-compatible", is_flag=True, help="TensorRT: an engine for later versions too."),
    click.option("--hardware-compatible", type=click.Choice(["ampere+", "same-capability"]),
                 help="TensorRT: an engine for other GPUs too."),
    click.option("--compute-capability", multiple=True, metavar="8.6",
                 help="TensorRT-RTX: GPUs to build for; may be repeated.  [default: 8.0 and later]"),
    click.option("--opset", type=click.IntRange(min=18), default=18, show_default=True,
                 help="Version of ONNX's operators."),
    click.option("--exporter", type=click.Choice(["auto", "dynamo", "torchscript"]), default="auto", show_default=True,
                 help="Of PyTorch's two."),
]  # fmt: skip


def all_options(function: Any) -> Any:
    for option in reversed(OPTIONS):
        function = option(function)
    return function


@click.command()
@click.argument("model")
@all_options
@export_options
@record_option
@common
def export(model: str, as_json: bool, record: Path | None, formats: Any, precisions: Any, **given: Any) -> None:
    """Write MODEL for each --format and --precision, normalisation included, compared with PyTorch before it is named.

    With --input-size dynamic the files take images of any height and width, where the network does. What answers too
    differently, or is slower in int8, is not written, and the exit code is 1.

    \b
    Examples:
      compress export embedded/fashion_wrn16_2 --out teacher.onnx
      compress export embedded/fashion_wrn16_2 --precision fp32,fp16,int8 --calibration embedded/photos --out teacher
    """
    import contextlib
    from dataclasses import asdict

    from compress.cli.artefacts import ExportRequest, describe, export_all, graph_metadata, resolve_output_path
    from compress.cli.calibrating import calibration
    from compress.models.metadata import card_to_metadata

    if given["quantizer"] == "modelopt":
        refuse_modelopt(formats, given)
    order = ExportRequest(
        formats, precisions, resolve_output_path(model, given["out"], [(f, p) for f in formats for p in precisions]),
        given["opset"], given["exporter"],
    )  # fmt: skip
    question, card, images = asked(model, given)
    with contextlib.ExitStack() as stack:
        chosen = None
        if "int8" in precisions:
            chosen = stack.enter_context(
                calibration(
                    given["calibration"], model, card, given["calibration_images"], root=given["data_root"], say=print_status
                )
            )
        settings = wishes(question, card, formats, precisions, chosen, given)
        outcome = export_all(question, order, {**card_to_metadata(card), **graph_metadata(question)}, settings)
    for name, reason in outcome.source.failed_exporters.items():
        print_status(f"The exporter {name} was refused: {reason}")
    found = {
        "model": model, "images": images, "calibration": chosen.name if chosen else None,
        "opset": outcome.source.opset, "exporter": outcome.source.exporter, "refused": outcome.source.failed_exporters,
        "preprocess": given["preprocess"], "postprocess": given["postprocess"],
        "dynamic_size": outcome.source.dynamic_size, "artefacts": [asdict(one) for one in outcome.artifacts],
        "rejected": outcome.rejected,
    }  # fmt: skip
    if record is not None:
        for one in outcome.artifacts:
            append_format_measurement(record, model, card, one.format, one.precision, export=asdict(one), size_bytes=one.bytes)
    text = describe(outcome.artifacts, images, chosen)
    if as_json or text:
        emit(found, as_json=as_json, text=text)
    if outcome.rejected:
        raise click.exceptions.Exit(1)


def asked(model: str, given: dict[str, Any]) -> tuple[ReferenceModel, ModelCard, str]:
    """The network with what its files shall have around it, and the real images that they are compared on."""
    import torch

    from compress.measure import default_image_source, load_comparison_images
    from compress.predictor import load_predictor
    from exporters import onnx_export

    names = ("arch", "classes", "image_size", "ema", "trust_pickle")
    about = {name: given[name] for name in names}
    dynamic = about["image_size"] == DYNAMIC
    opened = load_predictor(model, **{**about, "image_size": None if dynamic else about["image_size"]})
    network, card = opened.network, opened.card
    images = given["images"] or default_image_source(card)
    least, _, most = batch_of(given)
    question = onnx_export.create_reference(
        network,
        torch.zeros(most if least == most else 1, 3, *card.image_size),
        images=load_comparison_images(images, card, root=given["data_root"]),
        dynamic_batch=least != most,
        dynamic_size=dynamic,
        preprocessing=onnx_export.Preprocessing(card.image_size, card.resize) if given["preprocess"] else None,
        postprocess=given["postprocess"],
    )
    return question, card, images


def batch_of(given: dict[str, Any]) -> tuple[int, int, int]:
    """Fewest, usual and most images at a time."""
    return (1, 1, 1) if given["static_batch"] else given["batch"] or BATCH


def wishes(
    question: ReferenceModel,
    card: ModelCard,
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    chosen: Calibration | None,
    given: dict[str, Any],
) -> ExportSettings:
    """Tolerances, calibration, shapes and options of engines. Raises UsageError for what nothing that is made uses."""
    from compress.cli.artefacts import create_speed_test, create_tolerances
    from exporters.artifacts import ExportSettings, Int8Options
    from exporters.tensorrt.options import BuildOptions, ShapeRanges

    engines = {"workspace", "timing_cache", "version_compatible", "hardware_compatible", "compute_capability", "sizes"}
    idle = [name for name in sorted(engines) if given[name] and not any(f.startswith("tensorrt") for f in formats)]
    if idle:
        raise UsageError(f"--{idle[0].replace('_', '-')}: is for engines; add --format tensorrt or tensorrt-rtx.")
    open_size = question.source.dynamic_size or question.source.preprocessing is not None
    if open_size and not given["sizes"] and any(f.startswith("tensorrt") for f in formats):
        raise UsageError(
            "an engine for pictures of any size needs their range; give --sizes 480x640, or least:usual:greatest."
        )
    int8 = None
    if chosen is not None:
        batches = chosen.batches if question.source.preprocessing is None else chosen.as_bytes()
        accept = None if given["allow_slower"] else create_speed_test(card)
        int8 = Int8Options(batches, given["target"], given["calibrator"], given["quantizer"], accept)
    options = BuildOptions(
        workspace_bytes=given["workspace"],
        timing_cache=given["timing_cache"],
        version_compatible=given["version_compatible"],
        hardware_compatible=given["hardware_compatible"],
        compute_capabilities=tuple(given["compute_capability"]),
    )
    return ExportSettings(
        tolerances=create_tolerances(given["tolerance"], given["min_agreement"]),
        int8=int8,
        budget=budget_of(card, precisions, given),
        shapes=ShapeRanges(batch_of(given), given["sizes"]),
        options=options,
    )


def refuse_modelopt(formats: Any, given: dict[str, Any]) -> None:
    """Raises UsageError for what Model Optimizer has not, before anything is made."""
    from exporters.artifacts import TARGETS as OF_FORMAT
    from exporters.quantization.modelopt import unsupported_reason

    for name in formats:
        reason = unsupported_reason(given["target"] or OF_FORMAT[name], given["calibrator"])
        if reason is not None:
            raise UsageError(f"--quantizer {reason}.")


def budget_of(card: ModelCard, precisions: tuple[str, ...], given: dict[str, Any]) -> AccuracyBudget | None:
    """What may be lost. Raises UsageError where nothing that is made could lose any, or it is not said how much."""
    from compress.cli.artefacts import create_file_scorer
    from exporters.artifacts import AccuracyBudget

    if given["max_drop"] is None:
        if given["val"]:
            raise UsageError("--val: is what --max-drop is measured on; give that too.")
        return None
    if set(precisions) == {"fp32"}:
        raise UsageError("--max-drop: is for precisions below fp32; add one, such as --precision int8.")
    score = create_file_scorer(given["val"], card, given["data_root"]) if given["val"] else None
    return AccuracyBudget(given["max_drop"] / 100, score)
