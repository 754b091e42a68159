"""Augmentation of a whole batch at once, a pure function of its seed."""

from __future__ import annotations

import numpy as np


def crop_flip(pixels: np.ndarray, seed: tuple[int, ...], pad: int = 4) -> np.ndarray:
    """Random crops of the reflected-padded images, half of them mirrored; [n, h, w, c] in and out.

    Every image has a shift of up to `pad` pixels of its own. Draws from `seed` alone, so that a mask goes
    where its image goes.
    """
    n, height, width, _ = pixels.shape
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    shift = rng.integers(0, 2 * pad + 1, size=(2, n))
    mirrored = rng.random(n) < 0.5
    mode = "reflect" if min(height, width) > pad else "edge"
    padded = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode=mode)
    cropped = np.empty_like(pixels)
    for i, (top, left) in enumerate(shift.T):  # slices copy whole rows: twenty times a gather of pixels
        crop = padded[i, top : top + height, left : left + width]
        cropped[i] = crop[:, ::-1] if mirrored[i] else crop
    return cropped
