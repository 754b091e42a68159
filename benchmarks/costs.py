"""What the networks of MosaicKD's tables cost, and torchvision's, beside what others have published of them.

    python -m benchmarks.costs [--write]

Table 2: teacher and student of the segmentation task, 13 classes at 256x256, whose FLOPs the paper gives. Table 1: the
networks of the classification pairs at 32x32, 100 classes. torchvision: one network of each family, against the counts
in the metadata of its own weights. With --write into results/costs.json and costs.md. It counts, and times nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from compress.models import body
from compress.models.segmenters import torchvision_segmenters
from profiles.flops import count, products

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
#: network of Table 2 -> G that the paper gives as its FLOPs
TABLE_2 = {"deeplabv3_resnet50": 41.0, "deeplabv3_mobilenet_v2": 5.54}
#: what others say of the networks of Table 1: millions of parameters, at so many classes, where
PUBLISHED: dict[str, tuple[str, int, str]] = {
    "resnet34": ("21.3", 100, "weiaicunzai/pytorch-cifar100, README"),
    "resnet18": ("11.2", 100, "weiaicunzai/pytorch-cifar100, README"),
    "wrn40_2": ("2.26", 100, "chitraz/KnowledgeDistillationForModelCompression, README"),
    "wrn40_1": ("0.57", 100, "chitraz/KnowledgeDistillationForModelCompression, README"),
    "wrn16_2": ("0.70", 100, "clovaai/overhaul-distillation, README"),
    "wrn16_1": ("0.2", 10, "aryamaanthakur/trailmet-distillation, README"),
}
#: and GMAC of one 32x32 image, 10 classes (da2so/DA2Lite, model_zoo/README)
PUBLISHED_GMAC = {"resnet34": 1.16, "resnet18": 0.56}
TABLE_1 = ("resnet34", "resnet18", "vgg11", "wrn40_2", "wrn40_1", "wrn16_2", "wrn16_1")
#: of each of torchvision's families one, and the side of the images that its counts are published for
TORCHVISION = {
    "alexnet": 224, "convnext_tiny": 224, "densenet121": 224, "efficientnet_b0": 224, "googlenet": 224,
    "inception_v3": 299, "mnasnet0_5": 224, "mobilenet_v2": 224, "mobilenet_v3_small": 224, "regnet_y_400mf": 224,
    "resnet18": 224, "resnet50": 224, "resnext50_32x4d": 224, "shufflenet_v2_x1_0": 224, "squeezenet1_1": 224,
    "swin_t": 224, "swin_v2_t": 256, "vgg11_bn": 224, "vit_b_16": 224, "vit_b_32": 224, "wide_resnet50_2": 224,
    "maxvit_t": 224, "deeplabv3_resnet50": 520, "deeplabv3_mobilenet_v3_large": 520, "fcn_resnet50": 520,
    "lraspp_mobilenet_v3_large": 520,
}  # fmt: skip


def counted(name: str, classes: int, side: int) -> Row:
    """Both counts of one image."""
    found = count(body(name, classes=classes), (torch.zeros(1, 3, side, side),))
    if found.unsupported or found.products != found.macs_torch:
        raise SystemExit(f"{name}: the counters differ, {found.products} and {found.macs_torch}; {found.unsupported}")
    return {
        "network": name,
        "classes": classes,
        "size": [side, side],
        "macs": found.macs,
        "flops": found.flops,
        "macs_torch": found.macs_torch,
        "params": found.params,
        "activations": found.activations,
        "by_operator": found.by_operator,
    }


def segmentation() -> Iterator[Row]:
    for name, giga in TABLE_2.items():
        yield {**counted(name, 13, 256), "published_g": giga}


def classification() -> Iterator[Row]:
    for name in TABLE_1:
        row = counted(name, 100, 32)
        millions, classes, source = PUBLISHED.get(name, (None, None, None))
        same = classes is not None and sum(p.numel() for p in body(name, classes=classes).parameters())
        published = {"millions": millions, "classes": classes, "source": source, "ours": same} if source else None
        yield {**row, "published": published, "published_gmac": PUBLISHED_GMAC.get(name)}


def torchvision() -> Iterator[Row]:
    """Beside what the metadata of torchvision's first weights say."""
    from torchvision.models import get_model_weights

    for name, side in TORCHVISION.items():
        weights: Any = next(iter(get_model_weights(name)))
        published = {"gmac": weights.meta["_ops"], "params": weights.meta["num_params"], "weights": str(weights)}
        row = counted(f"torchvision/{name}", len(weights.meta["categories"]), side)
        whole = None if row["params"] == published["params"] else with_side_head(name, side)
        yield {**row, "published": published, "with_side_head": whole}


def with_side_head(name: str, side: int) -> Row:
    """The same with the head that only training needs."""
    from torchvision.models import get_model

    extra = {"aux_loss": True, "weights_backbone": None} if name in torchvision_segmenters() else {"init_weights": True}
    model = get_model(name, weights=None, **extra)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return {"params": numbers, "macs_torch": products(model, (torch.zeros(1, 3, side, side),))}


def table_2(rows: list[Row]) -> list[str]:
    lines = [
        "| network | GMAC by fvcore | GFLOP | paper | off | GMAC by torch | off | parameters | activations |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        paper, ours, torchs = row["published_g"], row["macs"] / 1e9, row["macs_torch"] / 1e9
        lines.append(
            f"| {row['network']} | {ours:.2f} | {2 * ours:.2f} | {paper:g} G | {ours / paper - 1:+.1%} | "
            f"{torchs:.2f} | {torchs / paper - 1:+.1%} | {row['params'] / 1e6:.2f} M | "
            f"{row['activations'] / 1e6:.2f} M |"
        )
    return lines


def table_1(rows: list[Row]) -> list[str]:
    lines = [
        "| network | GMAC by fvcore | GFLOP | GMAC by torch | published GMAC | parameters | published | ours at as "
        "many classes | source |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        said, giga = row["published"], row["published_gmac"]
        beside = "none found for this variant | | |"
        if said:
            classes = f"{said['ours'] / 1e6:.3f} M ({said['classes']})"
            beside = f"{said['millions']} M | {classes} | {said['source']} |"
        lines.append(
            f"| {row['network']} | {row['macs'] / 1e9:.4f} | {row['flops'] / 1e9:.4f} | "
            f"{row['macs_torch'] / 1e9:.4f} | {'' if giga is None else f'{giga:.2f}'} | {row['params']:,} | {beside}"
        )
    return lines


def table_of_torchvision(rows: list[Row]) -> list[str]:
    lines = [
        "| network | size | GMAC by fvcore | GMAC by torch | parameters | with side head: GMAC by torch | parameters | "
        "published GMAC | off | parameters off |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        said, whole = row["published"], row["with_side_head"] or row
        heads = "" if whole is row else f"{whole['macs_torch'] / 1e9:.3f} | {whole['params']:,}"
        lines.append(
            f"| {row['network'].removeprefix('torchvision/')} | {row['size'][0]} | {row['macs'] / 1e9:.3f} | "
            f"{row['macs_torch'] / 1e9:.3f} | {row['params']:,} | {heads or ' | '} | {said['gmac']:.3f} | "
            f"{round(whole['macs_torch'] / 1e9, 3) - said['gmac']:+.3f} | {said['params'] - whole['params']:+d} |"
        )
    return lines


def page(content: Row) -> str:
    return "\n".join(
        [
            "# What the networks cost",
            "",
            "Made by `python -m benchmarks.costs --write`: one image, counted by fvcore with our formulas and by",
            "torch.utils.flop_counter. Both say the same of every product (convolution, matrix product, attention), to",
            "the last MAC, or this page is not made; what fvcore has above it is normalisation, pooling and",
            "interpolation. What is counted is said in [docs/costs.md](../../docs/costs.md).",
            "",
            "## MosaicKD's Table 2: 13 classes, one image of 256x256",
            "",
            'What the paper calls FLOPs are multiply-accumulates; "off" is our count over the paper\'s.',
            "",
            *table_2(content["segmentation"]),
            "",
            "## The networks of MosaicKD's Table 1: 100 classes, one image of 32x32",
            "",
            "The paper gives no counts for them. Published: millions of parameters as others have printed them, beside",
            "ours at the class count of that source; GMAC from da2so/DA2Lite (model_zoo/README, 10 classes).",
            "",
            *table_1(content["classification"]),
            "",
            "## torchvision's families",
            "",
            "Published: GMAC to three decimals and parameters, in the metadata of torchvision's own weights, which",
            'count products, as torch does here; "off" is ours less theirs. Some were published with the side head',
            "that only training needs; ours are without it, and are counted with it once more for the comparison.",
            "",
            *table_of_torchvision(content["torchvision"]),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into results/costs.json and costs.md")
    options = parser.parse_args()
    content = {
        "benchmark": "costs",
        "segmentation": list(segmentation()),
        "classification": list(classification()),
        "torchvision": list(torchvision()),
        "versions": {name: version(name) for name in ("fvcore", "torch", "torchvision")},
    }
    print(page(content))
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "costs.json").write_text(json.dumps(content, indent=2) + "\n")
        (RESULTS / "costs.md").write_text(page(content))


if __name__ == "__main__":
    main()
