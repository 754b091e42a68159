"""A training run. All state is created through it, so checkpoints are complete."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compress.engine.accelerator import Accelerator
from compress.engine.checkpoint import Checkpoint, CheckpointManager, read_state
from compress.engine.config import TrainingSchedule
from compress.engine.ema import ExponentialMovingAverage
from compress.engine.image_pool import ImagePool
from compress.engine.logging import LogFaults, MetricsLogger, ProgressDisplay, save_image_grid
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
    is_finite_state,
)
from compress.errors import CompressError, first_line
from compress.own_files import CHECKPOINTS, NEWEST_IMAGES, POOL, STEP_IMAGES

SECONDS_BETWEEN_SAVES = 60.0
DEFAULT_EVALUATIONS = 10
LOGGED_IMAGES = 100
#: batches, newest first, in which the images of a divergence are searched
SEARCHED_BATCHES = 16
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
    teacher_metrics: dict[str, float] | None = None  #: scores of the first teacher by `validate`
    save_student: Callable[[str, nn.Module, dict[str, float], int], None] | None = None

    step: int = 0  #: number of completed steps
    trainables: dict[str, TrainableModel] = field(default_factory=dict)
    registered: dict[str, tuple[Stateful, bool]] = field(default_factory=dict)  #: name -> (object, per rank)
    metrics: dict[str, float] = field(default_factory=dict)  #: of the latest evaluation
    best: dict[str, Any] = field(default_factory=dict)  #: metrics and step of the best student
    #: step, to_step, learning_rate_factor and reason of each return to an earlier state after a divergence
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    peak_memory_bytes: int | None = None  #: of this session, if measured
    _image_logs: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    _pool: ImagePool | None = None
    _loss_names: set[str] = field(default_factory=set)  #: losses of the last step
    _elapsed_before: float = 0.0
    _evaluations: int = 0
    _evaluated_step: int = -1
    _loaded: Checkpoint | None = None  #: read before `resume`
    _initial: bytes | None = None  #: state before the first step, until there is a checkpoint
    _loss_flags: dict[str, Tensor] = field(default_factory=dict)  #: 0, or NaN after a loss that was not finite
    _checked_positions: dict[str, int] = field(default_factory=dict)  #: of the streams, when all losses were finite

    def __post_init__(self) -> None:
        self.checkpoints = CheckpointManager(
            self.run_dir / CHECKPOINTS, self.accelerator,
            keep=self.schedule.keep_checkpoints, progress=self.display.print_line,
        )  # fmt: skip
        report = self.display.print_line
        self.metrics_logger = MetricsLogger(self.run_dir, report=report) if self.accelerator.rank == 0 else None
        self._image_faults = LogFaults(report)
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
        """Create a pool of synthetic images in the folder `compress-pool`; evaluations save its contact sheet."""
        names = self.task.class_names or [""] * self.task.classes
        self._pool = ImagePool(self.run_dir / POOL, self.accelerator, names)
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
            model.set_progress(progress, factor=self.learning_rate_factor)

    @property
    def learning_rate_factor(self) -> float:
        """Factor of all learning rates, which each rollback lowers."""
        return self.schedule.rollback_factor ** len(self.rollbacks)

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
        for name, loss in losses.items():  # without waiting for the device; 0 * loss is 0 or NaN
            self._loss_flags[name] = self._loss_flags.get(name, 0) + loss.detach() * 0
        # A loss that occurs only in some steps is always logged.
        is_new, self._loss_names = bool(losses.keys() - self._loss_names), set(losses)
        if is_new or self.step % self.schedule.log_every == 0 or self.step == 1 or self.progress >= 1:
            self.log_losses(losses)

    def log_losses(self, losses: dict[str, Tensor]) -> None:
        """Log losses and throughput. Raises DivergedError if a loss is not finite, or was since the last check."""
        self._check_losses()
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        now, progress, elapsed = time.monotonic(), self.progress, self.elapsed
        if self.metrics_logger is None:
            return
        rate = (self.step - self._logged_step) / max(now - self._logged_at, 1e-9) * self.batch_size
        self._logged_at, self._logged_step = now, self.step
        facts = {"images_per_s": round(rate, 1), "data_wait_share": round(self.data_wait_share, 5)}
        self.metrics_logger.log("train", self.step, {**values, **facts, "seconds": round(elapsed, 2)})
        text = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        self.display.update(progress, self.step, f"{text}  {rate:.0f} img/s{self.describe_score()}")

    def describe_score(self) -> str:
        """Text with the main score of the student and that of the teacher; empty before the first evaluation."""
        teacher = self.teacher_metrics or {}
        return "".join(
            f"  {name} {value:.1%}" + (f" (teacher {teacher[name]:.1%})" if name in teacher else "")
            for name, value in list(self.metrics.items())[:1]
        )

    @property
    def streams(self) -> dict[str, Stream]:
        """The streams by name."""
        named = ((name.removeprefix("stream "), stateful) for name, (stateful, _) in self.registered.items())
        return {name: stream for name, stream in named if isinstance(stream, Stream)}

    @property
    def data_wait_share(self) -> float:
        """Share of this session's time that the loop spent waiting for data."""
        waited = sum(stream.wait_seconds for stream in self.streams.values())
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
                scores = {} if self.validate is None else self.validate(student)
                self.metrics = {name: score for name, score in scores.items() if math.isfinite(score)}
                if next(iter(scores), None) in self.metrics:  # a score that is not a number is never the best one
                    self._save_if_best(student)
            self._save_images()
            if self.metrics and self.metrics_logger is not None:
                values = {**self.metrics, "seconds": round(self.local_elapsed, 2)}
                self.metrics_logger.log("evaluation", self.step, values)
        self.accelerator.barrier()

    def _save_if_best(self, student: nn.Module) -> None:
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
            with self._image_faults.tolerate(self.run_dir / STEP_IMAGES):
                save_image_grid(self.run_dir / STEP_IMAGES / f"{name}-{self.step:07d}.png", groups)
                save_image_grid(self.run_dir / NEWEST_IMAGES.format(name=name), groups)
        if self._pool is not None:
            sheet = self.run_dir / NEWEST_IMAGES.format(name="pool")
            with self._image_faults.tolerate(sheet):
                self._pool.save_contact_sheet(sheet)

    # Checkpoints.

    def is_save_due(self) -> bool:
        if self.schedule.save_every is not None:
            return self.step % self.schedule.save_every == 0
        return self.accelerator.broadcast_float(time.monotonic() - self._saved_at) > SECONDS_BETWEEN_SAVES

    def check_finite(self) -> None:
        """Raise DivergedError, on all processes, if a model or a loss since the last check is not finite."""
        self._check_losses()
        nets = {name: model.is_finite() for name, model in self.trainables.items()}
        broken = [name for name, is_finite in nets.items() if not is_finite]
        if self._ema is not None and not is_finite_state(self._ema.state_dict()):
            broken.append("the averaged student")
        self._raise_on_all_ranks(f"the parameters of {', '.join(broken)} are not finite" if broken else None)

    def _check_losses(self) -> None:
        broken = [name for name, flag in self._loss_flags.items() if not bool(flag.isfinite())]
        self._raise_on_all_ranks(f"the loss of {', '.join(broken)} is not finite" if broken else None)
        self._loss_flags = {}
        self._checked_positions = {name: stream.position for name, stream in self.streams.items()}

    def _raise_on_all_ranks(self, problem: str | None) -> None:
        """Raise DivergedError if there is a problem on any process."""
        if self.accelerator.any(problem is not None):
            error = DivergedError(problem or "another process found values that are not finite")
            error.on_all_ranks = True
            raise error

    def save(self) -> None:
        """Save a checkpoint. Raises DivergedError, without saving, if something in it is not finite."""
        self.check_finite()
        shared, per_rank = self._state()
        states = {**shared["registered"], **per_rank["registered"]}
        states |= {f"the optimizer of {name}": model["optimizer"] for name, model in shared["trainables"].items()}
        broken = [name for name, state in states.items() if not is_finite_state(state)]
        self._raise_on_all_ranks(f"{', '.join(broken)}: found values that are not finite" if broken else None)
        self.checkpoints.save(self.step, shared, per_rank)
        self._saved_at = time.monotonic()
        self._initial = None

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the state shared by all processes, and that of this process."""
        shared = {
            "step": self.step,
            "elapsed": self.elapsed,
            "evaluations": (self._evaluations, self._evaluated_step),
            "metrics": self.metrics,
            "best": self.best,
            "rollbacks": self.rollbacks,
            "loss_names": sorted(self._loss_names),
            "metrics_bytes": 0 if self.metrics_logger is None else self.metrics_logger.sync(),
            "trainables": {name: model.state_dict() for name, model in self.trainables.items()},
            "registered": self._registered_state(per_rank=False),
        }
        device = self.accelerator.device
        per_rank = {
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "registered": self._registered_state(per_rank=True),
        }
        return shared, per_rank

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
        try:
            self._restore_all(checkpoint)
            metrics_bytes = int(checkpoint[1]["metrics_bytes"])
        except torch.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CompressError(
                f"{self.checkpoints.latest_manifest()}: found a checkpoint that does not fit this run "
                f"({first_line(error)}); start again with --fresh."
            ) from error
        if self.metrics_logger is not None:
            self.metrics_logger.truncate(metrics_bytes, self.step)
        return True

    def _restore_all(self, checkpoint: Checkpoint) -> None:
        """Restore everything of this process from a checkpoint."""
        _, shared, per_rank = checkpoint
        self._elapsed_before, self._begin = shared["elapsed"], time.monotonic()
        self.metrics, self.best = shared["metrics"], shared["best"]
        self.rollbacks = shared.get("rollbacks", [])  # checkpoints of version 1.0 have none
        self._restore_models(checkpoint)
        for name in self.registered:
            self._restore(name, checkpoint)
        torch.set_rng_state(per_rank["random"])
        if per_rank["cuda"] is not None:
            torch.cuda.set_rng_state(per_rank["cuda"], self.accelerator.device)

    def _restore_models(self, checkpoint: Checkpoint) -> None:
        """Restore the models, and the counters of the steps."""
        self.step, shared, _ = checkpoint
        self._evaluations, self._evaluated_step = shared["evaluations"]
        self._loss_names = set(shared["loss_names"])
        for name, model in self.trainables.items():
            model.load_state_dict(shared["trainables"][name])
        self._logged_step = self.step

    # Rollbacks.

    def keep_initial_state(self) -> None:
        """Keep the state before the first step in memory, for a rollback before the first checkpoint."""
        shared, per_rank = self._state()
        buffer = io.BytesIO()
        torch.save({"shared": shared, "per_rank": per_rank}, buffer)
        self._initial = buffer.getvalue()

    def roll_back(self, failed_step: int, reason: str) -> None:
        """Return to the last good state with lower learning rates, and save it at once.

        Data and noise are not restored: they continue after the failed step, so the same batch does not fail again.
        The clock, and the best student, which was finite when it was saved, are kept too.
        """
        checkpoint = self._load_initial_state() if self._initial is not None else self.checkpoints.load()
        if checkpoint is None:
            raise DivergedError(
                f"step {failed_step}: {reason}; {self.checkpoints.folder}: found no checkpoint any more."
            )
        self._restore_models(checkpoint)
        for name in self.registered.keys() - {f"stream {name}" for name in self.streams}:
            self._restore(name, checkpoint)
        self._loss_flags = {}
        self.rollbacks.append({"step": failed_step, "to_step": self.step, "reason": reason})
        self.rollbacks[-1]["learning_rate_factor"] = self.learning_rate_factor
        if self.metrics_logger is not None:
            values = {name: value for name, value in self.rollbacks[-1].items() if name != "step"}
            self.metrics_logger.log("rollback", failed_step, values)
        self.save()

    def _load_initial_state(self) -> Checkpoint:
        assert self._initial is not None
        state = read_state(io.BytesIO(self._initial))
        return 0, state["shared"], state["per_rank"]

    def describe_teacher_fault(self) -> str:
        """Return how the teachers' outputs for the latest images fail, or the empty string if they are finite."""
        for teacher in self.teachers:
            for name, stream in self.streams.items():
                first = max(self._checked_positions.get(name, 0), stream.position - SEARCHED_BATCHES)
                for position in reversed(range(first, stream.position)):
                    images = self.accelerator.to_float_images(stream.batches.batch_at(position)[0])
                    with torch.no_grad():
                        outputs = teacher(images)
                    bad = int((~outputs.isfinite()).flatten(1).any(1).sum())
                    if bad:
                        count = f"{bad} of {len(images)} images"
                        return f"the teacher's outputs for {count} of the stream {name} are not finite"
        return ""

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
