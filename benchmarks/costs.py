"""Count the cost of the networks in MosaicKD's tables and of torchvision's, and compare it with published counts.

    python -m benchmarks.costs [--write]

Table 2: teacher and student of the segmentation task, 13 classes at 256x256, with the FLOPs of the paper. Table 1: the
networks of the classification pairs at 32x32, 100 classes. torchvision: one network of each family, with the counts in
the metadata of its weights. --write writes results/costs.json and costs.md. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from compress.models.registry import build_model
from compress.models.segmentation import list_torchvision_segmenters
from profiles.flops.counter import count_flops, count_products

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
#: network of Table 2 -> FLOPs in the paper, in G
TABLE_2 = {"deeplabv3_resnet50": 41.0, "deeplabv3_mobilenet_v2": 5.54}
#: network of Table 1 -> published parameters in millions, number of classes, source
PUBLISHED: dict[str, tuple[str, int, str]] = {
    "resnet34": ("21.3", 100, "weiaicunzai/pytorch-cifar100, README"),
    "resnet18": ("11.2", 100, "weiaicunzai/pytorch-cifar100, README"),
    "wrn40_2": ("2.26", 100, "chitraz/KnowledgeDistillationForModelCompression, README"),
    "wrn40_1": ("0.57", 100, "chitraz/KnowledgeDistillationForModelCompression, README"),
    "wrn16_2": ("0.70", 100, "clovaai/overhaul-distillation, README"),
    "wrn16_1": ("0.2", 10, "aryamaanthakur/trailmet-distillation, README"),
}
#: published GMAC of one 32x32 image, 10 classes (da2so/DA2Lite, model_zoo/README)
PUBLISHED_GMAC = {"resnet34": 1.16, "resnet18": 0.56}
TABLE_1 = ("resnet34", "resnet18", "vgg11", "wrn40_2", "wrn40_1", "wrn16_2", "wrn16_1")
#: one network of each torchvision family -> image side of its published counts
TORCHVISION = {
    "alexnet": 224, "convnext_tiny": 224, "densenet121": 224, "efficientnet_b0": 224, "googlenet": 224,
    "inception_v3": 299, "mnasnet0_5": 224, "mobilenet_v2": 224, "mobilenet_v3_small": 224, "regnet_y_400mf": 224,
    "resnet18": 224, "resnet50": 224, "resnext50_32x4d": 224, "shufflenet_v2_x1_0": 224, "squeezenet1_1": 224,
    "swin_t": 224, "swin_v2_t": 256, "vgg11_bn": 224, "vit_b_16": 224, "vit_b_32": 224, "wide_resnet50_2": 224,
    "maxvit_t": 224, "deeplabv3_resnet50": 520, "deeplabv3_mobilenet_v3_large": 520, "fcn_resnet50": 520,
    "lraspp_mobilenet_v3_large": 520,
}  # fmt: skip


def count_network(name: str, classes: int, side: int) -> Row:
    """Count one image with both counters."""
    count = count_flops(build_model(name, classes=classes), (torch.zeros(1, 3, side, side),))
    if count.unsupported or count.products != count.macs_torch:
        raise SystemExit(f"{name}: the counters differ, {count.products} and {count.macs_torch}; {count.unsupported}")
    return {
        "network": name,
        "classes": classes,
        "size": [side, side],
        "macs": count.macs,
        "flops": count.flops,
        "macs_torch": count.macs_torch,
        "params": count.params,
        "activations": count.activations,
        "by_operator": count.by_operator,
    }


def iter_segmentation_rows() -> Iterator[Row]:
    for name, giga in TABLE_2.items():
        yield {**count_network(name, 13, 256), "published_g": giga}


def iter_classification_rows() -> Iterator[Row]:
    for name in TABLE_1:
        row = count_network(name, 100, 32)
        millions, classes, source = PUBLISHED.get(name, (None, None, None))
        same = classes is not None and sum(p.numel() for p in build_model(name, classes=classes).parameters())
        published = {"millions": millions, "classes": classes, "source": source, "ours": same} if source else None
        yield {**row, "published": published, "published_gmac": PUBLISHED_GMAC.get(name)}


def iter_torchvision_rows() -> Iterator[Row]:
    """Count torchvision's networks; add the published counts of their first weights."""
    from torchvision.models import get_model_weights

    for name, side in TORCHVISION.items():
        weights: Any = next(iter(get_model_weights(name)))
        published = {"gmac": weights.meta["_ops"], "params": weights.meta["num_params"], "weights": str(weights)}
        row = count_network(f"torchvision/{name}", len(weights.meta["categories"]), side)
        full = None if row["params"] == published["params"] else count_with_auxiliary_head(name, side)
        yield {**row, "published": published, "with_side_head": full}


def count_with_auxiliary_head(name: str, side: int) -> Row:
    """Count the network with the auxiliary head that only training needs."""
    from torchvision.models import get_model

    extra = (
        {"aux_loss": True, "weights_backbone": None}
        if name in list_torchvision_segmenters()
        else {"init_weights": True}
    )
    model = get_model(name, weights=None, **extra)
    params = sum(parameter.numel() for parameter in model.parameters())
    return {"params": params, "macs_torch": count_products(model, (torch.zeros(1, 3, side, side),))}


def format_table_2(rows: list[Row]) -> list[str]:
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


def format_table_1(rows: list[Row]) -> list[str]:
    lines = [
        "| network | GMAC by fvcore | GFLOP | GMAC by torch | published GMAC | parameters | published | ours at as "
        "many classes | source |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        published, gmac = row["published"], row["published_gmac"]
        cells = "none found for this variant | | |"
        if published:
            ours = f"{published['ours'] / 1e6:.3f} M ({published['classes']})"
            cells = f"{published['millions']} M | {ours} | {published['source']} |"
        lines.append(
            f"| {row['network']} | {row['macs'] / 1e9:.4f} | {row['flops'] / 1e9:.4f} | "
            f"{row['macs_torch'] / 1e9:.4f} | {'' if gmac is None else f'{gmac:.2f}'} | {row['params']:,} | {cells}"
        )
    return lines


def format_torchvision_table(rows: list[Row]) -> list[str]:
    lines = [
        "| network | size | GMAC by fvcore | GMAC by torch | parameters | with side head: GMAC by torch | parameters | "
        "published GMAC | off | parameters off |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        published, full = row["published"], row["with_side_head"] or row
        gmac_difference = round(full["macs_torch"] / 1e9, 3) - published["gmac"]
        heads = "" if full is row else f"{full['macs_torch'] / 1e9:.3f} | {full['params']:,}"
        lines.append(
            f"| {row['network'].removeprefix('torchvision/')} | {row['size'][0]} | {row['macs'] / 1e9:.3f} | "
            f"{row['macs_torch'] / 1e9:.3f} | {row['params']:,} | {heads or ' | '} | {published['gmac']:.3f} | "
            f"{gmac_difference:+.3f} | {published['params'] - full['params']:+d} |"
        )
    return lines


def render_page(content: Row) -> str:
    return "\n".join(
        [
            "# Cost of the networks",
            "",
            "Made by `python -m benchmarks.costs --write`: one image, counted by fvcore with our formulas and by",
            "torch.utils.flop_counter. Their counts of products (convolution, matrix product, attention) are equal,",
            "otherwise this page is not written. fvcore also counts normalization, pooling and interpolation. See",
            "[docs/costs.md](../../docs/costs.md) for what is counted.",
            "",
            "## MosaicKD's Table 2: 13 classes, one image of 256x256",
            "",
            'The FLOPs of the paper are multiply-accumulates; "off" is our count relative to the paper\'s.',
            "",
            *format_table_2(content["segmentation"]),
            "",
            "## The networks of MosaicKD's Table 1: 100 classes, one image of 32x32",
            "",
            "The paper contains no counts for them. Published: millions of parameters from other sources, beside our",
            "count with the source's number of classes; GMAC from da2so/DA2Lite (model_zoo/README, 10 classes).",
            "",
            *format_table_1(content["classification"]),
            "",
            "## torchvision's families",
            "",
            "Published: GMAC to three decimals and parameters, from the metadata of torchvision's weights. They count",
            'products, as torch does here; "off" is our count minus theirs. Some were published with the auxiliary',
            "head that only training needs. Ours are without it, and are counted again with it for the comparison.",
            "",
            *format_torchvision_table(content["torchvision"]),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write results/costs.json and costs.md")
    options = parser.parse_args()
    content = {
        "benchmark": "costs",
        "segmentation": list(iter_segmentation_rows()),
        "classification": list(iter_classification_rows()),
        "torchvision": list(iter_torchvision_rows()),
        "versions": {name: version(name) for name in ("fvcore", "torch", "torchvision")},
    }
    print(render_page(content))
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "costs.json").write_text(json.dumps(content, indent=2) + "\n")
        (RESULTS / "costs.md").write_text(render_page(content))


if __name__ == "__main__":
    main()
