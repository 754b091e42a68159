"""What a run will cost, before anything is spent: the method is played on the meta device, then timed for a moment."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress.data import open_images
from compress.engine.display import Display
from compress.engine.place import Place, open_place
from compress.engine.player import Frozen
from compress.engine.run import Run
from compress.plan import Plan, Prepared, asked, steps_of
from compress.sources import views_of
from compress.tasks import task_of

TIMED_STEPS = 2


@dataclass(frozen=True)
class Estimate:
    """The cost of a run on this machine."""

    flops_per_step: int  #: of one iteration of the method, forward and backward (a multiply-add is two)
    state_bytes: int  #: parameters, gradients and optimizer states of all players, and the teacher
    activation_bytes: int  #: most that is kept for a backward pass at once, at the precision of the run
    seconds_per_step: float  #: median of a few timed steps on random images
    steps: int  #: iterations, or as many as fit into the time limit
    seconds: float  #: of all steps; decoding and evaluation are not in it
    unlabelled_images: int
    device: str
    precision: str


class Blank:
    """A source of random images, or of none at all on the meta device."""

    def __init__(self, size: tuple[int, int], target: tuple[int, ...], device: torch.device) -> None:
        self.shape, self.target, self.device = (3, *size), target, device

    def __len__(self) -> int:
        return 1 << 16

    def batches(self, batch_size: int, *, seed: tuple[int, ...], rank: int, world: int, augment: bool) -> BlankBatches:
        return BlankBatches(self, batch_size)


class BlankBatches:
    def __init__(self, source: Blank, n: int) -> None:
        self.source, self.n = source, n

    def at(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        device = self.source.device if self.source.device.type == "meta" else torch.device("cpu")
        generator = None if device.type == "meta" else torch.Generator().manual_seed(position)
        pixels = torch.randint(
            0, 256, (self.n, *self.source.shape), dtype=torch.uint8, device=device, generator=generator
        )
        targets = torch.zeros(self.n, *self.source.target, dtype=torch.int64, device=device)
        return pixels, targets, torch.zeros(self.n, dtype=torch.int64)


def estimate(ready: Prepared) -> Estimate:
    """Play the plan on the meta device for FLOPs and memory, and a few steps for real for the time."""
    plan = ready.plan
    place = open_place(plan.pace.device, plan.pace.precision)
    images = sum(images_of(plan, kind) for kind in ready.method.needs[:1])
    try:
        flops, state, activations = on_meta(ready, place)
    except NotImplementedError:  # a program as teacher holds real tensors and cannot be put there
        flops, state, activations = measured(rehearsal(ready, place), place)
    seconds = timed(ready, place)
    steps = steps_of(plan.pace, images)
    if steps is None:
        assert plan.pace.time_limit is not None
        steps = max(1, int(plan.pace.time_limit / seconds))
    return Estimate(
        flops, state, activations, seconds, steps, steps * seconds, images, str(place.device), place.precision
    )


def images_of(plan: Plan, kind: str) -> int:
    """How many images the cache will hold."""
    images = open_images(getattr(plan.data, kind), root=plan.data.root, split="train", labelled=kind == "labelled")
    views = views_of(plan.data, images if kind == "labelled" else images.bare())
    return min(len(images) * views, plan.data.subset or len(images) * views)


def rehearsal(ready: Prepared, place: Place, folder: Path = Path("unused")) -> tuple[Any, Run]:
    """The method and a run of it with copies of the networks and blank images."""
    card, device = ready.card, place.device
    on = (lambda net: copy.deepcopy(net).to(device)) if device.type == "meta" else copy.deepcopy
    blank = Blank(card.image_size, card.image_size if card.task == "segmentation" else (), device)
    run = Run(
        folder=folder, place=place, pace=ready.plan.pace,
        task=task_of(card),
        student=on(ready.student), teachers=[Frozen(on(net), place) for net in asked(ready)],
        sources=dict.fromkeys(ready.method.needs, blank), batch_size=ready.plan.pace.batch_size or 1, steps=1,
        display=Display("rehearsal", quiet=True),
    )  # fmt: skip
    method = copy.deepcopy(ready.method)
    method.setup(run)
    return method, run


def on_meta(ready: Prepared, place: Place) -> tuple[int, int, int]:
    return measured(rehearsal(ready, Place(torch.device("meta"), "32")), place)


def measured(made: tuple[Any, Run], place: Place) -> tuple[int, int, int]:
    """(FLOPs, bytes of state, bytes kept for backward) of one step."""
    method, run = made
    kept = Kept()
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        method.step()
    nets: list[nn.Module] = [teacher.net for teacher in run.teachers]
    state = sum(p.numel() * p.element_size() for net in nets for p in net.parameters())
    for player in run.players.values():
        learned = sum(p.numel() * p.element_size() for p in player.net.parameters())
        moments = (t for s in player.optimizer.state.values() for t in s.values() if isinstance(t, Tensor))
        state += 2 * learned + sum(t.numel() * t.element_size() for t in moments)
    narrow = 1 if run.place.precision == place.precision == "32" or run.place.device.type != "meta" else 2
    return counter.get_total_flops(), state, kept.peak // narrow


class Kept:
    """Bytes of the tensors that autograd keeps for the backward pass: now, and the most at once."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> Held:
        return Held(tensor, self)

    def unpack(self, held: Held) -> Tensor:
        return held.tensor


class Held:
    def __init__(self, tensor: Tensor, kept: Kept) -> None:
        self.tensor, self.kept = tensor, kept
        self.bytes = 0 if isinstance(tensor, nn.Parameter) else tensor.numel() * tensor.element_size()
        kept.now += self.bytes
        kept.peak = max(kept.peak, kept.now)

    def __del__(self) -> None:
        self.kept.now -= self.bytes


def timed(ready: Prepared, place: Place) -> float:
    """Median seconds of a step, after one to warm up."""
    with TemporaryDirectory() as folder:
        method, _ = rehearsal(ready, place, Path(folder))
        taken = []
        for _ in range(1 + TIMED_STEPS):
            begin = time.perf_counter()
            method.step()
            if place.device.type == "cuda":
                torch.cuda.synchronize(place.device)
            taken.append(time.perf_counter() - begin)
    return sorted(taken[1:])[TIMED_STEPS // 2]
