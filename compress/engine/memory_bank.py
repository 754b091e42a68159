"""A FIFO bank of feature vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from compress.engine.accelerator import Accelerator


class MemoryBank:
    """The last `size` feature vectors that were added, stored on the device.

    Memory: 4 * size * width bytes. Register it with the run, so that checkpoints contain it.
    """

    def __init__(self, size: int, width: int, accelerator: Accelerator) -> None:
        self.table: Float[Tensor, "m d"] = torch.zeros(size, width, device=accelerator.device)
        self.size, self.count, self.next = size, 0, 0

    def __len__(self) -> int:
        return self.count

    def add(self, rows: Float[Tensor, "n d"]) -> None:
        """Add any number of rows; they replace the oldest ones."""
        rows = rows.detach()[-self.size :]
        positions = (self.next + torch.arange(len(rows), device=self.table.device)) % self.size
        self.table[positions] = rows.to(self.table)
        self.next = (self.next + len(rows)) % self.size
        self.count = min(self.size, self.count + len(rows))

    def sample(self, n: int) -> Float[Tensor, "k d"]:
        """Return `n` different rows in random order, or all rows if there are fewer."""
        return self.table[torch.randperm(self.count)[:n].to(self.table.device)]

    def mark_full(self) -> None:
        """Treat every row as added, to measure the cost of a full bank."""
        self.count = self.size

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"rows": self.table[: self.count].clone(), "next": self.next}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        rows, self.next = state["rows"], state["next"]
        assert isinstance(rows, Tensor)
        self.count = len(rows)
        self.table[: self.count] = rows.to(self.table)
