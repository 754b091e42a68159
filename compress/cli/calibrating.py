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

    from compress.models.card import Card

SYNTHETIC = "synthetic"
#: images at a time, for all that the layers make of them is kept until the next
AT_ONCE = 8


@dataclass(frozen=True)
class Calibration:
    """Where the images come from, and the batches, float32 [n, 3, h, w] in [0, 1], anew at each call."""

    name: str  #: for the record
    images: int
    batches: Callable[[], Iterator[NDArray[Any]]]

    def as_bytes(self) -> Callable[[], Iterator[NDArray[Any]]]:
        """The batches for a file that prepares pictures itself, uint8 [n, h, w, 3]."""
        from exporters.runner import to_bytes

        return lambda: (to_bytes(batch) for batch in self.batches())


def run_of(model: str) -> Path | None:
    """The folder of the distillation run that a model lies in; None where it is not in one."""
    from compress.plan import RECIPE

    path = Path(model).expanduser()
    return next((place for place in (path, *path.parents) if (place / RECIPE).is_file()), None)


@contextlib.contextmanager
def calibration(
    spec: str | None, model: str, card: Card, count: int, *, root: Path | None, say: Callable[[str], None]
) -> Iterator[Calibration]:
    """`count` images, or all if there are fewer, of `spec`: data, a run's folder, or SYNTHETIC for the model's own run.

    None: the model's own run too. Raises UsageError where there is no such run, or no images of it.
    """
    if spec in (None, SYNTHETIC) or (spec is not None and run_of(spec) == Path(spec).expanduser()):
        run = run_of(model if spec in (None, SYNTHETIC) else str(spec))
        if run is None:
            raise UsageError(
                f"{model}: int8 needs images to calibrate on, and the model is not in the folder of a run whose own "
                "could be taken; give some with --calibration DATA (in-domain or out-of-domain, without labels)."
            )
        if not (run / "pool").is_dir():
            yield generated(run, count, say)
            return
        spec, name = str(run / "pool"), f"{SYNTHETIC}: pool of {run.name}"
    else:
        name = str(spec)
    with tempfile.TemporaryDirectory() as folder:
        yield read(str(spec), name, card, count, Path(folder), root)


def generated(run: Path, count: int, say: Callable[[str], None]) -> Calibration:
    from compress.generated import samples

    def batches() -> Iterator[NDArray[Any]]:
        return (images.numpy() for images in samples(run, count, seed=0, say=say))

    return Calibration(f"{SYNTHETIC}: generator of {run.name}", count, batches)


def read(spec: str, name: str, card: Card, count: int, folder: Path, root: Path | None) -> Calibration:
    import numpy as np

    from compress.data import open_images
    from compress.data.cache import auto_views, build_cache

    images = open_images(spec, root=root, split="train").bare()
    views = min(auto_views(len(images)), -(-count // len(images)))
    cached = build_cache(
        images, image_size=card.image_size, resize=card.resize, views=views, grey=card.grey, folder=folder, limit=count
    )
    chosen = np.linspace(0, len(cached) - 1, min(count, len(cached))).astype(int)

    def batches() -> Iterator[NDArray[Any]]:
        for start in range(0, len(chosen), AT_ONCE):
            pixels = cached.gather(chosen[start : start + AT_ONCE])
            yield np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)

    return Calibration(name, len(chosen), batches)
