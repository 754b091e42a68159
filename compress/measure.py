"""Measurements of one model that several commands share: verified ONNX, latency, and lines of records."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import CompressError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.models.card import ModelCard
    from compress.predictor import Predictor
    from exporters.onnx_export import OnnxExportResult
    from exporters.runtimes import Provider
    from profiles.latency.benchmark import Candidate, Latency
    from profiles.records import Record

#: images that an export is compared with PyTorch on
COMPARISON_IMAGES = 64
#: crops of one image if there are few images
MAX_VIEWS = 4
BATCH_SIZES = (1, 8)
#: pixels of all compared images of a segmentation model, which takes about a second per image of 256x256
MAX_MAP_PIXELS = 64 * 128 * 128
#: key in the run of a record whose model has no run: sha256 of its weights
WEIGHTS = "weights"


def default_image_source(card: ModelCard) -> str:
    """Return embedded real images that suit the card: clothes for small grayscale inputs, else photographs."""
    return "embedded/fashion" if card.grayscale and card.image_size == (32, 32) else "embedded/photos"


def comparison_image_count(card: ModelCard) -> int:
    height, width = card.image_size
    if not card.predicts_maps:
        return COMPARISON_IMAGES
    return max(8, min(COMPARISON_IMAGES, MAX_MAP_PIXELS // (height * width)))


def load_comparison_images(spec: Any, card: ModelCard, *, root: Path | None = None) -> Tensor:
    """Load some images of `spec`, prepared as the card says: float in [0, 1], [n, 3, h, w]."""
    import numpy as np
    import torch

    from compress.data import open_images
    from compress.data.cache import build_cache

    images = open_images(spec, root=root, split="val")
    limit = comparison_image_count(card)
    views = min(MAX_VIEWS, -(-limit // len(images)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cached = build_cache(
            images, image_size=card.image_size, resize=card.resize, views=views, folder=Path(folder), limit=limit
        )
        pixels = cached.gather(np.arange(min(limit, len(cached))))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)


def export_verified(net: nn.Module, card: ModelCard, path: Path) -> OnnxExportResult:
    """Export a network as verified ONNX with its card as metadata, compared on embedded images."""
    import torch

    from compress.models.metadata import card_to_metadata
    from exporters.onnx_export import export_onnx

    return export_onnx(
        net,
        torch.zeros(1, 3, *card.image_size),
        path,
        metadata={**card_to_metadata(card), "postprocess": "none", "input_size": "image_size", "precision": "fp32"},
        images=load_comparison_images(default_image_source(card), card),
        threshold=card.decision_threshold,
    )


def export_for_timing(predictor: Predictor, path: Path) -> Path:
    """Export a temporary ONNX file, compared on noise because no images are given."""
    import torch

    from exporters.errors import ExportError
    from exporters.onnx_export import export_onnx

    try:
        export_onnx(predictor.network, torch.zeros(1, 3, *predictor.card.image_size), path)
    except ExportError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise CompressError(f"{predictor.spec}: no ONNX file for --runtimes onnxruntime: {reason}") from error
    return path


@dataclass(frozen=True)
class TimedModel:
    """A network to time, and its ONNX file if there is one."""

    net: nn.Module
    card: ModelCard
    onnx: Path | None = None


def time_models(
    models: Mapping[str, TimedModel], *, batch_sizes: Sequence[int] = BATCH_SIZES, duration_s: float = 1.0
) -> dict[str, list[Latency]]:
    """Time networks in PyTorch and their ONNX files in ONNX Runtime, interleaved, so that the ratios hold.

    Returns one latency per runtime and batch size, by model name: on the CPU with all cores, and on CUDA if PyTorch
    sees a GPU (ONNX Runtime only with its CUDA provider).
    """
    import torch

    from profiles.latency.benchmark import benchmark_interleaved
    from profiles.latency.cases import create_candidate, preserve_threads

    latencies: dict[str, list[Latency]] = {name: [] for name in models}
    providers: list[Provider] = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for provider in providers:
        candidates: dict[tuple[str, str, int], Candidate[Any]] = {}
        with preserve_threads():
            for size in batch_sizes:
                for name, model in models.items():
                    candidates[name, "torch", size] = create_candidate(
                        model.net, model.card.image_size, size, provider=provider
                    )
                    if model.onnx is not None and has_onnx_provider(provider):
                        candidates[name, "onnx", size] = create_candidate(
                            model.onnx, model.card.image_size, size, provider=provider
                        )
            timed = benchmark_interleaved(candidates, duration_s=duration_s).latencies
        for (name, _, _), latency in timed.items():
            latencies[name].append(latency)
    for model in models.values():
        model.net.cpu()
    return latencies


def has_onnx_provider(provider: Provider) -> bool:
    import onnxruntime

    from exporters.runtimes.onnxruntime import PROVIDERS

    return PROVIDERS[provider] in onnxruntime.get_available_providers()


def append_measurement(record_dir: Path, predictor: Predictor, **values: Any) -> None:
    """Add a measurement of a loaded model to the records in `record_dir`. Raises RecordError."""
    form = record_format(predictor)
    precision = predictor.precision if form else "fp32"
    append_format_measurement(record_dir, predictor.spec, predictor.card, form, precision, **values)


def append_format_measurement(
    record_dir: Path, spec: str, card: ModelCard, form: str, precision: str, **values: Any
) -> None:
    """Add a measurement of a model in one form ("onnx", …, or "" for the network). Raises RecordError."""
    from compress.models.serialization import package_versions
    from profiles.latency.machine import describe_machine
    from profiles.records import Record, append_records, without_history

    directory = enclosing_run(Path(record_dir), spec)
    known = find_record(directory, spec, card)
    if known is None:
        name, role, method, run = default_name(directory, spec, card), "model", "", {WEIGHTS: card.sha256}
    else:
        name, role, method, run = known.name, known.role, known.method, without_history(known.run)
    run |= values.pop("run", {})
    here = {"machine": describe_machine(), "versions": package_versions()}  # unless measured on another machine
    line = Record(
        name, role, method, card.architecture, card.task, card.image_size, form, precision, run=run, **here | values
    )
    append_records(directory, [line])


def enclosing_run(record_dir: Path, spec: str) -> Path:
    """Return the run below `record_dir` that contains the model and has records, or `record_dir`."""
    from profiles.records import has_records

    path = Path(spec)
    if not os.path.exists(path):
        return record_dir
    root = record_dir.resolve()
    below = [parent for parent in path.resolve().parents if parent.is_relative_to(root) and parent != root]
    runs = [parent for parent in below if has_records(parent)]
    return runs[0] if runs else record_dir


def default_name(record_dir: Path, spec: str, card: ModelCard) -> str:
    """Name a model without a run by its architecture, and by its weights if others have that name."""
    from compress.models.exported_programs import EXPORTED
    from profiles.records import read_existing_records

    name = Path(spec).stem if card.architecture == EXPORTED else card.architecture
    same_name = [record for record in read_existing_records(record_dir) if record.name == name]
    others = {record.run.get(WEIGHTS) for record in same_name} - {card.sha256}
    return f"{name} {str(card.sha256)[:8]}" if others else name


def record_format(predictor: Predictor) -> str:
    """Return the format of the file in records; empty for a network."""
    if predictor.file is None:
        return ""
    suffix = predictor.file.suffix.lower()
    return {".onnx": "onnx", ".xml": "openvino"}.get(suffix, predictor.runtime)


def find_record(record_dir: Path, spec: str, card: ModelCard) -> Record | None:
    """Return the network's record that a model is, or was exported from.

    A model in the directory is its student; any other model is the teacher, if it has that architecture.
    """
    from profiles.records import read_existing_records

    is_inside = os.path.exists(spec) and Path(spec).resolve().is_relative_to(record_dir.resolve())
    records = [
        record for record in read_existing_records(record_dir)
        if not record.format and record.architecture == card.architecture and (record.role == "teacher") != is_inside
    ]  # fmt: skip
    named = [record for record in records if record.name == spec]
    return (named or records or [None])[-1]
