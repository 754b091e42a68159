"""Live progress on standard error: a bar for people, a line now and then for a log file."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 20.0


class Display:
    """Shows losses, images a second, the score and the time left. Silent where `quiet`."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.title = title
        self.quiet = quiet
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal and not quiet
        self._spoke = time.monotonic()
        self._begin = self._spoke
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Display:
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
        """`progress` in [0, 1] of the run, and one short line of facts."""
        if self._progress is not None:
            self._progress.update(self._task, completed=progress, facts=f"step {step}  {facts}")
        elif not self.quiet and (time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES or progress >= 1):
            self._spoke = time.monotonic()
            left = (self._spoke - self._begin) / progress * (1 - progress) if progress > 0 else float("nan")
            print(
                f"{self.title}  {progress:4.0%}  step {step}  {facts}  {left:.0f} s left", file=sys.stderr, flush=True
            )

    def say(self, message: str) -> None:
        if not self.quiet:
            self.console.print(message, highlight=False, markup=False, soft_wrap=True)
