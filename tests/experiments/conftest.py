"""Trainings in this process instead of processes of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from compress.cli import main
from compress.experiments import artifacts

#: a method that fails in its setup, or in its first step
BROKEN = '''
from dataclasses import dataclass
from typing import ClassVar
from compress.engine.trainable import DivergedError
from compress.errors import UsageError

@dataclass
class Broken:
    """Never works."""
    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple] = ()
    tasks: ClassVar[tuple] = ("classification",)
    uses: ClassVar[tuple] = ()
    batch_size: ClassVar[int] = 8
    in_setup: bool = True
    def setup(self, run):
        if self.in_setup:
            raise UsageError("broken: it never works.")
        self.S = run.add_trainable("S", run.student, optimizer=__import__("torch").optim.SGD)
    def step(self):
        raise DivergedError("the loss is nan")
'''


@pytest.fixture(autouse=True)
def _random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


class TrainingCalls:
    """Runs `compress` commands in this process and records them."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, arguments: list[str], progress: Any, **_: Any) -> tuple[int, str]:
        self.calls.append(list(arguments))
        result = CliRunner().invoke(main, arguments)
        lines = result.stderr.strip().splitlines() or [""]
        return result.exit_code, lines[-1].removeprefix("Error: ")

    def take_run_names(self) -> list[str]:
        """Names of the runs that were trained since the last call."""
        names = [Path(arguments[arguments.index("--out") + 1]).name for arguments in self.calls]
        self.calls.clear()
        return names


@pytest.fixture(scope="module")
def trainings(tmp_path_factory) -> Iterator[TrainingCalls]:
    """Trainings in this process; `broken:Broken` can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("own")
        (folder / "broken.py").write_text(BROKEN)
        patch.syspath_prepend(str(folder))
        calls = TrainingCalls()
        patch.setattr(artifacts, "run_compress", calls)
        yield calls
    sys.modules.pop("broken", None)
