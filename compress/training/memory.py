"""Memory of a run: estimate before it begins, micro-batches that fit, and the sentence if it is exhausted."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from compress.config import load_yaml
from compress.engine.accelerator import Accelerator, create_accelerator
from compress.engine.synthesis import is_synthesizer
from compress.engine.trainable import eval_mode
from compress.errors import CompressError, is_out_of_memory
from compress.models.onnx_teacher import is_black_box
from compress.own_files import RECIPE
from compress.resources import address_space_limit, available_memory, memory_limit
from compress.training.estimate import batch_size_of, build_dry_run, bytes_of, count_images
from compress.training.setup import TrainingSetup
from profiles.latency.tensor_memory import LiveTensorTracker

AUTO = "auto"
#: what a process takes besides tensors: kernels and buffers of libraries
PROCESS_BYTES = 150e6
#: resident memory per byte of live tensors: the allocator keeps gaps, convolutions copy their inputs
OVERHEAD = 1.3
#: images of the measured step; a larger batch is extrapolated, because a step of a billion images cannot be traced
MAX_MEASURED_IMAGES = 512
#: a run of fewer bytes, by a bound that needs no step, is not measured
BOUND_FACTOR = 30
MIN_MICRO_BATCH = 2
Progress = Callable[[str], None]


class Memory(NamedTuple):
    """Bytes of a device: free now, and at most."""

    available: int
    limit: int


class StepMemory(NamedTuple):
    """Estimated bytes of a step of one process."""

    fixed: float  #: whatever the batch is
    per_image: float

    def total(self, images: int) -> float:
        return self.fixed + images * self.per_image

    def fitting(self, available: float) -> int:
        """Return the largest batch that fits, a power of two or 0."""
        images = int((available - self.fixed) / self.per_image) if self.per_image else MAX_MEASURED_IMAGES
        return 0 if images < 1 else 2 ** (images.bit_length() - 1)


def fit_memory(
    setup: TrainingSetup, run_dir: Path, *, devices: int, resume: bool | None, progress: Progress,
    warn: Progress | None = None,
) -> None:  # fmt: skip
    """Resolve `training.micro_batch: auto` in the setup, and check that the run fits into memory.

    `warn` receives warnings; None: `progress` does.

    Raises:
        CompressError: the estimate exceeds the memory of the machine or the container.
    """
    schedule = setup.config.training
    accelerator = create_accelerator(schedule.device, schedule.precision)
    is_auto = schedule.micro_batch == AUTO
    micro_batch = None if schedule.micro_batch == AUTO else schedule.micro_batch
    recipe = run_dir / RECIPE
    if is_auto:
        schedule.micro_batch = None
        if resume is not False and recipe.exists():  # a run keeps its micro-batch
            schedule.micro_batch = load_yaml(recipe).get("training.micro_batch")
            return
    memory = device_memory(accelerator, devices)
    if memory is None or (not is_auto and is_small(setup, memory)):
        return
    images = images_of_step(setup)
    need = estimate_step(setup, accelerator, micro_batch)
    if need.total(images) > memory.available and is_auto:
        micro_batch = choose_micro_batch(setup, accelerator, memory, progress)
    elif need.total(images) > memory.available:
        fitting = need.fitting(memory.available)
        message = insufficient_memory(need.total(images), memory.available, fitting, setup)
        if need.total(images) > memory.limit:
            raise CompressError(message)
        if warn is None:
            progress(f"Warning: {message}")
        else:
            warn(message)
    if is_auto:
        micro_batch = probe_step(setup, accelerator, micro_batch, memory, need, progress)
        # Processes that torchrun started measure at different moments.
        schedule.micro_batch = int(accelerator.broadcast_float(float(micro_batch or 0))) or None


def device_memory(accelerator: Accelerator, devices: int) -> Memory | None:
    """Return the memory for one process; None if the system does not report it."""
    if accelerator.device.type == "cuda":
        return Memory(*torch.cuda.mem_get_info(accelerator.device))
    available, limit = available_memory(), memory_limit()
    if available is None or limit is None:
        return None
    processes = max(devices, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return Memory(available // processes, limit // processes)


def images_of_step(setup: TrainingSetup) -> int:
    """Return the largest batch of one process."""
    method: Any = setup.method
    return max(batch_size_of(setup), method.images_per_synthesis if is_synthesizer(method) else 0)


def is_small(setup: TrainingSetup, memory: Memory) -> bool:
    """Check whether the run certainly fits: by all tensors of one image in teacher and student."""
    nets = [net for net, _ in setup.teachers if not is_black_box(net)] + [setup.student]
    created = 0
    for net in nets:
        with eval_mode(net), LiveTensorTracker() as live:
            net(torch.zeros(1, 3, *setup.card.image_size))
        created += live.created
    return BOUND_FACTOR * created * images_of_step(setup) < memory.available / 2


def estimate_step(setup: TrainingSetup, accelerator: Accelerator, micro_batch: int | None) -> StepMemory:
    """Estimate the memory of a step by live tensors on the meta device; each image takes the same."""
    images = images_of_step(setup)
    measured = min(images, MAX_MEASURED_IMAGES)
    lighter = shrink(setup, measured / images)
    meta = replace(accelerator, device=torch.device("meta"), precision="32", micro_batch=micro_batch)
    counts = {kind: count_images(setup.config, kind) for kind in setup.method.needs}
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, torch.random.fork_rng(devices=[]):
        method, run = build_dry_run(lighter, meta, images=counts, run_dir=Path(folder))
        with LiveTensorTracker() as live:
            run_step(method)
        state = sum(bytes_of(p) for name, m in run.trainables.items() if name != "S" for p in m.net.parameters())
    weights = sum(bytes_of(p) for m in run.trainables.values() for p in m.net.parameters())
    fixed = state + 2 * weights  # gradients and momentum, which the step has created
    scale = OVERHEAD / 2 if accelerator.precision != "32" else OVERHEAD
    activations = max(0, live.peak - 2 * weights) * scale
    return StepMemory(fixed + PROCESS_BYTES, activations / measured)


def shrink(setup: TrainingSetup, share: float) -> TrainingSetup:
    """Return the setup with a share of the images, and one of equal student steps."""
    method: Any = copy.deepcopy(setup.method)
    if is_synthesizer(method):
        method.images_per_synthesis = max(1, round(method.images_per_synthesis * share))
        method.iterations = 1
    elif hasattr(method, "student_steps"):
        method.student_steps = 1
    schedule = replace(setup.config.training, batch_size=max(1, round(batch_size_of(setup) * share)))
    return replace(setup, config=replace(setup.config, training=schedule), method=method)


def run_step(method: Any) -> None:
    """Run what a step contains."""
    if is_synthesizer(method):
        method.synthesize()
        method.train_student()
    else:
        method.step()


def choose_micro_batch(
    setup: TrainingSetup, accelerator: Accelerator, memory: Memory, progress: Progress
) -> int:  # fmt: skip
    """Halve the batch until the estimate of a step in micro-batches fits.

    Raises:
        CompressError: not even the smallest micro-batch fits.
    """
    images = images_of_step(setup)
    halves = [images // 2**i for i in range(1, images.bit_length())]
    sizes = [size for size in halves if size >= MIN_MICRO_BATCH]
    if not sizes:
        need = estimate_step(setup, accelerator, None).total(images)
        raise CompressError(insufficient_memory(need, memory.available, 0, setup))
    # The whole batch of images and outputs stays in memory; only activations of networks shrink. Two measured points.
    points = [(size, estimate_step(setup, accelerator, size).total(images)) for size in sizes[:2]]
    (size, high), (small, low) = points[0], points[-1]
    slope = (high - low) / (size - small) if size > small else high / size
    for micro_batch in sizes:
        need = low + slope * (micro_batch - small)
        if need <= memory.available:
            progress(
                f"A step of {images} images does not fit into {format_gb(memory.available)} GB of free memory; one in "
                f"micro-batches of {micro_batch} needs about {format_gb(need)} GB."
            )
            return micro_batch
    smaller = StepMemory(0.0, (low - slope * (small - sizes[-1])) / images).fitting(memory.available)
    raise CompressError(insufficient_memory(low, memory.available, smaller, setup))


def probe_step(
    setup: TrainingSetup, accelerator: Accelerator, micro_batch: int | None, memory: Memory, need: StepMemory,
    progress: Progress,
) -> int | None:  # fmt: skip
    """Run one real step on copies, and halve the micro-batch while the memory does not suffice.

    No step is run if the estimate leaves much room, or if a limit would end this process instead of an allocation.

    Raises:
        CompressError: not even the smallest micro-batch fits.
    """
    raises_errors = accelerator.device.type == "cuda" or address_space_limit() is not None
    if not raises_errors or need.total(images_of_step(setup)) < memory.available / 4:
        return micro_batch
    counts = {kind: count_images(setup.config, kind) for kind in setup.method.needs}
    while True:
        try:
            real = create_accelerator(setup.config.training.device, setup.config.training.precision)
            with TemporaryDirectory(ignore_cleanup_errors=True) as folder, torch.random.fork_rng(devices=[]):
                run_step(
                    build_dry_run(
                        shrink(setup, 1.0), replace(real, micro_batch=micro_batch), images=counts, run_dir=Path(folder)
                    )[0]
                )
            return micro_batch
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            smaller = (micro_batch or images_of_step(setup)) // 2
            if smaller < MIN_MICRO_BATCH:
                fitting = need.fitting(memory.available)
                total = need.total(images_of_step(setup))
                raise CompressError(insufficient_memory(total, memory.available, fitting, setup)) from error
            progress(f"A step of micro-batches of {micro_batch or 'all'} images ran out of memory; trying {smaller}.")
            micro_batch = smaller
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def explain_out_of_memory(setup: TrainingSetup) -> Iterator[None]:
    """Turn an exhausted memory into a sentence with the batch that would fit.

    Raises:
        CompressError: the memory was exhausted.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    accelerator = create_accelerator(setup.config.training.device, setup.config.training.precision)
    memory = device_memory(accelerator, processes)  # what failed is still in memory later
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        message = None
        try:
            if memory is not None:
                need = estimate_step(setup, accelerator, None)
                images = images_of_step(setup)
                fitting = min(need.fitting(memory.available), 2 ** max(0, (images - 1).bit_length() - 1))
                message = insufficient_memory(need.total(images), memory.available, fitting, setup)
        except Exception:  # the estimate needs memory too
            message = None
        raise CompressError(
            message
            or f"out of memory in a step of {batch_size_of(setup)} images; give --batch-size auto, or a smaller one."
        ) from error


def insufficient_memory(need: float, available: float, fitting: int, setup: TrainingSetup) -> str:
    """Return the sentence about a batch that does not fit: that of the student, or a larger synthesized one."""
    batch_size = images_of_step(setup)
    key, option = "training.batch_size", "--batch-size "
    if batch_size > batch_size_of(setup):
        key = "method.images_per_synthesis"
        option = f"--set {key}="
    if fitting:
        fitting = min(fitting, max(1, batch_size // 2))
        remedy = f"{option}{fitting} would fit, --batch-size auto learns from parts of the batch"
    else:
        remedy = "no batch would fit; choose a smaller model or image size"
    return (
        f"{key}: found {batch_size}, which needs about {format_gb(need)} GB of memory, expected at most "
        f"{format_gb(available)} GB; {remedy}."
    )


def format_gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size < 1e11 else f"{size / 1e9:,.0f}"
