"""The two measurements that several commands share: a model as verified ONNX, and its latency in every runtime."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli.candidates import candidate
from compress.errors import CompressError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.cli.opening import Opened
    from compress.models.card import Card
    from exporters.onnx import Export
    from exporters.runtime import Provider
    from profiles.latency import Candidate, Latency

#: images on which an export is compared with PyTorch
COMPARED = 64
#: crops taken of one picture where there are few
MOST_VIEWS = 4
BATCH_SIZES = (1, 8)
#: of all images compared, where the answers are maps: a network of 256x256 pixels takes a second an image
MAP_PIXELS = 64 * 128 * 128


def default_images(card: Card) -> str:
    """Shipped real images that suit the card: clothes for small grey input, photographs for all else."""
    return "embedded/fashion" if card.grey and card.image_size == (32, 32) else "embedded/photos"


def compared(card: Card) -> int:
    """How many images an export is compared on without more being asked for."""
    height, width = card.image_size
    return COMPARED if card.task == "classification" else max(8, min(COMPARED, MAP_PIXELS // (height * width)))


def real_images(spec: str, card: Card, *, root: Path | None = None) -> Tensor:
    """Some images of the data that `spec` names, float in [0, 1], [n, 3, h, w], prepared as the card says."""
    import numpy as np
    import torch

    from compress.data import open_images
    from compress.data.cache import build_cache

    images = open_images(spec, root=root, split="val")
    limit = compared(card)
    views = min(MOST_VIEWS, -(-limit // len(images)))
    with tempfile.TemporaryDirectory() as folder:
        cached = build_cache(
            images, image_size=card.image_size, resize=card.resize, views=views, folder=Path(folder), limit=limit
        )
        pixels = cached.gather(np.arange(min(limit, len(cached))))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)


def export_model(net: nn.Module, card: Card, path: Path) -> Export:
    """Write `net` to `path` as verified ONNX with its card in the metadata; compared on shipped images."""
    import torch

    from compress.models.metadata import to_metadata
    from exporters import onnx

    return onnx.export(
        net,
        torch.zeros(1, 3, *card.image_size),
        path,
        metadata={**to_metadata(card), "postprocess": "none", "input_size": "image_size", "precision": "fp32"},
        images=real_images(default_images(card), card),
    )


def export_quickly(opened: Opened, path: Path) -> Path:
    """The model as ONNX for a measurement: compared with PyTorch on noise, for its user may have no images at hand."""
    import torch

    from exporters import onnx
    from exporters.failure import ExportError

    try:
        onnx.export(opened.network, torch.zeros(1, 3, *opened.card.image_size), path)
    except ExportError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise CompressError(f"{opened.spec}: no ONNX file to time with --runtimes onnxruntime: {reason}") from error
    return path


@dataclass(frozen=True)
class Timed:
    """A model to time: its network, its card, and its ONNX file where there is one."""

    net: nn.Module
    card: Card
    onnx: Path | None = None


def time_models(
    models: Mapping[str, Timed], *, batch_sizes: Sequence[int] = BATCH_SIZES, duration_s: float = 1.0
) -> dict[str, list[Latency]]:
    """Latencies of networks in PyTorch and of their ONNX files in ONNX Runtime, all in turns: their ratios hold.

    One entry a runtime and batch size, by the model's name. On the CPU with all cores, and on CUDA where PyTorch sees
    it (ONNX Runtime there only with its CUDA provider).
    """
    import torch

    from profiles.latency import measure_alternated

    found: dict[str, list[Latency]] = {name: [] for name in models}
    places: list[Provider] = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for place in places:
        named: dict[tuple[str, str, int], Candidate[Any]] = {}
        with threads_kept():
            for size in batch_sizes:
                for name, model in models.items():
                    named[name, "torch", size] = candidate(model.net, model.card, size, provider=place)
                    if model.onnx is not None and runs_onnx(place):
                        named[name, "onnx", size] = candidate(model.onnx, model.card, size, provider=place)
            measured = measure_alternated(named, duration_s=duration_s)
        for (name, _, _), latency in measured.items():
            found[name].append(latency)
    for model in models.values():
        model.net.cpu()
    return found


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Runners set PyTorch's number of threads; afterwards it is as before."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def runs_onnx(provider: Provider) -> bool:
    """Whether the installed ONNX Runtime has the provider."""
    import onnxruntime

    from exporters.runtime import PROVIDERS

    return PROVIDERS[provider] in onnxruntime.get_available_providers()
