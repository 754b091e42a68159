"""Images from the generator of a run: samples of what its student learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from compress.config import load_yaml
from compress.engine.accelerator import Accelerator, create_accelerator
from compress.engine.checkpoint import CheckpointManager
from compress.engine.image_pool import ImagePool
from compress.engine.trainable import FrozenModel, TrainableModel
from compress.errors import UsageError
from compress.models.card import ModelCard
from compress.own_files import CHECKPOINTS, NEWEST_IMAGES, POOL, RECIPE
from compress.training.estimate import build_dry_run
from compress.training.setup import TrainingSetup, load_config, prepare_training

BATCH_SIZE = 100
CALIBRATION_BATCH_SIZE = 8  #: a calibration keeps the activations of every layer


@dataclass(frozen=True)
class GeneratorSamples:
    """Generated images in a pool, in directories by predicted class; all in one for segmentation."""

    pool: ImagePool
    method: str
    teacher: str
    card: ModelCard
    batches: int


def save_generator_samples(
    run_dir: Path,
    count: int,
    output_dir: Path,
    *,
    device: str,
    seed: int,
    allow_code: bool = False,
    trust_pickle: bool = False,
    progress: Callable[[str], None],
) -> GeneratorSamples:
    """Save `count` images from the generator of a run in `output_dir`/compress-pool, by its newest checkpoint.

    The generator is in eval mode; the noise is a pure function of `seed`. With `allow_code` and `trust_pickle`, the
    run may name code of the user, and trust pickles.

    Raises:
        UsageError: there is no run, its method has no generator, or `output_dir` holds a run.
    """
    if (output_dir / RECIPE).exists():
        raise UsageError(f"{output_dir}: holds a run; choose another --out for its images.")
    setup = load_run_setup(run_dir, allow_code=allow_code, trust_pickle=trust_pickle)
    accelerator = create_accelerator(device, setup.config.training.precision)
    generator, teacher = load_generator(run_dir, setup, accelerator, progress)
    has_no_class = setup.card.predicts_maps or setup.card.decides_by_threshold
    names = setup.card.class_names or [""] * setup.card.classes
    pool = ImagePool(output_dir / POOL, accelerator, ["images"] if has_no_class else names)
    pool.capacity, noise, batches = count, torch.Generator().manual_seed(seed), 0
    while len(pool) < count:
        z = torch.randn(BATCH_SIZE, vars(setup.method)["z_dim"], generator=noise).to(accelerator.device)
        x = generator.predict(z).float()
        labels = torch.zeros(BATCH_SIZE, dtype=torch.int64) if has_no_class else predict_classes(teacher, x)
        pool.add(x, labels)
        batches += 1
    pool.state_dict()  # waits until the images are written
    pool.save_contact_sheet(output_dir / NEWEST_IMAGES.format(name="pool"))
    return GeneratorSamples(pool, setup.config.method["name"], setup.config.teachers[0].model, setup.card, batches)


def iter_generator_samples(
    run_dir: Path,
    count: int,
    *,
    seed: int = 0,
    allow_code: bool = False,
    trust_pickle: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Tensor]:
    """Generate `count` images of a run on the CPU, in small batches [n, 3, h, w] in [0, 1].

    The noise is a pure function of `seed`. `allow_code`, `trust_pickle` and UsageError are those of
    `save_generator_samples`.
    """
    setup = load_run_setup(run_dir, allow_code=allow_code, trust_pickle=trust_pickle)
    generator, _ = load_generator(run_dir, setup, create_accelerator("cpu", "32"), progress)
    noise = torch.Generator().manual_seed(seed)
    for start in range(0, count, CALIBRATION_BATCH_SIZE):
        z = torch.randn(min(CALIBRATION_BATCH_SIZE, count - start), vars(setup.method)["z_dim"], generator=noise)
        yield generator.predict(z).float().expand(-1, 3, -1, -1).clamp(0, 1)  # a grayscale generator has one channel


@torch.no_grad()
def predict_classes(teacher: FrozenModel, x: Tensor) -> Tensor:
    return teacher(x).argmax(1)


def load_run_setup(run_dir: Path, *, allow_code: bool, trust_pickle: bool) -> TrainingSetup:
    """Load the networks of a run. Raises UsageError if there is none, or its recipe needs consent (`load_config`)."""
    if not (run_dir / RECIPE).is_file():
        raise UsageError(f"{run_dir}: found no {RECIPE}, expected the run directory of a `compress distill`.")
    return prepare_training(*load_config(load_yaml(run_dir / RECIPE), allow_code=allow_code, trust_pickle=trust_pickle))


def load_generator(
    run_dir: Path, setup: TrainingSetup, accelerator: Accelerator, progress: Callable[[str], None]
) -> tuple[TrainableModel, FrozenModel]:
    """Load the generator of a run, and its teacher. Raises UsageError if there is none."""
    name = setup.config.method["name"]
    with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        images = dict.fromkeys(setup.method.needs, BATCH_SIZE)
        _, run = build_dry_run(setup, accelerator, images=images, run_dir=Path(temporary))
    if "G" not in run.trainables:
        raise UsageError(f"{run_dir}: method {name} has no generator, expected a run of one that has, such as mosaic.")
    checkpoint = CheckpointManager(run_dir / CHECKPOINTS, accelerator, progress=progress).load()
    if checkpoint is None:
        raise UsageError(f"{run_dir}: found no checkpoint; the first is written after about a minute.")
    run.trainables["G"].load_state_dict(checkpoint[1]["trainables"]["G"])
    return run.trainables["G"], run.teacher
