"""Images from the generator of a run that `distill` made: samples of what its student learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from compress import config
from compress.engine.accelerator import Accelerator, create_accelerator
from compress.engine.checkpoint import CheckpointManager
from compress.engine.image_pool import ImagePool
from compress.engine.trainable import FrozenModel, TrainableModel
from compress.errors import UsageError
from compress.models.card import ModelCard
from compress.training.setup import RECIPE, TrainingSetup, load_config, prepare_training
from compress.training.estimate import build_dry_run

BATCH = 100  #: images drawn at a time
CALIBRATION_BATCH = 8  #: likewise for a calibration, which keeps what every layer makes of them


@dataclass(frozen=True)
class GeneratorSamples:
    """Images in a pool, by the class that the teacher sees in them; of label maps all are of one."""

    pool: ImagePool
    method: str
    teacher: str
    card: ModelCard
    batches: int


def save_generator_samples(folder: Path, count: int, out: Path, *, device: str, seed: int, say: Callable[[str], None]) -> GeneratorSamples:
    """Put `count` images from the generator of the run in `folder`, as its newest checkpoint has it, into `out`/pool.

    The generator is in eval mode, the noise a pure function of `seed`. Raises UsageError for a folder without such a
    run, a method without a generator, and an `out` that is a run's own folder, whose images these would replace.
    """
    if not (folder / RECIPE).is_file():
        raise UsageError(f"{folder}: no {RECIPE} in it; expected the folder of a run that `compress distill` made.")
    if (out / RECIPE).exists():
        raise UsageError(f"{out}: holds a run; choose another --out for its images.")
    ready = prepare_training(*load_config(config.load_yaml(folder / RECIPE)))
    place = create_accelerator(device, ready.config.training.precision)
    maker, teacher = load_generator(folder, ready, place, say)
    names = ready.card.class_names or [""] * ready.card.classes
    dense = ready.card.task == "segmentation"
    pool = ImagePool(out / "pool", place, ["images"] if dense else names)
    pool.capacity, noise, batches = count, torch.Generator().manual_seed(seed), 0
    while len(pool) < count:
        x = maker.predict(torch.randn(BATCH, vars(ready.method)["z_dim"], generator=noise).to(place.device)).float()
        pool.add(x, torch.zeros(BATCH, dtype=torch.int64) if dense else predict_classes(teacher, x))
        batches += 1
    pool.state_dict()  # on the disk to stay
    pool.save_contact_sheet(out / "pool.png")
    return GeneratorSamples(pool, ready.config.method["name"], ready.config.teachers[0].model, ready.card, batches)


def iter_generator_samples(folder: Path, count: int, *, seed: int, say: Callable[[str], None]) -> Iterator[Tensor]:
    """`count` images of the run in `folder`, [n, 3, h, w] in [0, 1] on the CPU, CALIBRATED at a time.

    They are what its generator draws from noise that is a pure function of `seed`.

    Raises UsageError as `draw` does.
    """
    if not (folder / RECIPE).is_file():
        raise UsageError(f"{folder}: no {RECIPE} in it; expected the folder of a run that `compress distill` made.")
    ready = prepare_training(*load_config(config.load_yaml(folder / RECIPE)))
    maker, _ = load_generator(folder, ready, create_accelerator("cpu", "32"), say)
    noise = torch.Generator().manual_seed(seed)
    for start in range(0, count, CALIBRATION_BATCH):
        z = torch.randn(min(CALIBRATION_BATCH, count - start), vars(ready.method)["z_dim"], generator=noise)
        yield maker.predict(z).float().expand(-1, 3, -1, -1).clamp(0, 1)  # a grey generator draws one channel


@torch.no_grad()
def predict_classes(teacher: FrozenModel, x: Tensor) -> Tensor:
    return teacher(x).argmax(1)


def load_generator(folder: Path, ready: TrainingSetup, place: Accelerator, say: Callable[[str], None]) -> tuple[TrainableModel, FrozenModel]:
    """The generator of the run in `folder`, and its teacher. Raises UsageError where there is none."""
    name = ready.config.method["name"]
    with TemporaryDirectory() as spare:
        _, run = build_dry_run(ready, place, images=dict.fromkeys(ready.method.needs, BATCH), folder=Path(spare))
    if "G" not in run.trainables:
        raise UsageError(f"{folder}: method {name} has no generator; expected a run of one that has, as mosaic.")
    found = CheckpointManager(folder / "checkpoints", place, say=say).load()
    if found is None:
        raise UsageError(f"{folder}: there is no checkpoint of the run; is it too young?")
    run.trainables["G"].load_state_dict(found[1]["players"]["G"])
    return run.trainables["G"], run.teacher
