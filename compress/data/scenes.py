"""Fashion-MNIST garments on smooth grounds: a segmentation set that needs no download, a pure function of its seed."""

from __future__ import annotations

import numpy as np
from PIL import Image

from compress.data.images import Images

SIDE = 128  #: pixels; networks read them smaller
COUNTS = {"train": 10_000, "val": 1_000}
SEEDS = {"train": 1, "val": 2}
BACKGROUND = "background"
MOST = 3  #: garments a scene
SCALES = (0.4, 0.75)  #: side of a garment's square, as a share of the scene's
INK = 40  #: grey value from which a pixel is the garment's


def scenes(split: str, arrays: dict[str, np.ndarray], names: list[str]) -> Images:
    """10,000 scenes of training garments, or 1,000 of test garments; class 0 is the background.

    `arrays` holds Fashion-MNIST as `SPLIT_images` and `SPLIT_labels`, with SPLIT train or val.
    """
    split = "train" if split == "train" else "val"
    garments, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64)

    def drawn(i: int) -> tuple[np.ndarray, np.ndarray]:
        return scene(garments, labels, np.random.Generator(np.random.PCG64([SEEDS[split], i])))

    items = [f"fashion-scenes/{split}/{i}" for i in range(COUNTS[split])]
    return Images(
        "embedded/fashion-scenes", items, lambda i: Image.fromarray(drawn(i)[0]), f"2 {split}",
        class_names=[BACKGROUND, *names], masks=lambda i: drawn(i)[1],
    )  # fmt: skip


def scene(garments: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [SIDE, SIDE, 3], uint8 mask [SIDE, SIDE]): one to three tinted garments, the later before the earlier."""
    picture, mask = ground(rng), np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(rng.integers(1, MOST + 1)):
        which = rng.integers(len(garments))
        side = round(SIDE * rng.uniform(*SCALES))
        cloth = np.asarray(Image.fromarray(garments[which]).resize((side, side), Image.Resampling.BICUBIC))
        top, left = rng.integers(0, SIDE - side + 1, 2)
        here = slice(top, top + side), slice(left, left + side)
        ink = cloth >= INK
        tint = rng.uniform(0.35, 1.0, 3)
        picture[here][ink] = cloth[ink, None] * tint
        mask[here][ink] = labels[which] + 1
    noisy = picture + rng.normal(0, 6, picture.shape)
    return noisy.round().clip(0, 255).astype(np.uint8), mask


def ground(rng: np.random.Generator) -> np.ndarray:
    """float [SIDE, SIDE, 3] in [0, 255]: a colour gradient through sixteen random points."""
    points = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    size = (SIDE, SIDE)
    return np.asarray(Image.fromarray(points).resize(size, Image.Resampling.BICUBIC)).astype(np.float64)
