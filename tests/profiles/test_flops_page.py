"""benchmarks/results/costs.json against the counters and published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.models.registry import build_model
from profiles.flops.counter import count_flops, count_products

PAGE = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "costs.json").read_text())
OURS = [*PAGE["segmentation"], *PAGE["classification"]]


@pytest.mark.parametrize("row", OURS, ids=lambda row: row["network"])
def test_published_counts_are_current(row: dict[str, Any]) -> None:
    with torch.device("meta"):
        net, example = build_model(row["network"], classes=row["classes"]), (torch.zeros(1, 3, *row["size"]),)
    assert count_products(net, example) == row["macs_torch"]
    assert sum(parameter.numel() for parameter in net.parameters()) == row["params"]
    if row["macs"] < 1e9:  # the whole count takes a real image
        result = count_flops(build_model(row["network"], classes=row["classes"]), (torch.zeros(1, 3, *row["size"]),))
        assert (result.macs, result.flops, result.activations) == (row["macs"], row["flops"], row["activations"])


@pytest.mark.parametrize("row", PAGE["segmentation"], ids=lambda row: row["network"])
def test_counters_match_the_paper(row: dict[str, Any]) -> None:
    for macs in (row["macs"], row["macs_torch"]):
        assert macs / 1e9 == pytest.approx(row["published_g"], rel=0.02)


@pytest.mark.parametrize("row", PAGE["classification"], ids=lambda row: row["network"])
def test_parameters_match_published_ones(row: dict[str, Any]) -> None:
    if row["published"] is None:
        assert row["network"] == "vgg11"
        return
    printed = row["published"]["millions"]
    decimals = len(printed.partition(".")[2])
    assert f"{row['published']['ours'] / 1e6:.{decimals}f}" == printed


@pytest.mark.parametrize("row", PAGE["torchvision"], ids=lambda row: row["network"])
def test_counts_match_torchvision(row: dict[str, Any]) -> None:
    whole = row["with_side_head"] or row
    assert round(whole["macs_torch"] / 1e9, 3) == row["published"]["gmac"]
    assert whole["params"] == row["published"]["params"]
