"""One of two processes that play every method together; what came out is written for the test to compare.

Argument: the folder. RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT come from the environment, as torchrun sets them.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import contract
import tiny
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import SGD

from compress.engine.place import open_place
from compress.engine.play import play
from compress.engine.player import Player
from compress.engine.pool import ImagePool
from compress.engine.schedules import constant
from compress.engine.stream import Stream
from compress.methods import METHODS


def prints(state: Any) -> dict[str, str]:
    return {k: tiny.fingerprint(v) if isinstance(v, torch.Tensor) else repr(v) for k, v in tiny.flat(state).items()}


def lives(folder: Path, name: str, precision: str) -> dict[str, Any]:
    """A run in one go, and one that both processes die in and resume."""
    place = open_place("cpu", precision)  # pyright: ignore[reportArgumentType]
    make = partial(tiny.tiny_run, name=name, place=place, save=2, evaluate=2, validate=tiny.share_of_class_0, keep=True)
    whole = make(folder / "whole")
    play(tiny.tiny_method(name), whole)
    try:
        play(contract.Dying(tiny.tiny_method(name), 3), make(folder / "cut"))
    except contract.Killed:
        torch.manual_seed(99)
    rest = make(folder / "cut")
    play(tiny.tiny_method(name), rest)
    one, other = tiny.finished(whole), tiny.finished(rest)
    streams = {name: kept for name, (kept, _) in whole.kept.items() if isinstance(kept, Stream)}
    pools = [kept for kept, _ in whole.kept.values() if isinstance(kept, ImagePool)]
    return {
        "differs after resuming": tiny.differences(one, other, ignore=contract.CLOCK),
        "players": prints({n: player.state_dict() for n, player in whole.players.items()}),
        "random": tiny.fingerprint(torch.get_rng_state()),
        "positions": {name: stream.position for name, stream in streams.items()},
        "first images": [float(stream.batches.at(0)[0].float().mean()) for stream in streams.values()],
        "made": [tiny.fingerprint(pool.pixels) for pool in pools],
    }


def mean_gradient() -> float:
    """How far a step on two halves of a batch is from the step on all of it: 0, up to rounding."""
    place = open_place("cpu", "32")
    x, y = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), torch.arange(8.0)
    torch.manual_seed(0)
    net, alone = nn.Linear(5, 1), nn.Linear(5, 1)
    alone.load_state_dict(net.state_dict())
    S = Player("S", net, place, partial(SGD, lr=0.1), constant)
    half = slice(4 * place.rank, 4 * place.rank + 4)
    S.minimize((S(x[half])[:, 0] - y[half]).square().mean())
    (alone(x)[:, 0] - y).square().mean().backward()
    with torch.no_grad():
        return max(
            float((p - (q - 0.1 * q.grad)).abs().max())
            for p, q in zip(net.parameters(), alone.parameters(), strict=True)
            if q.grad is not None
        )


if __name__ == "__main__":
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    place = open_place("cpu", "32")
    found = {f"{n} {p}": lives(root / n / p, n, p) for n in METHODS for p in ("32", "bf16")}
    found["mean gradient"] = {"off by": mean_gradient()}
    (root / f"rank{place.rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
