"""Images that int8 graphs are calibrated on: those of the user, or those of the training run itself."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.data import open_images
from compress.data.cache import build_cache, choose_view_count
from compress.errors import UsageError
from compress.own_files import POOL, RECIPE

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from compress.models.card import ModelCard

#: names the images of the model's own run
SYNTHETIC = "synthetic"
#: images per batch; the activations of all layers stay in memory for one batch
BATCH_SIZE = 8

#: (run directory, count) -> batches of images from the generator of the run
GenerateImages = Callable[[Path, int], "Iterator[Tensor]"]


@dataclass(frozen=True)
class CalibrationImages:
    """Batches for calibration, float32 [n, 3, h, w] in [0, 1]; every call of `batches` starts again."""

    name: str  #: source of the images, for records
    images: int  #: number of images
    batches: Callable[[], Iterator[NDArray[Any]]]

    def uint8_batches(self) -> Callable[[], Iterator[NDArray[Any]]]:
        """The batches for a file with preprocessing inside, uint8 [n, h, w, 3]."""
        from exporters.runtimes.base import to_uint8_images

        return lambda: (to_uint8_images(batch) for batch in self.batches())


def find_run_dir(model: str | Path) -> Path | None:
    """The directory of the run that a model belongs to; None if it is in none."""
    path = Path(model).expanduser()
    return next((parent for parent in (path, *path.parents) if (parent / RECIPE).is_file()), None)


@contextlib.contextmanager
def open_calibration_images(
    data: Any,
    model: Any,
    card: ModelCard,
    count: int,
    *,
    root: Path | None,
    generate: GenerateImages,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[CalibrationImages]:
    """Open up to `count` images for calibration.

    Args:
        data: Data as for `open_images`, the directory of a run, or SYNTHETIC or None: the run of the model, whose image
            pool or generator is used.
        model: Name or path of the model.
        card: Its card, for the image size.
        count: Number of images; fewer if there are fewer.
        root: Directory of named datasets.
        generate: Draws images from the generator of a run.
        progress: Receives sentences on what was chosen and left out of the data.

    Raises:
        UsageError: No data is given and the model is in no run.
    """
    is_path = isinstance(data, str | Path)
    if data in (None, SYNTHETIC) or (is_path and find_run_dir(data) == Path(data).expanduser()):
        source = model if data in (None, SYNTHETIC) else data
        run = find_run_dir(source) if isinstance(source, str | Path) else None
        if run is None:
            raise UsageError(
                f"{model}: int8 needs images for calibration, and the model is not in the directory of a run; give "
                "some with --calibration DATA (in-domain or out-of-domain, no labels needed)."
            )
        if not (run / POOL).is_dir():
            yield generated_images(run, count, generate)
            return
        data, name = str(run / POOL), f"{SYNTHETIC}: pool of {run.name}"
    else:
        name = str(data) if is_path else type(data).__name__
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield dataset_images(data, name, card, count, Path(folder), root, progress)


def generated_images(run: Path, count: int, generate: GenerateImages) -> CalibrationImages:
    def batches() -> Iterator[NDArray[Any]]:
        return (images.numpy() for images in generate(run, count))

    return CalibrationImages(f"{SYNTHETIC}: generator of {run.name}", count, batches)


def dataset_images(
    data: Any, name: str, card: ModelCard, count: int, folder: Path, root: Path | None, progress: Callable[[str], None]
) -> CalibrationImages:
    images = open_images(data, root=root, split="train").without_labels()
    for note in images.notes:
        progress(note)
    views = min(choose_view_count(len(images)), -(-count // len(images)))
    cached = build_cache(
        images, image_size=card.image_size, resize=card.resize, views=views, grayscale=card.grayscale, folder=folder,
        limit=count,
    )  # fmt: skip
    chosen = np.linspace(0, len(cached) - 1, min(count, len(cached))).astype(int)

    def batches() -> Iterator[NDArray[Any]]:
        for start in range(0, len(chosen), BATCH_SIZE):
            pixels = cached.gather(chosen[start : start + BATCH_SIZE])
            yield np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)

    return CalibrationImages(name, len(chosen), batches)
