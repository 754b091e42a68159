"""Colours for the classes of label maps: as far apart for the eye as can be, however many there are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

BACKGROUND = (26, 26, 32)  #: of the class that is no thing
BACKGROUND_NAMES = ("background", "unlabelled", "unlabeled", "void")
#: what the colours must not be taken for: the ground, the page, and the grey of what nobody judges
RESERVED = (BACKGROUND, (255, 255, 255), (128, 128, 128))
LIGHTNESS = (42.0, 93.0)  #: of DIN99, between which colours are chosen
CHROMA = 13.0  #: of DIN99, below which a colour is rather a grey
STEPS = 18  #: of each channel among which is chosen


def class_colors(class_names: Sequence[str]) -> np.ndarray:
    """uint8 [classes, 3]: a colour each, by its place; a background is nearly black."""
    things = iter(distinct_colors(len(class_names)))
    chosen = [BACKGROUND if name.strip().lower() in BACKGROUND_NAMES else next(things) for name in class_names]
    return np.array(chosen, dtype=np.uint8).reshape(-1, 3)


@cache
def distinct_colors(n: int) -> list[tuple[int, int, int]]:
    """The first `n` colours of one fixed order, in which each is as far as can be from all before it."""
    levels = np.linspace(0, 255, STEPS).round().astype(np.uint8)
    all_of_them = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    seen = to_din99(all_of_them)
    grey = np.hypot(seen[:, 1], seen[:, 2]) < CHROMA
    wanted = ~grey & (seen[:, 0] > LIGHTNESS[0]) & (seen[:, 0] < LIGHTNESS[1])
    candidates, seen = all_of_them[wanted], seen[wanted]
    far = np.full(len(seen), np.inf)
    for colour in to_din99(np.array(RESERVED)):
        far = np.minimum(far, color_distance(seen, colour))
    chosen: list[tuple[int, int, int]] = []
    for _ in range(n):
        best = int(far.argmax())
        red, green, blue = (int(value) for value in candidates[best])
        chosen.append((red, green, blue))
        far = np.minimum(far, color_distance(seen, seen[best]))
    return chosen


def color_distance(some: np.ndarray, one: np.ndarray) -> np.ndarray:
    """How different colours [n, 3] look from `one`."""
    return np.linalg.norm(some - one, axis=-1)


#: from linear red, green and blue to CIE XYZ of the white that screens have (sRGB)
XYZ = np.array([
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
])  # fmt: skip


def to_din99(rgb: np.ndarray) -> np.ndarray:
    """sRGB [n, 3] in [0, 255] -> DIN99 (DIN 6176) [n, 3]: lightness in [0, 100], redness, yellowness.

    Distances in it are as the eye sees them; in CIE L*a*b* those between strong colours are far too long.
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
