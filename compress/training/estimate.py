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
from compress.engine.accelerator import Accelerator, create_accelerator
from compress.engine.config import TrainingSchedule
from compress.engine.logging import ProgressDisplay
from compress.engine.memory_bank import MemoryBank
from compress.engine.method import Method
from compress.engine.run import Run
from compress.engine.stream import Repeats
from compress.engine.synthesis import Synthesizer, is_synthesizer
from compress.engine.trainable import FrozenModel
from compress.models.card import ModelCard
from compress.training.setup import TrainConfig, TrainingSetup, count_steps, fold_teachers
from compress.training.data import views_per_image
from compress.tasks import task_for_card

TIMED_STEPS = 2
DRY_RUN_STEPS = 1000  #: steps of the run that is played, of which a few are
TIMED_ITERATIONS = (1, 3)  #: iterations of the syntheses that are played
MAX_TIMED_FLOPS = 1e12  #: FLOP that a step on a CPU is timed with, if it can be had with fewer images: some ten seconds
MIN_TIMED_IMAGES = 4  #: fewer are not representative: a batch's shares and its statistics need some


@dataclass(frozen=True)
class EstimateResult:
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
    training_images: int
    device: str
    precision: str


class RandomImages:
    """A source of random images, or of none at all on the meta device; as many as the run will have.

    No teacher is asked about all of them: that is done once, before the first step, and its answers decide which images
    are drawn, not what a step costs. Each class stands for as many images as any other.
    """

    def __init__(self, images: int, card: ModelCard, device: torch.device) -> None:
        self.images, self.shape, self.device, self.classes = images, (3, *card.image_size), device, card.classes
        self.target = card.image_size if card.task == "segmentation" else ()

    def __len__(self) -> int:
        return self.images

    def batches(
        self, batch_size: int, *, seed: tuple[int, ...], rank: int, world: int, augment: bool, times: Repeats = None
    ) -> RandomBatches:
        return RandomBatches(self, batch_size)

    def answers(self, teacher: FrozenModel) -> tuple[Tensor, Tensor]:
        return torch.arange(self.images) % self.classes, torch.full((self.images,), 0.5, dtype=torch.float64)


class RandomBatches:
    def __init__(self, source: RandomImages, n: int) -> None:
        self.source, self.n = source, n

    def at(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        device = self.source.device if self.source.device.type == "meta" else torch.device("cpu")
        generator = None if device.type == "meta" else torch.Generator().manual_seed(position)
        pixels = torch.randint(
            0, 256, (self.n, *self.source.shape), dtype=torch.uint8, device=device, generator=generator
        )
        targets = torch.zeros(self.n, *self.source.target, dtype=torch.int64, device=device)
        return pixels, targets, torch.zeros(self.n, dtype=torch.int64)


def estimate_cost(ready: TrainingSetup, clock: Callable[[Any, Run], StepSeconds] | None = None) -> EstimateResult:
    """Play the plan on the meta device for FLOPs and memory, and a few steps for real for the time.

    `clock`: what times them; None is `timed`.
    """
    plan = ready.config
    place = create_accelerator(plan.training.device, plan.training.precision)
    images = {kind: count_images(plan, kind) for kind in ready.method.needs}
    begins, shares = stage_shares(ready.method)
    with TemporaryDirectory() as folder:

        def play(place: Accelerator, ready: TrainingSetup, begin: float) -> tuple[Any, Run]:
            return build_dry_run(ready, place, images=images, folder=Path(folder), progress=begin)

        try:
            counts = [measure_costs(play(Accelerator(torch.device("meta"), "32"), ready, begin), place) for begin in begins]
        except NotImplementedError:  # a program as teacher holds real tensors and cannot be put there
            counts = [measure_costs(play(place, ready, begin), place) for begin in begins]
        lighter = shrink_batch(ready, max(counts), place)
        seconds = [scale_seconds((clock or time_steps)(*play(place, lighter, begin)), lighter, ready) for begin in begins]
    if plan.training.time_limit is not None:
        # A stage then has its share of the time: the longer its steps, the fewer.
        shares = [share / each.step for share, each in zip(shares, seconds, strict=True)]
    weights = [share / sum(shares) for share in shares]
    whole = StepSeconds(weighted_mean((each.step for each in seconds), weights), seconds[-1].synthesis)
    first = next(iter(images.values()), 0)
    steps, learned, syntheses = count_iterations(plan.training, ready.method, first, whole)
    return EstimateResult(
        flops_per_step=round(weighted_mean((each.step_flops for each in counts), weights)),
        flops_per_synthesis=counts[-1].synthesis_flops,
        state_bytes=counts[-1].state_bytes, activation_bytes=max(each.activation_bytes for each in counts),
        seconds_per_step=whole.step, seconds_per_synthesis=whole.synthesis,
        timed_images=batch_size_of(lighter), steps=steps, syntheses=syntheses,
        seconds=learned * whole.step + syntheses * whole.synthesis, training_images=first,
        device=str(place.device), precision=place.precision,
    )  # fmt: skip


def stage_shares(method: Method) -> tuple[list[float], list[float]]:
    """Where in the run each stage of a method begins, and each one's share of the run; its steps cost the same.

    A method of several has `stages`, the shares of the run at which they begin.
    """
    begins = [0.0, *getattr(method, "stage_starts", ())]
    return begins, [end - begin for begin, end in itertools.pairwise([*begins, 1.0])]


def weighted_mean(values: Iterable[float], weights: list[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True))


class StepSeconds(NamedTuple):
    step: float
    synthesis: float


class StepCosts(NamedTuple):
    """FLOPs of a step and of a synthesis; bytes of state, and of what is kept for backward."""

    step_flops: int
    synthesis_flops: int
    state_bytes: int
    activation_bytes: int


def batch_size_of(ready: TrainingSetup) -> int:
    return ready.config.training.batch_size or 1


def shrink_batch(ready: TrainingSetup, counts: StepCosts, place: Accelerator) -> TrainingSetup:
    """The plan with as many images a batch, and a synthesis, as can be timed on a CPU in some seconds."""
    if place.device.type != "cpu":
        return ready

    def fewer(images: int, flops: float) -> int:
        return images if flops <= MAX_TIMED_FLOPS else min(images, max(MIN_TIMED_IMAGES, int(images * MAX_TIMED_FLOPS / flops)))

    pace, method = ready.config.training, ready.method
    if is_synthesizer(method):
        method = copy.deepcopy(method)
        method.images_per_synthesis = fewer(method.images_per_synthesis, counts.synthesis_flops / method.iterations)
    pace = replace(pace, batch_size=fewer(batch_size_of(ready), counts.step_flops))
    return replace(ready, plan=replace(ready.config, pace=pace), method=method)


def scale_seconds(seconds: StepSeconds, lighter: TrainingSetup, ready: TrainingSetup) -> StepSeconds:
    """What the plan takes, told from what it takes with fewer images."""
    few, many = lighter.method, ready.method
    images = many.images_per_synthesis / few.images_per_synthesis if is_synthesizer(few) and is_synthesizer(many) else 1.0
    return StepSeconds(seconds.step * batch_size_of(ready) / batch_size_of(lighter), seconds.synthesis * images)


def count_iterations(pace: TrainingSchedule, method: Method, images: int, seconds: StepSeconds) -> tuple[int, int, int]:
    """(steps, those in which the student learns, syntheses) of the run."""
    steps = count_steps(pace, images)
    if not is_synthesizer(method):
        steps = max(1, int((pace.time_limit or 0) / seconds.step)) if steps is None else steps
        return steps, steps, 0
    done = learned = syntheses = 0
    while done < steps if steps is not None else learned * seconds[0] + syntheses * seconds[1] < (pace.time_limit or 0):
        makes, learns = method.actions_at(done)
        done, learned, syntheses = done + 1, learned + learns, syntheses + makes
    return done, learned, syntheses


def count_images(plan: TrainConfig, kind: str) -> int:
    """How many images the cache will hold."""
    images = open_images(getattr(plan.data, kind), root=plan.data.root, split="train", labeled=kind == "labeled")
    views = views_per_image(plan.data, images if kind == "labeled" else images.without_labels())
    return min(len(images) * views, plan.data.subset or len(images) * views)


def build_dry_run(
    ready: TrainingSetup, place: Accelerator, *, images: dict[str, int], folder: Path, progress: float = 0.0
) -> tuple[Any, Run]:
    """The method and a run of it with copies of the networks and blank images, as many of a kind as `images` says.

    It is where so much of the run is done; a method that makes images is where it does so and the student learns, with
    its bank full.
    """
    card, device = ready.card, place.device
    on = (lambda net: copy.deepcopy(net).to(device)) if device.type == "meta" else copy.deepcopy
    run = Run(
        run_dir=folder, accelerator=place, schedule=ready.config.training,
        task=task_for_card(card),
        student=on(ready.student), teachers=[FrozenModel(on(net), place) for net in fold_teachers(ready)],
        sources={kind: RandomImages(count, card, device) for kind, count in images.items()},
        batch_size=batch_size_of(ready), steps=DRY_RUN_STEPS,
        display=ProgressDisplay("rehearsal", quiet=True),
    )  # fmt: skip
    method = copy.deepcopy(ready.method)
    method.setup(run)
    run.step = math.ceil(progress * DRY_RUN_STEPS)
    if is_synthesizer(method):
        run.step = next(step for step in itertools.count() if all(method.actions_at(step)))
        for ring in memory_banks(run):
            ring.mark_full()
    return method, run


def memory_banks(run: Run) -> list[MemoryBank]:
    return [thing for thing, _ in run.registered.values() if isinstance(thing, MemoryBank)]


def measure_costs(made: tuple[Any, Run], place: Accelerator) -> StepCosts:
    """What one step, and one synthesis, takes."""
    method, run = made
    peaks: list[int] = []

    def flops(act: Callable[[], object]) -> int:
        kept = SavedTensorMeter()
        hooks = torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack)
        with FlopCounterMode(display=False) as counter, hooks:
            act()
        peaks.append(kept.peak)
        return counter.get_total_flops()

    act, a_synthesis = method.step, 0
    if is_synthesizer(method):
        act, a_synthesis = method.train_student, int(extrapolate_synthesis(method, flops))
    a_step = flops(act)
    nets: list[nn.Module] = [teacher.net for teacher in run.teachers]
    state = sum(p.numel() * p.element_size() for net in nets for p in net.parameters())
    state += sum(ring.table.numel() * ring.table.element_size() for ring in memory_banks(run))
    for player in run.trainables.values():
        learned = sum(p.numel() * p.element_size() for p in player.net.parameters())
        moments = (t for s in player.optimizer.state.values() for t in s.values() if isinstance(t, Tensor))
        state += 2 * learned + sum(t.numel() * t.element_size() for t in moments)
    narrow = 1 if run.accelerator.precision == place.precision == "32" or run.accelerator.device.type != "meta" else 2
    return StepCosts(a_step, a_synthesis, state, max(peaks) // narrow)


def extrapolate_synthesis(method: Synthesizer, cost: Callable[[Callable[[], object]], float], *, warm: bool = False) -> float:
    """What a synthesis costs, told from two of few iterations, which cost the same each; `warm`: after one that does
    not count.
    """
    wanted, costs = method.iterations, []
    for few in (TIMED_ITERATIONS[0], *TIMED_ITERATIONS) if warm else TIMED_ITERATIONS:
        method.iterations = few
        costs.append(cost(method.synthesize))
    method.iterations = wanted
    once, several = costs[-2:]
    return once + max(0, several - once) / (TIMED_ITERATIONS[1] - TIMED_ITERATIONS[0]) * (wanted - TIMED_ITERATIONS[0])


class SavedTensorMeter:
    """Bytes of the tensors that autograd keeps for the backward pass: now, and the most at once."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> SavedTensor:
        return SavedTensor(tensor, self)

    def unpack(self, held: SavedTensor) -> Tensor:
        return held.tensor


class SavedTensor:
    def __init__(self, tensor: Tensor, kept: SavedTensorMeter) -> None:
        self.tensor, self.kept = tensor, kept
        self.bytes = 0 if isinstance(tensor, nn.Parameter) else tensor.numel() * tensor.element_size()
        kept.now += self.bytes
        kept.peak = max(kept.peak, kept.now)

    def __del__(self) -> None:
        self.kept.now -= self.bytes


def time_steps(method: Any, run: Run) -> StepSeconds:
    """Median seconds of a step, after one to warm up; and of a synthesis."""

    def seconds(act: Callable[[], object]) -> float:
        begin = time.perf_counter()
        act()
        if run.accelerator.device.type == "cuda":
            torch.cuda.synchronize(run.accelerator.device)
        return time.perf_counter() - begin

    act, a_synthesis = method.step, 0.0
    if is_synthesizer(method):
        act, a_synthesis = method.train_student, extrapolate_synthesis(method, seconds, warm=True)
    taken = [seconds(act) for _ in range(1 + TIMED_STEPS)]
    return StepSeconds(sorted(taken[1:])[TIMED_STEPS // 2], a_synthesis)
