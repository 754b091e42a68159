"""What a run writes down as it goes: one JSON line at a time, and TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from compress.files import write_text


class Journal:
    """`metrics.jsonl`: one object a line, each with `step` and `kind`. What a kill cut off is dropped on resume."""

    def __init__(self, folder: Path, *, tensorboard: bool = True) -> None:
        self.path = folder / "metrics.jsonl"
        self._wanted = tensorboard and importlib.util.find_spec("tensorboard") is not None
        self._board = None

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._wanted:
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter  # pyright: ignore[reportPrivateImportUsage]

                self._board = SummaryWriter(str(self.path.parent / "tensorboard"))
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def rewind(self, step: int) -> None:
        """Forget what was written after `step`: the resumed run writes it again."""
        if self.path.exists():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            write_text(self.path, "".join(line + "\n" for line in kept))

    def lines(self, kind: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        parsed = [
            json.loads(line)
            for line in self.path.read_text(encoding="utf-8").splitlines()
            if _step(line) != float("inf")
        ]
        return [line for line in parsed if line["kind"] == kind]

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _step(line: str) -> float:
    """The step of a line, or infinity for one that was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
