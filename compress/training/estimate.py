"""Estimate of a run (`--dry-run`): FLOPs and memory on the meta device, time from a few real steps."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
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
from compress.models.model_input import ModelInput
from compress.models.onnx_teacher import is_black_box
from compress.tasks import task_for_card
from compress.training.config import Size, TrainConfig
from compress.training.data import views_per_image
from compress.training.setup import TrainingSetup, count_steps, fold_teachers

TIMED_STEPS = 2
DRY_RUN_STEPS = 1000  #: length of the dry run; only a few of its steps are executed
TIMED_ITERATIONS = (1, 3)  #: iterations of the syntheses that are executed
MAX_TIMED_FLOPS = 1e12  #: FLOPs of a timed step on a CPU, about ten seconds; a heavier batch is shrunk
MIN_STUDENT_STEPS = 1000  #: a student of fewer steps has learned little with any method
MIN_TIMED_IMAGES = 4  #: smallest shrunk batch: losses over a batch and batch statistics need some images


@dataclass(frozen=True)
class EstimateResult:
    """Estimated cost of a run on this machine."""

    method: str  #: name of the method
    student: str  #: architecture of the student
    device: str  #: device of the training
    precision: str  #: precision of the training
    image_size: Size  #: input (height, width) in pixels
    batch_size: int  #: images per step
    micro_batch: int | None  #: images per forward pass of a process; null: the whole batch
    training_images: int  #: images to train on, crops included
    flops_per_step: int  #: FLOPs of one iteration, forward and backward; a multiply-add counts as two
    flops_per_synthesis: int  #: FLOPs of one batch of synthetic images; 0 without an image pool
    is_teacher_counted: bool  #: false if the FLOPs of the teacher are unknown (ONNX)
    state_bytes: int  #: parameters, gradients, optimizer states, teacher and memory banks
    activation_bytes: int  #: peak memory kept for a backward pass, at the precision of the run
    seconds_per_step: float  #: median of a few steps on random images, without synthesis
    timed_images: int  #: batch size of the timed steps; if smaller than batch_size, the time is scaled
    seconds_per_synthesis: float  #: extrapolated from short syntheses
    steps: int  #: iterations of the run, or as many as fit into the time limit
    syntheses: int  #: syntheses of the run
    seconds: float  #: time of all steps, without decoding, evaluation and setup
    teacher_input: ModelInput | None  #: how the teacher reads images, and where these facts come from
    warnings: list[str] = field(default_factory=list)  #: what makes the run fail or learn little, and the remedy


class RandomImages:
    """An `ImageSource` of random images; on the meta device without content.

    `predict_all` asks no teacher: predictions decide which images are drawn, not the cost of a step. All classes have
    the same number of images.
    """

    def __init__(self, images: int, card: ModelCard, device: torch.device) -> None:
        self.images, self.shape, self.device, self.classes = images, (3, *card.image_size), device, card.classes
        is_multilabel = card.task == "multilabel_classification"
        self.target_shape = card.image_size if card.predicts_maps else (card.classes,) if is_multilabel else ()

    def __len__(self) -> int:
        return self.images

    def batches(
        self, batch_size: int, *, seed: tuple[int, ...], rank: int, world_size: int, augment: bool,
        repeats: Repeats = None,
    ) -> RandomBatches:  # fmt: skip
        """Return batches of random pixels; only `batch_size` matters."""
        return RandomBatches(self, batch_size)

    def predict_all(self, teacher: FrozenModel) -> tuple[Tensor, Tensor]:
        """Return the classes in turn, with confidence 0.5."""
        return torch.arange(self.images) % self.classes, torch.full((self.images,), 0.5, dtype=torch.float64)


class RandomBatches:
    """Batches of random uint8 images with target 0."""

    def __init__(self, source: RandomImages, batch_size: int) -> None:
        self.source, self.batch_size = source, batch_size

    def batch_at(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (images, targets, indices) of a position."""
        device = self.source.device if self.source.device.type == "meta" else torch.device("cpu")
        generator = None if device.type == "meta" else torch.Generator().manual_seed(position)
        pixels = torch.randint(
            0, 256, (self.batch_size, *self.source.shape), dtype=torch.uint8, device=device, generator=generator
        )
        targets = torch.zeros(self.batch_size, *self.source.target_shape, dtype=torch.int64, device=device)
        return pixels, targets, torch.zeros(1, dtype=torch.int64).expand(self.batch_size)


class StepSeconds(NamedTuple):
    """Seconds of one step and of one synthesis."""

    step: float
    synthesis: float


class StepCosts(NamedTuple):
    """FLOPs of one step and one synthesis, bytes of state and of tensors kept for backward."""

    step_flops: int
    synthesis_flops: int
    state_bytes: int
    activation_bytes: int


def estimate_cost(setup: TrainingSetup, time_method: Callable[[Any, Run], StepSeconds] | None = None) -> EstimateResult:
    """Estimate the cost of a run.

    FLOPs and memory come from steps on the meta device, time from a few real steps on random images.

    Args:
        setup: from `prepare_training`.
        time_method: times a method that is set up on a run; None: `time_steps`.
    """
    config = setup.config
    accelerator = create_accelerator(config.training.device, config.training.precision)
    meta = Accelerator(torch.device("meta"), "32")
    images = {kind: count_images(config, kind) for kind in setup.method.needs}
    starts, shares = stage_shares(setup.method)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:

        def dry_run(setup: TrainingSetup, accelerator: Accelerator, start: float) -> tuple[Any, Run]:
            return build_dry_run(setup, accelerator, images=images, run_dir=Path(folder), progress=start)

        try:
            costs = [measure_costs(*dry_run(setup, meta, start), accelerator) for start in starts]
        except NotImplementedError:  # an exported program holds real tensors
            costs = [measure_costs(*dry_run(setup, accelerator, start), accelerator) for start in starts]
        lighter = shrink_batch(setup, max(costs), accelerator)
        timer = time_method or time_steps
        seconds = [scale_seconds(timer(*dry_run(lighter, accelerator, start)), lighter, setup) for start in starts]
    if config.training.time_limit is not None:
        # A stage has a share of the time then: the longer its steps, the fewer.
        shares = [share / each.step for share, each in zip(shares, seconds, strict=True)]
    weights = [share / sum(shares) for share in shares]
    average = StepSeconds(weighted_mean((each.step for each in seconds), weights), seconds[-1].synthesis)
    image_count = next(iter(images.values()), 0)
    steps, student_steps, syntheses = count_iterations(config.training, setup.method, image_count, average)
    seconds_of_run = student_steps * average.step + syntheses * average.synthesis
    warning = warn_of_few_steps(config.training.time_limit, student_steps, seconds_of_run)
    return EstimateResult(
        method=config.method["name"], student=setup.card.architecture, device=str(accelerator.device),
        precision=accelerator.precision, image_size=setup.card.image_size, batch_size=batch_size_of(setup),
        micro_batch=None if config.training.micro_batch == "auto" else config.training.micro_batch,
        training_images=image_count,
        flops_per_step=round(weighted_mean((each.step_flops for each in costs), weights)),
        flops_per_synthesis=costs[-1].synthesis_flops,
        is_teacher_counted=not any(is_black_box(net) for net, _ in setup.teachers),
        state_bytes=costs[-1].state_bytes, activation_bytes=max(each.activation_bytes for each in costs),
        seconds_per_step=average.step, timed_images=batch_size_of(lighter), seconds_per_synthesis=average.synthesis,
        steps=steps, syntheses=syntheses, seconds=seconds_of_run, teacher_input=setup.teacher_input,
        warnings=[] if warning is None else [warning],
    )  # fmt: skip


def stage_shares(method: Method) -> tuple[list[float], list[float]]:
    """Return where in the run each stage of a method starts, and its share of the run.

    A method with several stages has `stage_starts`: the shares of the run at which the later ones start.
    """
    starts = [0.0, *getattr(method, "stage_starts", ())]
    return starts, [end - start for start, end in itertools.pairwise([*starts, 1.0])]


def weighted_mean(values: Iterable[float], weights: list[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True))


def batch_size_of(setup: TrainingSetup) -> int:
    return setup.config.training.batch_size or 1


def shrink_batch(setup: TrainingSetup, costs: StepCosts, accelerator: Accelerator) -> TrainingSetup:
    """Return the setup with batches that a CPU computes in some seconds."""
    if accelerator.device.type != "cpu":
        return setup

    def shrink(images: int, flops: float) -> int:
        fitting = int(images * MAX_TIMED_FLOPS / max(flops, 1.0))
        return images if flops <= MAX_TIMED_FLOPS else min(images, max(MIN_TIMED_IMAGES, fitting))

    schedule, method = setup.config.training, setup.method
    if is_synthesizer(method):
        method = copy.deepcopy(method)
        flops = costs.synthesis_flops / method.iterations
        method.images_per_synthesis = shrink(method.images_per_synthesis, flops)
    schedule = replace(schedule, batch_size=shrink(batch_size_of(setup), costs.step_flops))
    return replace(setup, config=replace(setup.config, training=schedule), method=method)


def scale_seconds(seconds: StepSeconds, lighter: TrainingSetup, setup: TrainingSetup) -> StepSeconds:
    """Scale the seconds of shrunk batches to full ones."""
    small, full = lighter.method, setup.method
    factor = 1.0
    if is_synthesizer(small) and is_synthesizer(full):
        factor = full.images_per_synthesis / small.images_per_synthesis
    return StepSeconds(seconds.step * batch_size_of(setup) / batch_size_of(lighter), seconds.synthesis * factor)


def count_iterations(
    schedule: TrainingSchedule, method: Method, images: int, seconds: StepSeconds
) -> tuple[int, int, int]:
    """Return (steps, steps that train the student, syntheses) of the run."""
    steps, limit = count_steps(schedule, images), schedule.time_limit or 0
    if not is_synthesizer(method):
        steps = max(1, int(limit / seconds.step)) if steps is None else steps
        return steps, steps, 0
    done = trained = syntheses = 0
    while done < steps if steps is not None else trained * seconds.step + syntheses * seconds.synthesis < limit:
        synthesizes, trains = method.actions_at(done)
        done, trained, syntheses = done + 1, trained + trains, syntheses + synthesizes
    return done, trained, syntheses


def warn_of_few_steps(limit: float | None, student_steps: int, seconds: float) -> str | None:
    """Return a sentence if the time limit is too short, with one that is long enough.

    Args:
        limit: the time limit in seconds, if there is one.
        student_steps: steps of the student in this time.
        seconds: time of these steps and of all syntheses.
    """
    if limit is None or student_steps >= MIN_STUDENT_STEPS:
        return None
    advice = "a longer --time-limit"
    if student_steps:
        advice = f"--time-limit {format_time(seconds / student_steps * MIN_STUDENT_STEPS)}"
    return (
        f"training.time_limit: found {format_time(limit)}, which suffices for {student_steps} steps of the student, "
        f"expected {MIN_STUDENT_STEPS} or more; give {advice}, a smaller student or a smaller batch."
    )


def format_time(seconds: float) -> str:
    """Return a duration as the value of an option, in whole seconds, minutes or tenths of hours, rounded up."""
    if seconds < 120:
        return f"{math.ceil(seconds)}s"
    return f"{math.ceil(seconds / 60)}m" if seconds < 7200 else f"{math.ceil(seconds / 360) / 10:g}h"


def count_images(config: TrainConfig, kind: str) -> int:
    """Return the number of images that the cache will hold."""
    is_labeled = kind == "labeled"
    images = open_images(getattr(config.data, kind), root=config.data.root, split="train", labeled=is_labeled)
    count = len(images) * views_per_image(config.data, images if is_labeled else images.without_labels())
    return min(count, config.data.subset or count)


def build_dry_run(
    setup: TrainingSetup, accelerator: Accelerator, *, images: dict[str, int], run_dir: Path, progress: float = 0.0
) -> tuple[Any, Run]:
    """Set up the method on a run with copies of the networks and random images.

    Args:
        setup: from `prepare_training`.
        accelerator: where to compute; networks are copied to the meta device if it is that.
        images: number of images of each kind.
        run_dir: a temporary directory.
        progress: share of the run, in [0, 1], at which the dry run stands. A synthesizer stands at a step that both
            synthesizes and trains, with its memory banks full.
    """
    card, is_meta = setup.card, accelerator.device.type == "meta"

    def duplicate(net: nn.Module) -> nn.Module:
        return copy.deepcopy(net).to("meta") if is_meta else copy.deepcopy(net)

    run = Run(
        run_dir=run_dir, accelerator=accelerator, schedule=setup.config.training, task=task_for_card(card),
        student=duplicate(setup.student),
        teachers=[FrozenModel(duplicate(net), accelerator) for net in fold_teachers(setup)],
        sources={kind: RandomImages(count, card, accelerator.device) for kind, count in images.items()},
        batch_size=batch_size_of(setup), steps=DRY_RUN_STEPS, display=ProgressDisplay("dry run", quiet=True),
    )  # fmt: skip
    method = copy.deepcopy(setup.method)
    method.setup(run)
    run.step = math.ceil(progress * DRY_RUN_STEPS)
    if is_synthesizer(method):
        run.step = next(step for step in itertools.count() if all(method.actions_at(step)))
        for bank in memory_banks(run):
            bank.mark_full()
    return method, run


def memory_banks(run: Run) -> list[MemoryBank]:
    return [stateful for stateful, _ in run.registered.values() if isinstance(stateful, MemoryBank)]


def measure_costs(method: Any, run: Run, accelerator: Accelerator) -> StepCosts:
    """Count one step and one synthesis; `accelerator` is the one of the real run."""
    peaks: list[int] = []

    def count_flops(call: Callable[[], object]) -> int:
        meter = SavedTensorMeter()
        hooks = torch.autograd.graph.saved_tensors_hooks(meter.pack, meter.unpack)
        with FlopCounterMode(display=False) as counter, hooks:
            call()
        peaks.append(meter.peak)
        return counter.get_total_flops()

    step, synthesis_flops = method.step, 0
    if is_synthesizer(method):
        step, synthesis_flops = method.train_student, int(extrapolate_synthesis(method, count_flops))
    step_flops = count_flops(step)
    state = sum(bytes_of(p) for teacher in run.teachers for p in teacher.net.parameters())
    state += sum(bytes_of(bank.table) for bank in memory_banks(run))
    for model in run.trainables.values():
        parameters = sum(bytes_of(p) for p in model.net.parameters())
        moments = (t for values in model.optimizer.state.values() for t in values.values() if isinstance(t, Tensor))
        state += 2 * parameters + sum(bytes_of(t) for t in moments)
    # On the meta device everything is float32.
    is_halved = run.accelerator.device.type == "meta" and accelerator.precision != "32"
    return StepCosts(step_flops, synthesis_flops, state, max(peaks) // (2 if is_halved else 1))


def bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def extrapolate_synthesis(
    method: Synthesizer, measure: Callable[[Callable[[], object]], float], *, warm_up: bool = False
) -> float:
    """Extrapolate the cost of a synthesis from two short ones; with `warm_up` after one that does not count."""
    iterations, costs = method.iterations, []
    for short in (TIMED_ITERATIONS[0], *TIMED_ITERATIONS) if warm_up else TIMED_ITERATIONS:
        method.iterations = short
        costs.append(measure(method.synthesize))
    method.iterations = iterations
    first, second = costs[-2:]
    per_iteration = max(0, second - first) / (TIMED_ITERATIONS[1] - TIMED_ITERATIONS[0])
    return first + per_iteration * (iterations - TIMED_ITERATIONS[0])


class SavedTensorMeter:
    """Bytes of the tensors that autograd keeps for the backward pass: now, and at the peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> SavedTensor:
        return SavedTensor(tensor, self)

    def unpack(self, saved: SavedTensor) -> Tensor:
        return saved.tensor


class SavedTensor:
    """A tensor kept for backward; parameters cost nothing."""

    def __init__(self, tensor: Tensor, meter: SavedTensorMeter) -> None:
        self.tensor, self.meter = tensor, meter
        self.bytes = 0 if isinstance(tensor, nn.Parameter) else bytes_of(tensor)
        meter.now += self.bytes
        meter.peak = max(meter.peak, meter.now)

    def __del__(self) -> None:
        self.meter.now -= self.bytes


def time_steps(method: Any, run: Run) -> StepSeconds:
    """Return the median seconds of a step, after one warm-up step, and those of a synthesis."""

    def measure_seconds(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if run.accelerator.device.type == "cuda":
            torch.cuda.synchronize(run.accelerator.device)
        return time.perf_counter() - start

    step, synthesis = method.step, 0.0
    if is_synthesizer(method):
        step, synthesis = method.train_student, extrapolate_synthesis(method, measure_seconds, warm_up=True)
    seconds = [measure_seconds(step) for _ in range(1 + TIMED_STEPS)]
    return StepSeconds(sorted(seconds[1:])[TIMED_STEPS // 2], synthesis)
