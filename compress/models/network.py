"""A network that reads plain images: normalization, then the body."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.models.card import ModelCard


class Normalize(nn.Module):
    """Images in [0, 1] -> the input of the body. Not learned and not in the state dict: the card contains it."""

    mean: Tensor
    std: Tensor
    luma: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], *, grayscale: bool = False) -> None:
        super().__init__()
        self.grayscale = grayscale
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("luma", torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h w"]:
        if self.grayscale:
            x = (x * self.luma).sum(1, keepdim=True)
        return (x - self.mean) / self.std


class Network(nn.Module):
    """Float RGB images in [0, 1], [n, 3, h, w] -> logits. The `body` contains everything that is learned."""

    def __init__(self, body: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.normalize = Normalize(card.mean, card.std, grayscale=card.grayscale)
        self.body = body
        self.card = card

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Tensor:
        return self.body(self.normalize(x))
