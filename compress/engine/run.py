"""A training run. All state is created through it, so checkpoints are complete."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compress.engine.accelerator import Accelerator
from compress.engine.checkpoint import Checkpoint, CheckpointManager
from compress.engine.config import TrainingSchedule
from compress.engine.ema import ExponentialMovingAverage
from compress.engine.image_pool import ImagePool
from compress.engine.logging import MetricsLogger, ProgressDisplay, save_image_grid
from compress.engine.schedules import Schedule, cosine
from compress.engine.stream import ImageSource, Repeats, Stream
from compress.engine.trainable import (
    DivergedError,
    FrozenModel,
    GradScaler,
    OptimizerFactory,
    TrainableModel,
    create_grad_scaler,
    eval_mode,
)

SECONDS_BETWEEN_SAVES = 60.0
DEFAULT_EVALUATIONS = 10
LOGGED_IMAGES = 100
#: stream name -> the text that seeds its order, if different; keeps recorded results reproducible
ORDER_SEEDS = {"unlabeled": "unlabelled", "labeled": "labelled"}


class Stateful(Protocol):
    """Anything whose state belongs in checkpoints."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Task(Protocol):
    """The part of a task (`compress.tasks`) that the engine and the methods use."""

    classes: int
    image_size: tuple[int, int]
    channels: int
    class_names: list[str] | None

    def rows(self, output: Tensor) -> Tensor: ...

    def supervised_loss(self, output: Tensor, target: Tensor) -> Tensor: ...

    def visualize(self, images: Tensor, output: Tensor) -> Tensor: ...


@dataclass
class Run:
    """One training run: its folder, models, streams, clock and logs."""

    run_dir: Path
    accelerator: Accelerator
    schedule: TrainingSchedule
    task: Task
    student: nn.Module  #: a method makes it trainable
    teachers: list[FrozenModel]
    sources: dict[str, ImageSource]
    batch_size: int  #: images per batch, summed over processes
    steps: int | None  #: None: the time limit ends the run
    display: ProgressDisplay
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    save_student: Callable[[str, nn.Module, dict[str, float], int], None] | None = None

    step: int = 0  #: number of completed steps
    trainables: dict[str, TrainableModel] = field(default_factory=dict)
    registered: dict[str, tuple[Stateful, bool]] = field(default_factory=dict)  #: name -> (object, per rank)
    metrics: dict[str, float] = field(default_factory=dict)  #: of the latest evaluation
    best: dict[str, Any] = field(default_factory=dict)  #: metrics and step of the best student
    peak_memory_bytes: int | None = None  #: of this session, if measured
    _image_logs: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    _pool: ImagePool | None = None
    _loss_names: set[str] = field(default_factory=set)  #: losses of the last step
    _elapsed_before: float = 0.0
    _evaluations: int = 0
    _evaluated_step: int = -1
    _loaded: Checkpoint | None = None  #: read before `resume`

    def __post_init__(self) -> None:
        self.checkpoints = CheckpointManager(
            self.run_dir / "checkpoints", self.accelerator,
            keep=self.schedule.keep_checkpoints, progress=self.display.print_line,
        )  # fmt: skip
        self.metrics_logger = MetricsLogger(self.run_dir) if self.accelerator.rank == 0 else None
        self._begin = self._saved_at = self._logged_at = time.monotonic()
        self._logged_step = 0
        self._ema = None
        if self.schedule.ema_decay:
            self._ema = ExponentialMovingAverage(self.accelerator.prepare(self.student), self.schedule.ema_decay)
            self.register("ema", self._ema)

    # What methods use.

    @property
    def teacher(self) -> FrozenModel:
        """The first teacher."""
        return self.teachers[0]

    def add_trainable(
        self, name: str, net: nn.Module, *, optimizer: OptimizerFactory, schedule: Schedule = cosine
    ) -> TrainableModel:
        """Add a trainable network; checkpoints contain it and its optimizer.

        Args:
            name: Unique name, usually the paper's letter.
            net: The network.
            optimizer: Function from the list of parameters to an optimizer.
            schedule: Factor of the learning rates as a function of progress in [0, 1].
        """
        assert name not in self.trainables, name
        self.trainables[name] = TrainableModel(name, net, self.accelerator, optimizer, schedule)
        return self.trainables[name]

    def stream(
        self, name: str, source: str, *, batch_size: int | None = None, augment: bool = False, repeats: Repeats = None
    ) -> Stream:
        """Create endless batches of a source.

        Args:
            name: Unique name; it seeds the order of the images.
            source: "unlabeled" or "labeled".
            batch_size: Images per batch, summed over processes; default: the run's.
            augment: Applies the source's random crop and flip.
            repeats: How often each image occurs per epoch on average, rounded up or down; 0 excludes it.
        """
        order = (self.schedule.seed, *ORDER_SEEDS.get(name, name).encode())
        batches = self.sources[source].batches(
            self.per_rank(batch_size or self.batch_size), seed=order, rank=self.accelerator.rank,
            world_size=self.accelerator.world_size, augment=augment, repeats=repeats,
        )  # fmt: skip
        stream = Stream(batches, self.accelerator)
        self.register(f"stream {name}", stream, per_rank=True)
        return stream

    def register(self, name: str, stateful: Stateful, *, per_rank: bool = False) -> None:
        """Include an object in every checkpoint, once or once per process."""
        assert name not in self.registered, name
        self.registered[name] = (stateful, per_rank)

    def restore_early(self, name: str) -> bool:
        """Restore one registered object before `resume`, so that it need not be computed again.

        Returns:
            Whether there is a checkpoint.
        """
        self._loaded = self._loaded or self.checkpoints.load()
        if self._loaded is not None:
            self._restore(name, self._loaded)
        return self._loaded is not None

    def _restore(self, name: str, checkpoint: Checkpoint) -> None:
        _, shared, per_rank = checkpoint
        stateful, is_per_rank = self.registered[name]
        stateful.load_state_dict((per_rank if is_per_rank else shared)["registered"][name])

    def create_pool(self) -> ImagePool:
        """Create a pool of synthetic images in the folder `pool`; evaluations save its contact sheet."""
        names = self.task.class_names or [""] * self.task.classes
        self._pool = ImagePool(self.run_dir / "pool", self.accelerator, names)
        self.register("pool", self._pool, per_rank=True)
        return self._pool

    def create_scaler(self, name: str) -> GradScaler:
        """Create a gradient scaler that persists over several inner loops."""
        scaler = create_grad_scaler(self.accelerator)
        if scaler.is_enabled():
            self.register(f"scaler {name}", scaler)
        return scaler

    def per_rank(self, n: int) -> int:
        """Return this process's part of `n` images."""
        return max(1, n // self.accelerator.world_size)

    def progress_range(self, n: int, description: str) -> Iterator[int]:
        """Iterate over `range(n)` for an optimization within a step, and show its progress."""
        for i in range(n):
            if self.steps is not None:
                progress = (self.step + i / n) / self.steps
            else:
                progress = self.local_elapsed / (self.schedule.time_limit or math.inf)
            self.display.update(min(progress, 0.999), self.step, f"{description} {i} of {n}")
            yield i

    def example_input(self) -> Tensor:
        """Return two black images [2, 3, h, w], to find the shapes of layers."""
        return torch.zeros(2, 3, *self.task.image_size, device=self.accelerator.device)

    def log_images(self, name: str, images: Callable[[], Tensor]) -> None:
        """Save `images()` [n, 3, h, w] at every evaluation, with the teacher's predictions and beside real images."""
        self._image_logs[name] = images

    def fixed_noise(self, n: int, z_dim: int) -> Tensor:
        """Return always the same normal noise [n, z_dim], for comparable images; uses no global random state."""
        return torch.randn(n, z_dim, generator=torch.Generator().manual_seed(0)).to(self.accelerator.device)

    # Clock and seeds.

    @property
    def elapsed(self) -> float:
        """Seconds of training over all sessions, by rank 0's clock."""
        return self.accelerator.broadcast_float(self.local_elapsed)

    @property
    def local_elapsed(self) -> float:
        """Like `elapsed`, by this process's clock, without communication."""
        return self._elapsed_before + time.monotonic() - self._begin

    @property
    def progress(self) -> float:
        """Completed share of the steps or of the time limit, in [0, 1]."""
        if self.steps is not None:
            return min(1.0, self.step / self.steps)
        assert self.schedule.time_limit is not None
        return min(1.0, self.elapsed / self.schedule.time_limit)

    def set_progress(self, progress: float) -> None:
        """Set the learning rates of all models."""
        for model in self.trainables.values():
            model.set_progress(progress)

    def seed_all(self) -> None:
        """Seed all processes equally, so that networks start with equal weights."""
        torch.manual_seed(self.schedule.seed)

    def seed_per_rank(self) -> None:
        """Seed every process differently, so that each draws its own noise."""
        if self.accelerator.world_size > 1:
            torch.manual_seed((self.schedule.seed << 16) + self.accelerator.rank + 1)

    # Steps.

    def finish_step(self, losses: dict[str, Tensor]) -> None:
        """Count a step, synchronize buffers, update the averaged student, and log if due."""
        self.step += 1
        if self.accelerator.world_size > 1:
            for model in self.trainables.values():
                model.sync_buffers()
        if self._ema is not None:
            self._ema.update(self.student)
        # A loss that occurs only in some steps is always logged.
        is_new, self._loss_names = bool(losses.keys() - self._loss_names), set(losses)
        if is_new or self.step % self.schedule.log_every == 0 or self.step == 1 or self.progress >= 1:
            self.log_losses(losses)

    def log_losses(self, losses: dict[str, Tensor]) -> None:
        """Log losses and throughput. Raises DivergedError if a loss is not finite."""
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise DivergedError(f"the loss of {', '.join(broken)} is {values[broken[0]]}")
        now, progress, elapsed = time.monotonic(), self.progress, self.elapsed
        if self.metrics_logger is None:
            return
        rate = (self.step - self._logged_step) / max(now - self._logged_at, 1e-9) * self.batch_size
        self._logged_at, self._logged_step = now, self.step
        facts = {"images_per_s": round(rate, 1), "data_wait_share": round(self.data_wait_share, 5)}
        self.metrics_logger.log("train", self.step, {**values, **facts, "seconds": round(elapsed, 2)})
        text = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        score = "".join(f"  {name} {value:.1%}" for name, value in list(self.metrics.items())[:1])
        self.display.update(progress, self.step, f"{text}  {rate:.0f} img/s{score}")

    @property
    def data_wait_share(self) -> float:
        """Share of this session's time that the loop spent waiting for data."""
        waited = sum(stream.wait_seconds for stream, _ in self.registered.values() if isinstance(stream, Stream))
        return waited / max(time.monotonic() - self._begin, 1e-9)

    # Evaluation.

    @property
    def eval_student(self) -> nn.Module:
        """The student that is evaluated and saved: the averaged one if there is one."""
        return self._ema.net if self._ema is not None else self.student

    def is_evaluation_due(self) -> bool:
        if self.schedule.evaluate_every is not None:
            return self.step % self.schedule.evaluate_every == 0
        return int(self.progress * DEFAULT_EVALUATIONS) > self._evaluations

    def evaluate(self) -> None:
        """Score the student, save it if it is the best so far, and save image grids.

        Raises:
            DivergedError: If a model is not finite.
        """
        self.check_finite()
        self._evaluations = int(self.progress * DEFAULT_EVALUATIONS)
        self._evaluated_step = self.step
        if self.accelerator.rank == 0:
            with eval_mode(self.eval_student) as student:
                self.metrics = {} if self.validate is None else self.validate(student)
                self._save_if_best(student)
            self._save_images()
            if self.metrics and self.metrics_logger is not None:
                values = {**self.metrics, "seconds": round(self.local_elapsed, 2)}
                self.metrics_logger.log("evaluation", self.step, values)
        self.accelerator.barrier()

    def _save_if_best(self, student: nn.Module) -> None:
        if not self.metrics:
            return
        score = next(iter(self.metrics.values()))
        if not self.best or score > next(iter(self.best["metrics"].values())):
            self.best = {"metrics": dict(self.metrics), "step": self.step}
            if self.save_student is not None:
                self.save_student("best", student, self.metrics, self.step)

    def _save_images(self) -> None:
        for name, create_images in self._image_logs.items():
            images = create_images()[:LOGGED_IMAGES]
            with torch.no_grad():
                groups = [self.task.visualize(images, self.teacher(images))]
            unlabeled = self.sources.get("unlabeled")
            if unlabeled is not None:
                batches = unlabeled.batches(LOGGED_IMAGES, seed=(0,), rank=0, world_size=1, augment=False)
                groups.append(self.accelerator.to_float_images(batches.batch_at(0)[0]))
            save_image_grid(self.run_dir / "images" / f"{name}-{self.step:07d}.png", groups)
            save_image_grid(self.run_dir / f"{name}.png", groups)
        if self._pool is not None:
            self._pool.save_contact_sheet(self.run_dir / "pool.png")

    # Checkpoints.

    def is_save_due(self) -> bool:
        if self.schedule.save_every is not None:
            return self.step % self.schedule.save_every == 0
        return self.accelerator.broadcast_float(time.monotonic() - self._saved_at) > SECONDS_BETWEEN_SAVES

    def check_finite(self) -> None:
        """Raise DivergedError if a model is not finite."""
        broken = [name for name, model in self.trainables.items() if not model.is_finite()]
        if broken:
            raise DivergedError(f"the parameters of {', '.join(broken)} are not finite")

    def save(self) -> None:
        """Save a checkpoint. Raises DivergedError, without saving, if a model is not finite."""
        self.check_finite()
        shared = {
            "step": self.step,
            "elapsed": self.elapsed,
            "evaluations": (self._evaluations, self._evaluated_step),
            "metrics": self.metrics,
            "best": self.best,
            "loss_names": sorted(self._loss_names),
            "metrics_bytes": 0 if self.metrics_logger is None else self.metrics_logger.size_bytes,
            "trainables": {name: model.state_dict() for name, model in self.trainables.items()},
            "registered": self._registered_state(per_rank=False),
        }
        device = self.accelerator.device
        per_rank = {
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "registered": self._registered_state(per_rank=True),
        }
        self.checkpoints.save(self.step, shared, per_rank)
        self._saved_at = time.monotonic()

    def _registered_state(self, *, per_rank: bool) -> dict[str, Any]:
        named = self.registered.items()
        return {name: stateful.state_dict() for name, (stateful, is_per_rank) in named if is_per_rank == per_rank}

    def resume(self) -> bool:
        """Restore the newest valid checkpoint; returns whether there was one."""
        checkpoint, self._loaded = self._loaded or self.checkpoints.load(), None
        if checkpoint is None:
            if self.metrics_logger is not None:
                self.metrics_logger.truncate(0, 0)
            return False
        self.step, shared, per_rank = checkpoint
        if self.metrics_logger is not None:
            self.metrics_logger.truncate(shared["metrics_bytes"], self.step)
        self._elapsed_before, self._begin = shared["elapsed"], time.monotonic()
        self._evaluations, self._evaluated_step = shared["evaluations"]
        self.metrics, self.best = shared["metrics"], shared["best"]
        self._loss_names = set(shared["loss_names"])
        for name, model in self.trainables.items():
            model.load_state_dict(shared["trainables"][name])
        for name in self.registered:
            self._restore(name, checkpoint)
        torch.set_rng_state(per_rank["random"])
        if per_rank["cuda"] is not None:
            torch.cuda.set_rng_state(per_rank["cuda"], self.accelerator.device)
        self._logged_step = self.step
        return True

    def finish(self) -> None:
        """Evaluate the final student if necessary, and save it."""
        if self._evaluated_step != self.step:
            self.evaluate()
        self.save()
        if self.accelerator.rank == 0 and self.save_student is not None:
            with eval_mode(self.eval_student) as student:
                self.save_student("last", student, self.metrics, self.step)
                if not self.best:
                    self.save_student("best", student, self.metrics, self.step)

    def close(self) -> None:
        """Close the logs."""
        if self.metrics_logger is not None:
            self.metrics_logger.close()
