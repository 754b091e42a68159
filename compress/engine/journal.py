"""What a run writes down as it goes: one JSON line at a time, and TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from compress.files import write_bytes


class Journal:
    """`metrics.jsonl`: one object a line, each with `step` and `kind`. What a kill cut off is dropped on resume."""

    def __init__(self, folder: Path, *, tensorboard: bool = True) -> None:
        self.path = folder / "metrics.jsonl"
        self._wanted = tensorboard and importlib.util.find_spec("tensorboard") is not None
        self._board = None
        self._first_step: int | None = None

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._wanted:
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter  # pyright: ignore[reportPrivateImportUsage]

                self._board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self._first_step)
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    @property
    def length(self) -> int:
        """Bytes written so far: what a checkpoint remembers of the journal."""
        return self.path.stat().st_size if self.path.exists() else 0

    def rewind(self, length: int, step: int) -> None:
        """Forget what was written after the first `length` bytes, at `step`: the resumed run writes it again."""
        self._first_step = step + 1
        if self.path.exists():
            content = self.path.read_bytes()[:length]
            write_bytes(self.path, content[: content.rfind(b"\n") + 1])

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
