"""Logs of a run: metrics.jsonl and TensorBoard, progress on standard error, and image grids."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torchvision.utils import make_grid

from compress.engine.signals import received_signal
from compress.files import (
    WriteError,
    append_bytes,
    fsync_dir,
    make_directory,
    require_regular_file,
    sanitize,
    sync_file,
    write_bytes,
    write_error,
)
from compress.own_files import METRICS, TENSORBOARD

SECONDS_BETWEEN_LINES = 20.0
GRID_COLUMNS = 10


class LogFaults:
    """Lets a run continue if a log cannot be written; the first fault of each log is reported."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self._reported: set[Path] = set()

    @contextlib.contextmanager
    def tolerate(self, path: Path) -> Iterator[None]:
        """Report an error of writing the log `path`, if it is the first one, and continue."""
        try:
            yield
        except (OSError, WriteError) as error:
            if path not in self._reported:
                self._reported.add(path)
                failure = write_error(path, error) if isinstance(error, OSError) else error
                self.report(f"{failure} The run continues without this log.")


class MetricsLogger:
    """Writer of `metrics.jsonl`, and of TensorBoard events if TensorBoard is installed.

    Every line is an object with `kind` and `step`. Lines that cannot be written are written with a later one.

    Args:
        run_dir: Run directory.
        tensorboard: Also write TensorBoard events, if TensorBoard is installed.
        report: Receives messages about lines that cannot be written or read.
    """

    def __init__(
        self, run_dir: Path, *, tensorboard: bool = True, report: Callable[[str], None] = lambda message: None
    ) -> None:
        self.path = run_dir / METRICS
        self.report = report
        self.faults = LogFaults(report)
        self._events = None
        if tensorboard and importlib.util.find_spec("tensorboard") is not None:
            self._events = EventFile(run_dir / TENSORBOARD)
        self._unwritten = b""
        self._has_synced_name = False

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append one line. If it cannot be written, that is reported once."""
        self._unwritten += json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n"
        self._write_lines()
        if self._events is not None:
            numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
            with self.faults.tolerate(self._events.folder):
                self._events.add(step, numbers)

    def _write_lines(self) -> None:
        with self.faults.tolerate(self.path):
            append_bytes(self.path, self._unwritten)
            self._unwritten = b""

    def close(self) -> None:
        """Write the lines that could not be written before."""
        if self._unwritten:
            self._write_lines()

    def sync(self) -> int:
        """Flush the file to the disk; returns its size, which checkpoints contain."""
        self.close()
        if not self.path.exists():
            return 0
        with self.faults.tolerate(self.path):
            sync_file(self.path)
            if not self._has_synced_name:
                fsync_dir(self.path.parent)
                self._has_synced_name = True
        return self.path.stat().st_size

    def truncate(self, size_bytes: int, step: int) -> None:
        """Remove all lines after `size_bytes`, which were written after `step` of the checkpoint.

        Raises:
            WriteError: The file cannot be changed.
            UsageError: It is not a regular file.
        """
        if self._events is not None:
            self._events.first_step = step + 1
        if self.path.exists():
            content = require_regular_file(self.path).read_bytes()[:size_bytes]
            try:
                os.truncate(self.path, content.rfind(b"\n") + 1)
            except OSError as error:
                raise write_error(self.path, error) from error

    def read_records(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of a kind; damaged lines are reported and left out, a cut last line is left out."""
        try:
            content = require_regular_file(self.path).read_bytes() if self.path.exists() else b""
        except OSError as error:
            self.report(f"{self.path}: cannot be read ({error.strerror}); its lines are left out.")
            return []
        lines = [_parse_line(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
        damaged = [number for number, line in enumerate(lines, 1) if line is None]
        if damaged:
            self.report(f"{self.path}: line {damaged[0]}: damaged; {len(damaged)} such lines are left out.")
        return [line for line in lines if line is not None and line["kind"] == kind]


def _parse_line(text: bytes) -> dict[str, Any] | None:
    """Return a line of `metrics.jsonl`; None if it is damaged."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str) or type(line.get("step")) is not int:
        return None
    is_whole = line["kind"] != "evaluation" or all(_is_number(line[name]) for name in line.keys() - {"kind"})
    return line if is_whole else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class EventFile:
    """A file of TensorBoard events, which is written at each call; TensorBoard's own writer uses a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first_step: int | None = None  #: later events of earlier files belong to undone steps
        self._path: Path | None = None

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append the scalars of a step. Raises OSError if they cannot be written."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        events = [Event(wall_time=time.time(), step=step, summary=Summary(value=values))]
        path = self._path
        if path is None:
            make_directory(self.folder)
            path = self.folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
            first = [Event(wall_time=time.time(), file_version="brain.Event:2")]
            if self.first_step is not None:
                session = SessionLog(status=SessionLog.START)
                first.append(Event(wall_time=time.time(), step=self.first_step, session_log=session))
            events = [*first, *events]
        append_bytes(path, encode_events(events))
        self._path = path


def encode_events(events: list[Any]) -> bytes:
    """Encode TensorBoard events as its files contain them."""
    from tensorboard.summary.writer.record_writer import RecordWriter  # pyright: ignore

    buffer = io.BytesIO()
    for event in events:
        RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


class ProgressDisplay:
    """Progress on standard error: a live bar on a terminal, else a line every 20 seconds."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.title = sanitize(title)
        self.quiet = quiet
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal and not quiet
        self._begin = self._last_line = time.monotonic()
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ProgressDisplay:
        if self.live:
            columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            times = (
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[facts]}", markup=False),
            )
            self._progress = Progress(*columns, *times, console=self.console)
            self._progress.start()
            self._task = self._progress.add_task(escape(self.title), total=1.0, facts="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def update(self, progress: float, step: int, facts: str) -> None:
        """Show the progress of the run in [0, 1], the step, and a short text."""
        with tolerate_full_disk():
            self._update(progress, step, sanitize(facts))

    def _update(self, progress: float, step: int, facts: str) -> None:
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
            with tolerate_full_disk():
                self.console.print(sanitize(message), highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def tolerate_full_disk() -> Iterator[None]:
    """Ignore errors of standard error, which may be a file on a full disk, except that its reader has ended.

    A signal may have ended the reader too; then this process must still save its state.
    """
    try:
        yield
    except BrokenPipeError:
        if not received_signal():
            raise
    except OSError:
        pass


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
