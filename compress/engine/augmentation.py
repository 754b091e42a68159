"""Differentiable image augmentations for batches on the device.

All draw from the global random state, which checkpoints contain.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "n 3 h w"]
#: contrast is drawn from [1 - LIGHT, 1 + LIGHT], brightness from [-LIGHT / 2, LIGHT / 2], in units of a channel's range
LIGHT = 0.6


def random_crop_flip(x: Images, pad: int = 4) -> Images:
    """Shift each image by up to `pad` pixels with reflection at the border, and flip half of them."""
    n, _, height, width = x.shape
    shift = torch.randint(-pad, pad + 1, (n, 2), device=x.device) * torch.tensor([2 / width, 2 / height]).to(x.device)
    return crop_region_flip(x, torch.ones(n, 2, device=x.device), shift)


def random_resized_crop(x: Images, min_area: float = 0.25, max_ratio: float = 4 / 3) -> Images:
    """Resize a random region of each image to the full size, and flip half of the images.

    Args:
        x: Images.
        min_area: Smallest area of a region, as share of the image.
        max_ratio: Largest aspect ratio of a region (and the inverse of the smallest).
    """
    n = len(x)
    area = min_area + (1 - min_area) * torch.rand(n, device=x.device)
    ratio = (math.log(max_ratio) * (2 * torch.rand(n, device=x.device) - 1)).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp_max(1)
    return crop_region_flip(x, sides, (2 * torch.rand(n, 2, device=x.device) - 1) * (1 - sides))


def crop_region_flip(x: Images, sides: Float[Tensor, "n 2"], center: Float[Tensor, "n 2"]) -> Images:
    """Resize a given region of each image to the full size, and flip half of the images.

    Bilinear, with reflection beyond the border.

    Args:
        x: Images.
        sides: (width, height) of each region, as share of the image's.
        center: (x, y) of each region in [-1, 1]; 0 is the middle of the image.
    """
    mirror = 1 - 2 * (torch.rand(len(x), device=x.device) < 0.5).float()
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = sides[:, 0] * mirror, sides[:, 1], center
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    cropped = F.grid_sample(x.float(), grid, padding_mode="reflection", align_corners=False)
    return cropped.contiguous(memory_format=torch.channels_last)


def random_roll(x: Images, max_pixels: int) -> Images:
    """Roll all images by the same random number of pixels, up to `max_pixels` each way; flip all or none."""
    down, right = torch.randint(-max_pixels, max_pixels + 1, (2,)).tolist()
    rolled = x.roll((down, right), (2, 3))
    return rolled.flip(3) if bool(torch.rand(()) < 0.5) else rolled


def color_jitter(x: Images) -> Images:
    """Mix the color channels of each image, change contrast and brightness, and flip half of the images.

    A new channel is a weighted mean of the old ones, with weights softmax(2 N(0, 1)). One weight is often near 1, so
    colors are exchanged rather than lost. Each channel then gets its own contrast (around 0.5) and brightness.

    Args:
        x: Images in [0, 1].

    Returns:
        Images in [0, 1].
    """
    n = len(x)
    mix = (2 * torch.randn(n, 3, 3, device=x.device)).softmax(2).to(x.dtype)
    mirrored = torch.rand(n, 1, 1, 1, device=x.device) < 0.5
    contrast, light = (LIGHT * (2 * torch.rand(2, n, 3, 1, 1, device=x.device) - 1)).to(x.dtype)
    mixed = torch.einsum("nij,njhw->nihw", mix, x)
    lit = ((mixed - 0.5) * (1 + contrast) + 0.5 + light / 2).clamp(0, 1)
    return torch.where(mirrored, lit.flip(3), lit).contiguous(memory_format=torch.channels_last)
