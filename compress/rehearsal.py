"""What a run will cost, before anything is spent: the method is played on the meta device, then timed for a moment."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress.data import open_images
from compress.engine.display import Display
from compress.engine.method import Method
from compress.engine.pace import Pace
from compress.engine.place import Place, open_place
from compress.engine.player import Frozen
from compress.engine.ring import Ring
from compress.engine.run import Run
from compress.engine.stream import Times
from compress.engine.synthesis import Synthesizer, synthesizes
from compress.models.card import Card
from compress.plan import Plan, Prepared, asked, steps_of
from compress.sources import views_of
from compress.tasks import task_of

TIMED_STEPS = 2
PLAYED = 1000  #: steps of the run that is played, of which a few are
FEW = (1, 3)  #: iterations of the syntheses that are played
HEAVY = 1e12  #: FLOP that a step on a CPU is timed with, if it can be had with fewer images: some ten seconds
FEW_IMAGES = 4  #: fewer are not representative: a batch's shares and its statistics need some


@dataclass(frozen=True)
class Estimate:
    """The cost of a run on this machine."""

    flops_per_step: int  #: of one iteration of the method, forward and backward (a multiply-add is two)
    flops_per_synthesis: int  #: of making a batch of images for the pool, before a step now and then; 0: no pool
    state_bytes: int  #: parameters, gradients and optimizer states of all players, the teacher, and a bank
    activation_bytes: int  #: most that is kept for a backward pass at once, at the precision of the run
    #: median of a few timed steps on random images, without a synthesis; of fewer images where the batch is heavy, and
    #: then in proportion
    seconds_per_step: float
    timed_images: int  #: of a batch in the steps that were timed
    seconds_per_synthesis: float  #: reckoned from short ones
    steps: int  #: iterations, or as many as fit into the time limit
    syntheses: int  #: within these steps
    seconds: float  #: of all steps; decoding, evaluation and what is asked once before the first are not in it
    unlabelled_images: int
    device: str
    precision: str


class Blank:
    """A source of random images, or of none at all on the meta device; as many as the run will have.

    No teacher is asked about all of them: that is done once, before the first step, and its answers decide which images
    are drawn, not what a step costs. Each class stands for as many images as any other.
    """

    def __init__(self, images: int, card: Card, device: torch.device) -> None:
        self.images, self.shape, self.device, self.classes = images, (3, *card.image_size), device, card.classes
        self.target = card.image_size if card.task == "segmentation" else ()

    def __len__(self) -> int:
        return self.images

    def batches(
        self, batch_size: int, *, seed: tuple[int, ...], rank: int, world: int, augment: bool, times: Times = None
    ) -> BlankBatches:
        return BlankBatches(self, batch_size)

    def answers(self, teacher: Frozen) -> tuple[Tensor, Tensor]:
        return torch.arange(self.images) % self.classes, torch.full((self.images,), 0.5, dtype=torch.float64)


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


def estimate(ready: Prepared, clock: Callable[[Any, Run], Seconds] | None = None) -> Estimate:
    """Play the plan on the meta device for FLOPs and memory, and a few steps for real for the time.

    `clock`: what times them; None is `timed`.
    """
    plan = ready.plan
    place = open_place(plan.pace.device, plan.pace.precision)
    images = {kind: images_of(plan, kind) for kind in ready.method.needs}
    begins, shares = stages(ready.method)
    with TemporaryDirectory() as folder:

        def play(place: Place, ready: Prepared, begin: float) -> tuple[Any, Run]:
            return rehearsal(ready, place, images=images, folder=Path(folder), progress=begin)

        try:
            counts = [measured(play(Place(torch.device("meta"), "32"), ready, begin), place) for begin in begins]
        except NotImplementedError:  # a program as teacher holds real tensors and cannot be put there
            counts = [measured(play(place, ready, begin), place) for begin in begins]
        lighter = light(ready, max(counts), place)
        seconds = [in_proportion((clock or timed)(*play(place, lighter, begin)), lighter, ready) for begin in begins]
    if plan.pace.time_limit is not None:
        # A stage then has its share of the time: the longer its steps, the fewer.
        shares = [share / each.a_step for share, each in zip(shares, seconds, strict=True)]
    weights = [share / sum(shares) for share in shares]
    whole = Seconds(mean((each.a_step for each in seconds), weights), seconds[-1].a_synthesis)
    first = next(iter(images.values()), 0)
    steps, learned, syntheses = schedule(plan.pace, ready.method, first, whole)
    return Estimate(
        flops_per_step=round(mean((each.a_step for each in counts), weights)),
        flops_per_synthesis=counts[-1].a_synthesis,
        state_bytes=counts[-1].state, activation_bytes=max(each.activations for each in counts),
        seconds_per_step=whole.a_step, seconds_per_synthesis=whole.a_synthesis,
        timed_images=batch_of(lighter), steps=steps, syntheses=syntheses,
        seconds=learned * whole.a_step + syntheses * whole.a_synthesis, unlabelled_images=first,
        device=str(place.device), precision=place.precision,
    )  # fmt: skip


def stages(method: Method) -> tuple[list[float], list[float]]:
    """Where in the run each stage of a method begins, and each one's share of the run; its steps cost the same.

    A method of several has `stages`, the shares of the run at which they begin.
    """
    begins = [0.0, *getattr(method, "stages", ())]
    return begins, [end - begin for begin, end in itertools.pairwise([*begins, 1.0])]


def mean(values: Iterable[float], weights: list[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True))


class Seconds(NamedTuple):
    a_step: float
    a_synthesis: float


class Counts(NamedTuple):
    """FLOPs of a step and of a synthesis; bytes of state, and of what is kept for backward."""

    a_step: int
    a_synthesis: int
    state: int
    activations: int


def batch_of(ready: Prepared) -> int:
    return ready.plan.pace.batch_size or 1


def light(ready: Prepared, counts: Counts, place: Place) -> Prepared:
    """The plan with as many images a batch, and a synthesis, as can be timed on a CPU in some seconds."""
    if place.device.type != "cpu":
        return ready

    def fewer(images: int, flops: float) -> int:
        return images if flops <= HEAVY else min(images, max(FEW_IMAGES, int(images * HEAVY / flops)))

    pace, method = ready.plan.pace, ready.method
    if synthesizes(method):
        method = copy.deepcopy(method)
        method.images = fewer(method.images, counts.a_synthesis / method.iterations)
    pace = replace(pace, batch_size=fewer(batch_of(ready), counts.a_step))
    return replace(ready, plan=replace(ready.plan, pace=pace), method=method)


def in_proportion(seconds: Seconds, lighter: Prepared, ready: Prepared) -> Seconds:
    """What the plan takes, told from what it takes with fewer images."""
    few, many = lighter.method, ready.method
    images = many.images / few.images if synthesizes(few) and synthesizes(many) else 1.0
    return Seconds(seconds.a_step * batch_of(ready) / batch_of(lighter), seconds.a_synthesis * images)


def schedule(pace: Pace, method: Method, images: int, seconds: Seconds) -> tuple[int, int, int]:
    """(steps, those in which the student learns, syntheses) of the run."""
    steps = steps_of(pace, images)
    if not synthesizes(method):
        steps = max(1, int((pace.time_limit or 0) / seconds.a_step)) if steps is None else steps
        return steps, steps, 0
    done = learned = syntheses = 0
    while done < steps if steps is not None else learned * seconds[0] + syntheses * seconds[1] < (pace.time_limit or 0):
        makes, learns = method.acts(done)
        done, learned, syntheses = done + 1, learned + learns, syntheses + makes
    return done, learned, syntheses


def images_of(plan: Plan, kind: str) -> int:
    """How many images the cache will hold."""
    images = open_images(getattr(plan.data, kind), root=plan.data.root, split="train", labelled=kind == "labelled")
    views = views_of(plan.data, images if kind == "labelled" else images.bare())
    return min(len(images) * views, plan.data.subset or len(images) * views)


def rehearsal(
    ready: Prepared, place: Place, *, images: dict[str, int], folder: Path, progress: float = 0.0
) -> tuple[Any, Run]:
    """The method and a run of it with copies of the networks and blank images, as many of a kind as `images` says.

    It is where so much of the run is done; a method that makes images is where it does so and the student learns, with
    its bank full.
    """
    card, device = ready.card, place.device
    on = (lambda net: copy.deepcopy(net).to(device)) if device.type == "meta" else copy.deepcopy
    run = Run(
        folder=folder, place=place, pace=ready.plan.pace,
        task=task_of(card),
        student=on(ready.student), teachers=[Frozen(on(net), place) for net in asked(ready)],
        sources={kind: Blank(count, card, device) for kind, count in images.items()},
        batch_size=batch_of(ready), steps=PLAYED,
        display=Display("rehearsal", quiet=True),
    )  # fmt: skip
    method = copy.deepcopy(ready.method)
    method.setup(run)
    run.step = math.ceil(progress * PLAYED)
    if synthesizes(method):
        run.step = next(step for step in itertools.count() if all(method.acts(step)))
        for ring in rings(run):
            ring.fill()
    return method, run


def rings(run: Run) -> list[Ring]:
    return [thing for thing, _ in run.kept.values() if isinstance(thing, Ring)]


def measured(made: tuple[Any, Run], place: Place) -> Counts:
    """What one step, and one synthesis, takes."""
    method, run = made
    peaks: list[int] = []

    def flops(act: Callable[[], object]) -> int:
        kept = Kept()
        hooks = torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack)
        with FlopCounterMode(display=False) as counter, hooks:
            act()
        peaks.append(kept.peak)
        return counter.get_total_flops()

    act, a_synthesis = method.step, 0
    if synthesizes(method):
        act, a_synthesis = method.learn, int(whole(method, flops))
    a_step = flops(act)
    nets: list[nn.Module] = [teacher.net for teacher in run.teachers]
    state = sum(p.numel() * p.element_size() for net in nets for p in net.parameters())
    state += sum(ring.table.numel() * ring.table.element_size() for ring in rings(run))
    for player in run.players.values():
        learned = sum(p.numel() * p.element_size() for p in player.net.parameters())
        moments = (t for s in player.optimizer.state.values() for t in s.values() if isinstance(t, Tensor))
        state += 2 * learned + sum(t.numel() * t.element_size() for t in moments)
    narrow = 1 if run.place.precision == place.precision == "32" or run.place.device.type != "meta" else 2
    return Counts(a_step, a_synthesis, state, max(peaks) // narrow)


def whole(method: Synthesizer, cost: Callable[[Callable[[], object]], float], *, warm: bool = False) -> float:
    """What a synthesis costs, told from two of few iterations, which cost the same each; `warm`: after one that does
    not count.
    """
    wanted, costs = method.iterations, []
    for few in (FEW[0], *FEW) if warm else FEW:
        method.iterations = few
        costs.append(cost(method.synthesize))
    method.iterations = wanted
    once, several = costs[-2:]
    return once + max(0, several - once) / (FEW[1] - FEW[0]) * (wanted - FEW[0])


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


def timed(method: Any, run: Run) -> Seconds:
    """Median seconds of a step, after one to warm up; and of a synthesis."""

    def seconds(act: Callable[[], object]) -> float:
        begin = time.perf_counter()
        act()
        if run.place.device.type == "cuda":
            torch.cuda.synchronize(run.place.device)
        return time.perf_counter() - begin

    act, a_synthesis = method.step, 0.0
    if synthesizes(method):
        act, a_synthesis = method.learn, whole(method, seconds, warm=True)
    taken = [seconds(act) for _ in range(1 + TIMED_STEPS)]
    return Seconds(sorted(taken[1:])[TIMED_STEPS // 2], a_synthesis)
