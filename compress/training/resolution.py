"""Resolution of settings that depend on the teacher or the data, before a run begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compress.analysis.fid import sample_size
from compress.analysis.patch_size import DEFAULT_PATCH_SIZE, PatchSizeChoice, choice_for_shift, measure_shift
from compress.config import load_yaml
from compress.data.predictions import predict, select_highest_entropy
from compress.engine.method import Method
from compress.methods.mosaic import MosaicKD
from compress.own_files import RECIPE
from compress.training.config import TrainConfig
from compress.training.data import load_training_images
from compress.training.probing import check_networks
from compress.training.setup import TrainingSetup, prepare_training

AUTO = "auto"
Progress = Callable[[str], None]


def resolve_setup(
    config: TrainConfig, method: Method, output_dir: Path | None, *, devices: int = 1, resume: bool | None,
    progress: Progress,
) -> tuple[TrainingSetup, Path]:  # fmt: skip
    """Load the networks, try them, and resolve settings that depend on the data; also return the run directory.

    Raises:
        UsageError: a network does not read the image size or the batch (see `check_networks`).
    """
    batch_size = config.training.batch_size
    synthesized = config.method.get("images_per_synthesis")
    setup = prepare_training(config, method)
    if setup.teacher_input is not None:
        progress(setup.teacher_input.summary)
    check_networks(setup, devices=devices)
    if batch_size is None and config.training.batch_size != method.batch_size:
        progress(
            f"Assumed: batch size {config.training.batch_size} (the method's {method.batch_size} is for small images). "
            "If wrong: --batch-size."
        )
    if config.method.get("images_per_synthesis") != synthesized:
        progress(
            f"Assumed: {config.method['images_per_synthesis']} images per synthesis (the method's {synthesized} is for "
            "small images). If wrong: --set method.images_per_synthesis=N."
        )
    if config.data.unlabeled is not None and "unlabeled" not in method.needs:
        progress(f"{config.data.unlabeled}: not used; method {config.method['name']} uses no images.")
    run_dir = output_dir or default_run_dir(config)
    choose_patch_size(setup, run_dir, resume=resume, progress=progress)
    return setup, run_dir


def default_run_dir(config: TrainConfig) -> Path:
    """Return runs/METHOD-STUDENT."""
    return Path("runs") / f"{config.method['name']}-{config.student.model}".replace("/", "-")


def choose_patch_size(
    setup: TrainingSetup, run_dir: Path, *, resume: bool | None, progress: Progress
) -> PatchSizeChoice | None:
    """Replace `method.patch_size: auto` by a number in the setup; None if it is a number already.

    A run that `run_dir` holds keeps its number, unless `resume` is False.
    """
    method = setup.method
    if not isinstance(method, MosaicKD) or method.patch_size != AUTO:
        return None
    recorded = None if resume is False else recorded_patch_size(run_dir)
    if recorded is not None:
        choice = PatchSizeChoice(recorded, f"patch size {recorded}: that of the run in {run_dir}, which is resumed.")
    elif not method.local:
        reason = f"patch size {DEFAULT_PATCH_SIZE}, without effect: method.local is 0, so there is no discriminator."
        choice = PatchSizeChoice(DEFAULT_PATCH_SIZE, reason)
    else:
        choice = measure_patch_size(setup, progress)
    method.patch_size = setup.config.method["patch_size"] = choice.patch_size
    progress(choice.reason)
    return choice


def recorded_patch_size(run_dir: Path) -> int | None:
    """Return the patch size in the recipe of a run, if there is one."""
    path = run_dir / RECIPE
    size = load_yaml(path).get("method.patch_size") if path.exists() else None
    return size if isinstance(size, int) else None


def measure_patch_size(setup: TrainingSetup, progress: Progress) -> PatchSizeChoice:
    """Choose the patch size for the images that the run will read, decoded into its cache."""
    (teacher, card), data = setup.teachers[0], setup.config.data
    cache = load_training_images(data, setup.card, "unlabeled", seed=setup.config.training.seed, progress=progress)
    if data.subset is not None:
        cache = cache.subset(select_highest_entropy(predict(cache, teacher), data.subset))
    return choice_for_shift(measure_shift(teacher, cache, sample_size(card)), min(card.image_size))
