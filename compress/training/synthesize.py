"""Images from a trained model alone, or from the generator of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from compress.config import check_range
from compress.errors import UsageError
from compress.model_options import MODEL_OPTIONS
from compress.own_files import NEWEST_IMAGES, POOL
from compress.training.recipes import build_document
from compress.units import MAX_SEED

if TYPE_CHECKING:
    from compress.models.model_input import ModelInput
    from compress.training.setup import TrainingSetup

DEFAULT_METHOD = "cmi"
#: settings of terms that need a student -> the value that turns them off
STUDENT_SETTINGS = {"adv": 0.0, "student_steps": 1}
#: arguments that the run of a generator decides
RUN_SETTINGS = ("teacher", *(set(MODEL_OPTIONS) - {"trust_pickle"}), "method", "recipe", "settings", "precision")


@dataclass(frozen=True)
class SynthesisResult:
    """Images that were generated."""

    output_dir: Path  #: run directory
    pool: Path  #: directory of the images, one directory per class
    preview: Path  #: contact sheet, one class per row
    method: str  #: method that made the images
    teacher: str  #: teacher, as given
    images: int  #: number of images
    classes: int  #: number of classes of the teacher
    by_class: dict[str, int]  #: images per class
    is_from_generator: bool  #: whether the images come from the generator of a run
    syntheses: int  #: batches that were made
    seconds: float  #: total time of all sessions
    teacher_input: ModelInput | None = None  #: how the teacher reads images; None with `run`


def synthesize(
    *, count: int, run: str | Path | None, output_dir: str | Path | None, settings: Mapping[str, Any] | Sequence[str],
    devices: int, restarts: int, resume: bool | None, allow_code: bool, progress: Callable[[str], None],
    **arguments: Any,
) -> SynthesisResult | None:  # fmt: skip
    """Generate images; the implementation of `compress.synthesize`. None in helper processes of torchrun."""
    if run is not None:
        arguments |= {"settings": settings, "allow_code": allow_code}
        return sample_generator(Path(run), count, output_dir, arguments, progress)
    from compress.training.launch import check_processes, train_in_dir
    from compress.training.memory import fit_memory
    from compress.training.probing import check_teachers

    check_processes(devices, restarts)
    setup = prepare_synthesis(count, settings, arguments, allow_code=allow_code)
    name = setup.config.method["name"]
    run_dir = Path(output_dir or Path("runs") / f"{name}-images")
    assert setup.teacher_input is not None
    progress(setup.teacher_input.summary)
    check_teachers(setup)
    fit_memory(setup, run_dir, devices=devices, resume=resume, progress=progress)
    stats = train_in_dir(
        setup, run_dir, devices=devices, restarts=restarts, resume=resume, image_count=count, progress=progress
    )
    if stats is None:
        return None
    result = describe_pool(
        run_dir, name, setup.config.teachers[0].model, setup.card, syntheses=stats.steps, seconds=stats.seconds
    )
    if result.images < count:
        raise UsageError(
            f"{run_dir}: found a finished run with {result.images} images, expected {count}; choose another --out, or "
            "--fresh to replace it."
        )
    return replace(result, teacher_input=setup.teacher_input)


def sample_generator(
    run: Path, count: int, output_dir: str | Path | None, arguments: Mapping[str, Any], progress: Callable[[str], None]
) -> SynthesisResult:
    """Sample from the generator of a run. Raises UsageError for arguments that the run decides."""
    from compress.training.generator_samples import save_generator_samples

    check_range("--seed", arguments["seed"] or 0, 0, MAX_SEED)
    start = time.monotonic()
    given = [name for name in sorted(RUN_SETTINGS) if arguments.get(name)]
    if given:
        raise UsageError(f"--run: {run} decides --{given[0].replace('_', '-')}; remove one of them.")
    target = Path(output_dir or run.with_name(f"{run.name}-images"))
    samples = save_generator_samples(
        run, count, target, device=arguments["device"] or "auto", seed=arguments["seed"] or 0,
        allow_code=arguments["allow_code"], trust_pickle=bool(arguments.get("trust_pickle")), progress=progress,
    )  # fmt: skip
    seconds = round(time.monotonic() - start, 2)
    result = describe_pool(
        target, samples.method, samples.teacher, samples.card, syntheses=samples.batches, seconds=seconds
    )
    return replace(result, is_from_generator=True)


def prepare_synthesis(
    count: int, settings: Mapping[str, Any] | Sequence[str], arguments: Mapping[str, Any], *, allow_code: bool
) -> TrainingSetup:
    """Return the checked setup for `count` images. Raises UsageError for a method that keeps no images."""
    from compress.engine.synthesis import is_synthesizer
    from compress.methods import METHODS, find_method
    from compress.training.config import StudentConfig
    from compress.training.setup import load_config, prepare_training
    from compress.training.trust import require_consent

    for name in STUDENT_SETTINGS:
        if any(one.partition("=")[0].strip() == f"method.{name}" for one in settings):
            raise UsageError(f"--set method.{name}: has no effect without a student; remove it.")
    document = build_document(settings=settings, **{**arguments, "steps": 1})
    consent = {"allow_code": allow_code, "trust_pickle": bool(arguments.get("trust_pickle"))}
    require_consent(document, **consent)
    name = str(document.get("method.name", DEFAULT_METHOD))
    if not is_synthesizer(find_method(name)):
        able = [name for name, kind in METHODS.items() if is_synthesizer(kind)]
        raise UsageError(f"--method: found {name}, which keeps no images; expected one of {', '.join(able)}.")
    config, checked = load_config(document.merge({"method": {"name": name}}, source=""), **consent)
    method = cast("Any", checked)
    for name, value in STUDENT_SETTINGS.items():
        setattr(method, name, value)
    config.method |= asdict(method)
    config.student, config.data.validation = StudentConfig(), None
    config.training = replace(config.training, evaluate_every=None, save_every=None, ema_decay=0.0)
    setup = prepare_training(config, method)
    images = method.images_per_synthesis  # as fits the image size of the teacher
    config.training.steps, config.training.batch_size = math.ceil(count / images), images
    return setup


def describe_pool(
    run_dir: Path, method: str, teacher: str, card: Any, *, syntheses: int, seconds: float
) -> SynthesisResult:
    """Count the images in the pool of a run."""
    pool = run_dir / POOL
    directories = sorted(path for path in pool.iterdir() if path.is_dir())
    names = card.class_names or [str(i) for i in range(card.classes)]
    names = names if len(directories) == len(names) else [path.name for path in directories]
    counts = [len(list(path.glob("*.png"))) for path in directories]
    return SynthesisResult(
        run_dir, pool, run_dir / NEWEST_IMAGES.format(name="pool"), method, teacher, sum(counts), card.classes,
        dict(zip(names, counts, strict=True)), is_from_generator=False, syntheses=syntheses, seconds=round(seconds, 2),
    )  # fmt: skip
