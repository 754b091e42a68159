"""Colors for classes, as different to the eye as possible for any number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

BACKGROUND = (26, 26, 32)  #: color of the background class
BACKGROUND_NAMES = ("background", "unlabelled", "unlabeled", "void")
#: colors that must differ from all others: background, page, and the gray of ignored pixels
RESERVED = (BACKGROUND, (255, 255, 255), (128, 128, 128))
LIGHTNESS = (42.0, 93.0)  #: range in DIN99
CHROMA = 13.0  #: chroma in DIN99 below which a color looks gray
STEPS = 18  #: levels per channel


def class_colors(class_names: Sequence[str]) -> np.ndarray:
    """Return uint8 [classes, 3]: one color per class; background is nearly black."""
    things = iter(distinct_colors(len(class_names)))
    chosen = [BACKGROUND if name.strip().lower() in BACKGROUND_NAMES else next(things) for name in class_names]
    return np.array(chosen, dtype=np.uint8).reshape(-1, 3)


@cache
def distinct_colors(n: int) -> list[tuple[int, int, int]]:
    """Return the first `n` colors of a fixed order in which each is as far as possible from all before it."""
    levels = np.linspace(0, 255, STEPS).round().astype(np.uint8)
    all_of_them = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    seen = to_din99(all_of_them)
    gray = np.hypot(seen[:, 1], seen[:, 2]) < CHROMA
    wanted = ~gray & (seen[:, 0] > LIGHTNESS[0]) & (seen[:, 0] < LIGHTNESS[1])
    candidates, seen = all_of_them[wanted], seen[wanted]
    far = np.full(len(seen), np.inf)
    for color in to_din99(np.array(RESERVED)):
        far = np.minimum(far, color_distance(seen, color))
    chosen: list[tuple[int, int, int]] = []
    for _ in range(n):
        best = int(far.argmax())
        red, green, blue = (int(value) for value in candidates[best])
        chosen.append((red, green, blue))
        far = np.minimum(far, color_distance(seen, seen[best]))
    return chosen


def color_distance(some: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Return the perceived distances of colors [n, 3] from one color."""
    return np.linalg.norm(some - one, axis=-1)


#: linear RGB to CIE XYZ with the white point of sRGB
XYZ = np.array([
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
])  # fmt: skip


def to_din99(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB [n, 3] in [0, 255] to DIN99 (DIN 6176): lightness in [0, 100], redness, yellowness.

    Distances in it match perception; in CIE L*a*b* those between saturated colors are far too large.
    """
    share = rgb.astype(np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    x, y, z = ((linear @ XYZ.T) / XYZ.sum(1)).T
    fx, fy, fz = (np.where(v > 216 / 24389, np.cbrt(v), (24389 / 27 * v + 16) / 116) for v in (x, y, z))
    a, b, turn = 500 * (fx - fy), 200 * (fy - fz), np.deg2rad(16)
    redness, yellowness = a * np.cos(turn) + b * np.sin(turn), 0.7 * (b * np.cos(turn) - a * np.sin(turn))
    strength = np.hypot(redness, yellowness)
    shorter = np.log1p(0.045 * strength) / (0.045 * np.maximum(strength, 1e-9))
    return np.stack([105.51 * np.log1p(0.0158 * (116 * fy - 16)), redness * shorter, yellowness * shorter], -1)
