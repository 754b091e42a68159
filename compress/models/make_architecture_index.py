"""Build the shipped index of architectures: `python -m compress.models.make_architecture_index` (15 minutes, one core).

Every network of torchvision and timm, and the usual pairs of smp, is built on the meta device. Networks with equal
names and shapes are also built with the same random weights and applied to the same image. Equal outputs make them
equivalent: one function under several names, so `resnet50` of torchvision and timm need not be distinguished.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.errors import UsageError
from compress.files import write_bytes
from compress.models.architecture_index import (
    AUXILIARY_HEADS,
    INDEX_FILE,
    ArchitectureIndex,
    Fingerprint,
    compute_fingerprint,
    pack_index,
)
from compress.models.registry import MODELS, build_model, build_on_meta, list_timm_models, list_torchvision_classifiers
from compress.models.segmentation import import_smp, list_torchvision_segmenters

#: networks with more parameters are not compared and count as different
MAX_PARAMETERS = 120_000_000
TOLERANCE = 1e-4
#: encoders of smp that are common in checkpoints
ENCODERS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "se_resnext50_32x4d",
    "vgg16_bn",
    "densenet121",
    "mobilenet_v2",
    "xception",
    "efficientnet-b0",
    "efficientnet-b1",
    "efficientnet-b2",
    "efficientnet-b3",
    "efficientnet-b4",
    "timm-efficientnet-b0",
    "timm-efficientnet-b3",
    "mit_b0",
    "mit_b1",
    "mit_b2",
    "mobileone_s0",
    "tu-resnet18",
    "tu-resnet50",
    "tu-mobilenetv3_small_100",
    "tu-mobilenetv3_large_100",
    "tu-efficientnet_b0",
    "tu-convnext_tiny",
    "tu-regnety_008",
)


def list_architectures() -> list[str]:
    return [
        *(f"torchvision/{name}" for name in [*list_torchvision_classifiers(), *list_torchvision_segmenters()]),
        *(f"timm/{name}" for name in list_timm_models()),
        *iter_smp_pairs(),
    ]


def iter_smp_pairs() -> Iterator[str]:
    """Yield every architecture of smp with each encoder of ENCODERS that it supports."""
    for arch in import_smp().MODEL_ARCHITECTURES_MAPPING:
        for encoder in ENCODERS:
            try:
                build_on_meta(f"smp/{arch}:{encoder}", classes=2)
            except (UsageError, RuntimeError, AttributeError):
                continue  # some encoders cannot be dilated, or have too few feature maps
            yield f"smp/{arch}:{encoder}"


def iter_fingerprints(names: list[str]) -> Iterator[Fingerprint]:
    for number, name in enumerate(names, start=1):
        print(f"\r{number}/{len(names)} {name:<60.60}", end="", file=sys.stderr, flush=True)
        print_ = compute_fingerprint(name)
        if print_.axes.classes:  # a network without a classifier cannot be a teacher
            yield print_
    print(file=sys.stderr)


def group_lookalikes(prints: list[Fingerprint]) -> list[list[str]]:
    """Group architectures with equal names and sketches of tensors."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for print_ in prints:
        groups.setdefault((print_.names_hash, print_.sketch), []).append(print_.name)
    return [names for names in groups.values() if len(names) > 1]


def group_equivalents(names: list[str]) -> list[frozenset[str]]:
    """Groups, of two or more, of the names whose networks have equal outputs for equal weights."""
    size = sum(parameter.numel() for parameter in build_on_meta(names[0], classes=11).parameters())
    if size > MAX_PARAMETERS:
        return []
    logits = {name: probe_logits(name) for name in names}
    groups: list[list[str]] = []
    for name in names:
        group = next((g for g in groups if are_equal(logits[g[0]], logits[name])), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return [frozenset(group) for group in groups if len(group) > 1]


def probe_logits(name: str) -> Tensor:
    """Logits for a fixed image, with weights that depend only on the order of their names."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(name, classes=11).eval()
    with torch.no_grad():
        for key, value in sorted(model.state_dict().items()):
            if value.is_floating_point() and not key.startswith(AUXILIARY_HEADS):
                value.copy_(random_tensor(key, value, generator))
        height, width = native_image_size(name, model)
        return model(torch.rand(1, 3, height, width, generator=generator))


def random_tensor(key: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """Random values that keep all parts of a network active: no zero gains, no variances below 0.5."""
    noise = torch.randn(value.shape, generator=generator)
    if "running_var" in key:
        return 0.5 + noise.abs()
    if value.dim() <= 1:
        return (1.0 if "weight" in key or "gamma" in key else 0.0) + 0.2 * noise
    return noise / max(value[0].numel(), 1) ** 0.5


def native_image_size(name: str, model: nn.Module) -> tuple[int, int]:
    cfg = getattr(model, "default_cfg", None) or {}
    size = cfg.get("test_input_size") if cfg.get("fixed_input_size") else None
    _, height, width = size or cfg.get("input_size") or (3, 224, 224)
    return (299, 299) if name == "torchvision/inception_v3" else (height, width)


def are_equal(a: Tensor, b: Tensor) -> bool:
    scale = a.abs().max()
    return bool(torch.isfinite(a).all() and scale > 0 and (a - b).abs().max() <= TOLERANCE * scale)


def main() -> None:
    prints = list(iter_fingerprints(list_architectures()))
    groups: list[frozenset[str]] = []
    for names in group_lookalikes([*iter_fingerprints(list(MODELS)), *prints]):
        found = group_equivalents(names)
        print(f"{', '.join(names)}: {[sorted(group) for group in found] or 'differ'}", file=sys.stderr, flush=True)
        groups += found
    versions = tuple(
        (package, metadata.version(package)) for package in ("torchvision", "timm", "segmentation-models-pytorch")
    )
    target = Path(str(resources.files("compress.models") / INDEX_FILE))
    write_bytes(target, pack_index(ArchitectureIndex(tuple(prints), tuple(groups), versions)))
    print(f"{len(prints)} architectures, {target.stat().st_size} bytes: {target}", file=sys.stderr)


if __name__ == "__main__":
    main()
