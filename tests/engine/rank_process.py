"""One of two processes that train with several methods; writes its results for the test.

Arguments: the folder, the precision, the methods. RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT come from the
environment, as torchrun sets them.
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
from torch import Tensor, nn
from torch.optim import SGD

from compress.engine.accelerator import create_accelerator
from compress.engine.image_pool import ImagePool
from compress.engine.run import Run
from compress.engine.schedules import constant
from compress.engine.stream import Stream
from compress.engine.trainable import TrainableModel
from compress.engine.trainer import train


def state_hashes(state: Any) -> dict[str, str]:
    return {k: tiny.hash_tensor(v) if isinstance(v, Tensor) else repr(v) for k, v in tiny.flatten_state(state).items()}


def compare_runs(folder: Path, name: str, precision: str) -> dict[str, Any]:
    """Compare an uninterrupted run with one that both processes resume."""
    accelerator = create_accelerator("cpu", precision)  # pyright: ignore[reportArgumentType]
    make = partial(
        tiny.tiny_run,
        name=name,
        accelerator=accelerator,
        save_every=2,
        evaluate_every=2,
        validate=tiny.score_class_0,
        save_models=True,
    )
    whole = make(folder / "whole")
    train(tiny.tiny_method(name), whole)
    try:
        train(contract.FailingMethod(tiny.tiny_method(name), 3), make(folder / "cut"))
    except contract.Killed:
        torch.manual_seed(99)
    rest = make(folder / "cut")
    train(tiny.tiny_method(name), rest)
    one, other = tiny.final_state(whole), tiny.final_state(rest)
    streams = {name: stateful for name, (stateful, _) in whole.registered.items() if isinstance(stateful, Stream)}
    pools = [stateful for stateful, _ in whole.registered.values() if isinstance(stateful, ImagePool)]
    return {
        "differences": tiny.state_differences(one, other, ignore=contract.CLOCK),
        "trainables": state_hashes({n: model.state_dict() for n, model in whole.trainables.items()}),
        "random": tiny.hash_tensor(torch.get_rng_state()),
        "positions": {name: stream.position for name, stream in streams.items()},
        "first images": [float(stream.batches.batch_at(0)[0].float().mean()) for stream in streams.values()],
        "pools": [tiny.hash_tensor(pool.pixels) for pool in pools],
    }


def mean_gradient() -> float:
    """Return the difference between a step on two halves of a batch and one on the whole batch."""
    accelerator = create_accelerator("cpu", "32")
    x, y = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), torch.arange(8.0)
    torch.manual_seed(0)
    net, alone = nn.Linear(5, 1), nn.Linear(5, 1)
    alone.load_state_dict(net.state_dict())
    S = TrainableModel("S", net, accelerator, partial(SGD, lr=0.1), constant)
    half = slice(4 * accelerator.rank, 4 * accelerator.rank + 4)
    S.optimization_step((S(x[half])[:, 0] - y[half]).square().mean())
    (alone(x)[:, 0] - y).square().mean().backward()
    with torch.no_grad():
        return max(
            float((p - (q - 0.1 * q.grad)).abs().max())
            for p, q in zip(net.parameters(), alone.parameters(), strict=True)
            if q.grad is not None
        )


class PoisonedOnRank1:
    """KD whose loss on rank 1 alone is NaN, in the second and the fifth step."""

    def __init__(self) -> None:
        self.method = tiny.tiny_method("kd")

    def setup(self, run: Run) -> None:
        self.run = run
        self.method.setup(run)
        optimization_step = run.trainables["S"].optimization_step

        def poisoned(loss: Tensor) -> None:
            is_poisoned = run.accelerator.rank == 1 and run.step + 1 == (2, 5, 0)[len(run.rollbacks)]
            optimization_step(loss * float("nan") if is_poisoned else loss)

        run.trainables["S"].optimization_step = poisoned  # pyright: ignore[reportAttributeAccessIssue]

    def step(self) -> dict[str, Tensor]:
        return self.method.step()


def roll_back_together(folder: Path) -> dict[str, Any]:
    """Train with two failures of one process; both processes return to the same state."""
    accelerator = create_accelerator("cpu", "32")
    run = tiny.tiny_run(folder, "kd", accelerator=accelerator, steps=8, save_every=2, log_every=100, evaluate_every=100)
    train(PoisonedOnRank1(), run)  # pyright: ignore[reportArgumentType]
    steps = [(rollback["step"], rollback["to_step"]) for rollback in run.rollbacks]
    return {"steps": steps, "weights": state_hashes(run.trainables["S"].state_dict())}


if __name__ == "__main__":
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    accelerator = create_accelerator("cpu", "32")
    results = {name: compare_runs(root / name, name, sys.argv[2]) for name in sys.argv[3:]}
    results["rollbacks"] = roll_back_together(root / "rollbacks")
    results["mean gradient"] = {"error": mean_gradient()}
    (root / f"rank{accelerator.rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()
