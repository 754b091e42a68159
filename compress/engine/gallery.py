"""Pictures of what a method makes: synthetic images sorted by predicted class, beside samples of the real stream."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from compress.files import write_bytes

COLUMNS = 10


def save_grid(path: Path, halves: list[Float[Tensor, "n 3 h w"]]) -> None:
    """Write the sets of images in [0, 1] side by side, ten a row, a white bar between, magnified to be seen."""
    grids = [make_grid(h.detach().float().cpu().clamp(0, 1), nrow=COLUMNS, padding=2, pad_value=1.0) for h in halves]
    height = max(grid.shape[1] for grid in grids)
    padded = [torch.nn.functional.pad(g, (0, 12, 0, height - g.shape[1]), value=1.0) for g in grids]
    pixels = (torch.cat(padded, 2) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels)
    scale = 2 if image.width < 1200 else 1
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
