"""Data that ships with the package or with one of its dependencies: nothing to download."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from compress.data.images import Images
from compress.data.scenes import scenes
from compress.errors import CompressError

FASHION = Path(__file__).parent.parent / "embedded" / "fashion.npz"
FASHION_CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]

#: photographs in scikit-image's wheel that it documents as public domain, CC0 or without known restrictions; see NOTICE
PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "rocket.jpg",
)


@cache
def fashion_arrays() -> dict[str, np.ndarray]:
    with np.load(FASHION, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def fashion(split: str) -> Images:
    """Fashion-MNIST, 28x28 grey: 10,000 balanced images of its training set, 2,000 of its test set."""
    arrays = fashion_arrays()
    pixels, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64)
    items = [f"fashion/{split}/{i}" for i in range(len(pixels))]
    return Images(
        "embedded/fashion", items, lambda i: Image.fromarray(pixels[i]), f"1 {split}", labels, FASHION_CLASSES
    )


def fashion_scenes(split: str) -> Images:
    """Garments of `fashion` on smooth grounds, 128x128, with a class for every pixel."""
    return scenes(split, fashion_arrays(), FASHION_CLASSES)


def photos(split: str) -> Images:
    """The photographs that scikit-image ships, the same for every split. Raises CompressError where it is missing."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise CompressError("embedded/photos: scikit-image is not installed; run `pip install scikit-image`.")
    folder = Path(found.origin).parent / "data"
    paths = [folder / name for name in PHOTOS if (folder / name).is_file()]
    if not paths:
        raise CompressError(
            "embedded/photos: this scikit-image ships no photographs; run `pip install scikit-image==0.26.0`."
        )
    identity = " ".join(f"{path.name}:{path.stat().st_size}" for path in paths)
    return Images("embedded/photos", [path.name for path in paths], lambda i: paths[i], identity)


EMBEDDED: dict[str, tuple[Callable[[str], Images], str]] = {
    "fashion": (fashion, "Fashion-MNIST, 10,000 training and 2,000 test images, 10 classes (MIT)"),
    "fashion-scenes": (
        fashion_scenes,
        "garments on smooth grounds, 10,000 training and 1,000 test scenes with masks, 10 classes and background (MIT)",
    ),
    "photos": (photos, "fourteen photographs that scikit-image ships (public domain, CC0), for out-of-domain crops"),
}
