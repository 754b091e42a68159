"""Datasets inside the package: Fashion-MNIST, scenes drawn from it, and photographs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from compress.data.dataset import ImageSet
from compress.errors import UsageError, suggest_nearest

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

PHOTO_DIR = Path(__file__).parent.parent / "embedded" / "photos"
#: photographs of scikit-image, documented as public domain, CC0 or without known restrictions; see NOTICE
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
def load_fashion_arrays() -> dict[str, np.ndarray]:
    with np.load(FASHION, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def fashion_images(split: str) -> ImageSet:
    """Fashion-MNIST, 28x28 gray: 10,000 balanced images of its training set, 2,000 of its test set."""
    arrays = load_fashion_arrays()
    pixels, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64)
    items = [f"fashion/{split}/{i}" for i in range(len(pixels))]
    return ImageSet(
        "embedded/fashion", items, lambda i: Image.fromarray(pixels[i]), f"1 {split}", labels, FASHION_CLASSES
    )


def fashion_scene_images(split: str) -> ImageSet:
    """Garments on smooth backgrounds, 128x128, with a class for every pixel."""
    return scene_images(split, load_fashion_arrays(), FASHION_CLASSES)


def photo_images(split: str) -> ImageSet:
    """Fourteen photographs, the same for every split."""
    paths = [PHOTO_DIR / name for name in PHOTOS]
    identity = " ".join(f"{path.name}:{path.stat().st_size}" for path in paths)
    return ImageSet("embedded/photos", [path.name for path in paths], lambda i: paths[i], identity)


EMBEDDED: dict[str, tuple[Callable[[str], ImageSet], str]] = {
    "fashion": (fashion_images, "Fashion-MNIST, 10,000 training and 2,000 test images, 10 classes (MIT)"),
    "fashion-scenes": (
        fashion_scene_images,
        "garments on smooth backgrounds, 10,000 training and 1,000 test scenes with masks, 11 classes (MIT)",
    ),
    "photos": (
        photo_images,
        "fourteen photographs (public domain, CC0), for out-of-domain crops",
    ),
}


def open_embedded(name: str, split: str) -> ImageSet:
    """Open a dataset of the package. Raises UsageError for an unknown name."""
    if name not in EMBEDDED:
        hint = suggest_nearest(name, EMBEDDED) or "."
        raise UsageError(f"embedded/{name}: no such embedded dataset{hint} Known: {', '.join(EMBEDDED)}.")
    return EMBEDDED[name][0](split)


SIDE = 128  #: pixels; networks read smaller ones
COUNTS = {"train": 10_000, "val": 1_000}
SEEDS = {"train": 1, "val": 2}
BACKGROUND = "background"
MAX_GARMENTS = 3  #: garments per scene
SCALES = (0.4, 0.75)  #: side of a garment's square, as a share of the scene's
GARMENT_THRESHOLD = 40  #: gray value from which a pixel belongs to the garment


def scene_images(split: str, arrays: dict[str, np.ndarray], names: list[str]) -> ImageSet:
    """10,000 scenes of training garments, or 1,000 of test garments; class 0 is the background.

    `arrays` contains Fashion-MNIST as `SPLIT_images` and `SPLIT_labels`, with SPLIT train or val.
    """
    split = "train" if split == "train" else "val"
    garments, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64)

    def draw_item(i: int) -> tuple[np.ndarray, np.ndarray]:
        return draw_scene(garments, labels, np.random.Generator(np.random.PCG64([SEEDS[split], i])))

    items = [f"fashion-scenes/{split}/{i}" for i in range(COUNTS[split])]
    return ImageSet(
        "embedded/fashion-scenes", items, lambda i: Image.fromarray(draw_item(i)[0]), f"2 {split}",
        class_names=[BACKGROUND, *names], open_mask=lambda i: draw_item(i)[1],
    )  # fmt: skip


def draw_scene(garments: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [SIDE, SIDE, 3], uint8 mask [SIDE, SIDE]): one to three tinted garments, later ones in front."""
    image, mask = draw_background(rng), np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(rng.integers(1, MAX_GARMENTS + 1)):
        which = rng.integers(len(garments))
        side = round(SIDE * rng.uniform(*SCALES))
        cloth = np.asarray(Image.fromarray(garments[which]).resize((side, side), Image.Resampling.BICUBIC))
        top, left = rng.integers(0, SIDE - side + 1, 2)
        here = slice(top, top + side), slice(left, left + side)
        ink = cloth >= GARMENT_THRESHOLD
        tint = rng.uniform(0.35, 1.0, 3)
        image[here][ink] = cloth[ink, None] * tint
        mask[here][ink] = labels[which] + 1
    noisy = image + rng.normal(0, 6, image.shape)
    return noisy.round().clip(0, 255).astype(np.uint8), mask


def draw_background(rng: np.random.Generator) -> np.ndarray:
    """float [SIDE, SIDE, 3] in [0, 255]: a color gradient through sixteen random points."""
    points = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    size = (SIDE, SIDE)
    return np.asarray(Image.fromarray(points).resize(size, Image.Resampling.BICUBIC)).astype(np.float64)


#
