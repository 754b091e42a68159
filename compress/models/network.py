"""A network that reads plain images: normalisation first, then the body."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.models.card import Card


class Normalise(nn.Module):
    """Images in [0, 1] -> what the body was trained on. Not learned, not in the state dict: it belongs to the card."""

    mean: Tensor
    std: Tensor
    luma: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], *, grey: bool = False) -> None:
        super().__init__()
        self.grey = grey
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("luma", torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h w"]:
        if self.grey:
            x = (x * self.luma).sum(1, keepdim=True)
        return (x - self.mean) / self.std


class Network(nn.Module):
    """Float RGB images in [0, 1], [n, 3, h, w] -> logits. The `body` holds everything that is learned."""

    def __init__(self, body: nn.Module, card: Card) -> None:
        super().__init__()
        self.normalise = Normalise(card.mean, card.std, grey=card.grey)
        self.body = body

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Tensor:
        return self.body(self.normalise(x))
