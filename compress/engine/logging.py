"""Logs of a run: metrics.jsonl and TensorBoard, progress on standard error, and image grids."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torchvision.utils import make_grid

from compress.files import write_bytes

SECONDS_BETWEEN_LINES = 20.0
GRID_COLUMNS = 10


class MetricsLogger:
    """Writer of `metrics.jsonl`, and of TensorBoard events if TensorBoard is installed.

    Every line is an object with `kind` and `step`.
    """

    def __init__(self, run_dir: Path, *, tensorboard: bool = True) -> None:
        self.path = run_dir / "metrics.jsonl"
        self._use_tensorboard = tensorboard and importlib.util.find_spec("tensorboard") is not None
        self._writer = None
        self._first_step: int | None = None

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append one line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._use_tensorboard:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # pyright: ignore[reportPrivateImportUsage]

                self._writer = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self._first_step)
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)

    @property
    def size_bytes(self) -> int:
        """Size of the file; checkpoints contain it."""
        return self.path.stat().st_size if self.path.exists() else 0

    def truncate(self, size_bytes: int, step: int) -> None:
        """Remove all lines after `size_bytes`, which were written after `step` of the checkpoint."""
        self._first_step = step + 1
        if self.path.exists():
            content = self.path.read_bytes()[:size_bytes]
            write_bytes(self.path, content[: content.rfind(b"\n") + 1])

    def read_records(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of a kind; skips a line that a kill has cut off."""
        if not self.path.exists():
            return []
        parsed = map(_parse_line, self.path.read_text(encoding="utf-8").splitlines())
        return [line for line in parsed if line is not None and line["kind"] == kind]

    def close(self) -> None:
        """Close the TensorBoard writer."""
        if self._writer is not None:
            self._writer.close()


def _parse_line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and {"kind", "step"} <= line.keys() else None


class ProgressDisplay:
    """Progress on standard error: a live bar on a terminal, else a line every 20 seconds."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.title = title
        self.quiet = quiet
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal and not quiet
        self._begin = self._last_line = time.monotonic()
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ProgressDisplay:
        if self.live:
            columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[facts]}"))
            self._progress = Progress(*columns, *times, console=self.console)
            self._progress.start()
            self._task = self._progress.add_task(self.title, total=1.0, facts="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def update(self, progress: float, step: int, facts: str) -> None:
        """Show the progress of the run in [0, 1], the step, and a short text."""
        if self._progress is not None:
            self._progress.update(self._task, completed=progress, facts=f"step {step}  {facts}")
        elif not self.quiet and (time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or progress >= 1):
            self._last_line = time.monotonic()
            left = (self._last_line - self._begin) / progress * (1 - progress) if progress > 0 else float("nan")
            line = f"{self.title}  {progress:4.0%}  step {step}  {facts}  {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def print_line(self, message: str) -> None:
        """Print a message, without breaking the bar."""
        if not self.quiet:
            self.console.print(message, highlight=False, markup=False, soft_wrap=True)


def save_image_grid(path: Path, groups: list[Float[Tensor, "n 3 h w"]]) -> None:
    """Save groups of images in [0, 1] side by side as a PNG file, ten images per row, small images enlarged."""
    columns = [
        make_grid(group.detach().float().cpu().clamp(0, 1), nrow=GRID_COLUMNS, padding=2, pad_value=1.0)
        for group in groups
    ]
    height = max(column.shape[1] for column in columns)
    padded = [F.pad(column, (0, 12, 0, height - column.shape[1]), value=1.0) for column in columns]
    pixels = (torch.cat(padded, 2) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels)
    scale = 2 if image.width < 1200 else 1
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
