"""`compress profile`: what one image costs in arithmetic, parameters and memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from compress.cli.opening import model_options
from compress.cli.output import common, emit, table

if TYPE_CHECKING:
    from compress.models.card import Card
    from profiles.flops import Flops
    from profiles.memory import Memory


@click.command()
@click.argument("model")
@model_options
@common
def profile(model: str, as_json: bool, **wishes: Any) -> None:
    """Count MACs, FLOPs, parameters and memory of MODEL: a folder, a checkpoint, or the name of an architecture.

    \b
    Example:
      compress profile wrn40_2 --classes 100
      compress profile torchvision/resnet50
    """
    import torch

    from compress.cli.opening import open_model
    from profiles.flops import count
    from profiles.memory import memory

    opened = open_model(model, untrained=True, **wishes)
    example = (torch.zeros(1, 3, *opened.card.image_size),)
    cost, need = count(opened.network, example), memory(opened.network, example)
    result = {
        "model": model,
        "architecture": opened.card.architecture,
        "classes": opened.card.classes,
        "input_size": opened.card.image_size,
        "trained": opened.trained,
        **asdict(cost),
        **asdict(need),
    }
    emit(result, as_json=as_json, text=describe(model, opened.card, cost, need))


def describe(model: str, card: Card, cost: Flops, need: Memory) -> str:
    """The same for people; one image, batch 1."""
    height, width = card.image_size
    rows = [
        [f"multiply-accumulates ({cost.counter})", giga(cost.macs, "GMAC")],
        ["floating point operations (2 x)", giga(cost.flops, "GFLOP")],
        ["the same by torch's counter", giga(cost.macs_torch, "GMAC")],
        ["parameters", f"{cost.params / 1e6:.3f} M"],
        ["weights, float32", f"{need.weight_bytes / 1e6:.2f} MB"],
        ["activations at their peak", f"{need.activation_peak_bytes / 1e6:.2f} MB"],
    ]
    by = [[name, giga(macs, "GMAC"), f"{macs / cost.macs:.1%}"] for name, macs in cost.by_operator.items()]
    return "\n".join(
        [
            f"{model}: {card.classes} classes, one image of {height}x{width}",
            "",
            table(rows, ["cost", "value"]),
            "",
            table(by, ["operator", cost.counter, "share"]),
            "",
            *left_out(cost),
        ]
    )


def left_out(cost: Flops) -> list[str]:
    """What the count does not hold, by name."""
    if cost.counter == "torch":
        return ["fvcore cannot trace this program: the count is torch's, which knows products only."]
    if not cost.unsupported:
        return ["No operator left out."]
    calls = [f"  {name}, {times} times" for name, times in cost.unsupported.items()]
    return ["NOT counted by fvcore, so the true cost is higher:", *calls]


def giga(count: int, unit: str) -> str:
    return f"{count / 1e9:.4f} {unit}"
