"""Images that an int8 graph is calibrated on: the user's, or those of the distillation run itself."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compress.models.card import ModelCard

SYNTHETIC = "synthetic"
#: images at a time, for all that the layers make of them is kept until the next
BATCH_SIZE = 8


@dataclass(frozen=True)
class CalibrationImages:
    """Where the images come from, and the batches, float32 [n, 3, h, w] in [0, 1], anew at each call."""

    name: str  #: for the record
    images: int
    batches: Callable[[], Iterator[NDArray[Any]]]

    def uint8_batches(self) -> Callable[[], Iterator[NDArray[Any]]]:
        """The batches for a file that prepares pictures itself, uint8 [n, h, w, 3]."""
        from exporters.runtimes.base import to_uint8_images

        return lambda: (to_uint8_images(batch) for batch in self.batches())


def find_run_dir(model: str) -> Path | None:
    """The folder of the distillation run that a model lies in; None where it is not in one."""
    from compress.training.setup import RECIPE

    path = Path(model).expanduser()
    return next((place for place in (path, *path.parents) if (place / RECIPE).is_file()), None)


@contextlib.contextmanager
def open_calibration_images(
    spec: str | None, model: str, card: ModelCard, count: int, *, root: Path | None, progress: Callable[[str], None]
) -> Iterator[CalibrationImages]:
    """`count` images, or all if there are fewer, of `spec`: data, a run's folder, or SYNTHETIC for the model's own run.

    None: the model's own run too. Raises UsageError where there is no such run, or no images of it.
    """
    if spec in (None, SYNTHETIC) or (spec is not None and find_run_dir(spec) == Path(spec).expanduser()):
        run = find_run_dir(model if spec in (None, SYNTHETIC) else str(spec))
        if run is None:
            raise UsageError(
                f"{model}: int8 needs images to calibrate on, and the model is not in the folder of a run whose own "
                "could be taken; give some with --calibration DATA (in-domain or out-of-domain, without labels)."
            )
        if not (run / "pool").is_dir():
            yield generated_images(run, count, progress)
            return
        spec, name = str(run / "pool"), f"{SYNTHETIC}: pool of {run.name}"
    else:
        name = str(spec)
    with tempfile.TemporaryDirectory() as folder:
        yield dataset_images(str(spec), name, card, count, Path(folder), root)


def generated_images(run: Path, count: int, progress: Callable[[str], None]) -> CalibrationImages:
    from compress.analysis.generator_samples import iter_generator_samples

    def batches() -> Iterator[NDArray[Any]]:
        return (images.numpy() for images in iter_generator_samples(run, count, seed=0, say=progress))

    return CalibrationImages(f"{SYNTHETIC}: generator of {run.name}", count, batches)


def dataset_images(
    spec: str, name: str, card: ModelCard, count: int, folder: Path, root: Path | None
) -> CalibrationImages:
    import numpy as np

    from compress.data import open_images
    from compress.data.cache import build_cache, choose_view_count

    images = open_images(spec, root=root, split="train").without_labels()
    views = min(choose_view_count(len(images)), -(-count // len(images)))
    cached = build_cache(
        images,
        image_size=card.image_size,
        resize=card.resize,
        views=views,
        grayscale=card.grayscale,
        folder=folder,
        limit=count,
    )
    chosen = np.linspace(0, len(cached) - 1, min(count, len(cached))).astype(int)

    def batches() -> Iterator[NDArray[Any]]:
        for start in range(0, len(chosen), BATCH_SIZE):
            pixels = cached.gather(chosen[start : start + BATCH_SIZE])
            yield np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)

    return CalibrationImages(name, len(chosen), batches)
