"""The contract of all methods; a new method gets these tests by its line in METHODS."""

from __future__ import annotations

import json
import pickletools
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from compress.engine.method import Method
from compress.engine.run import Run
from compress.engine.trainer import train

#: parts of a checkpoint that depend on the clock, and may differ between two runs of the same recipe
CLOCK = ("/shared/elapsed", "/shared/metrics_bytes")
TIMES = ("seconds", "images_per_s", "data_wait_share")


class Killed(Exception):
    """Stands for a killed process."""


class CountingMethod:
    """A method with a count of its steps."""

    def __init__(self, method: Method) -> None:
        self.method, self.steps = method, 0

    def setup(self, run: Run) -> None:
        self.method.setup(run)

    def step(self) -> dict[str, torch.Tensor]:
        self.steps += 1
        return self.method.step()


class FailingMethod(CountingMethod):
    """A method that fails in step `at`, after its work and before it is logged."""

    def __init__(self, method: Method, at: int) -> None:
        super().__init__(method)
        self.at = at

    def step(self) -> dict[str, torch.Tensor]:
        losses = super().step()
        if self.steps == self.at:
            raise Killed
        return losses


def assert_resumes_exactly(
    folder: Path, name: str, precision: str, settings: dict[str, Any] | None = None, **options: Any
) -> None:
    """A run of 4 steps equals one that fails in its third step and resumes from a checkpoint of the second."""
    method = partial(tiny.tiny_method, name, **settings or {})
    run = partial(tiny.tiny_run, name=name, precision=precision, save_every=2, log_every=1, **options)
    whole = run(folder / "whole")
    train(method(), whole)

    torch.manual_seed(77)
    with pytest.raises(Killed):
        train(FailingMethod(method(), 3), run(folder / "cut"))
    torch.manual_seed(99)
    resumed, rest = run(folder / "cut"), CountingMethod(method())
    train(rest, resumed)

    assert rest.steps == 2, "the third and the fourth step are left"
    assert tiny.state_differences(tiny.final_state(whole), tiny.final_state(resumed), ignore=CLOCK) == []
    assert read_metrics(folder / "whole") == read_metrics(folder / "cut")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl without times."""
    parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in parsed]


def assert_trains_student_only(folder: Path, name: str, precision: str, task: str) -> None:
    run = tiny.tiny_run(folder, name, precision=precision, task=task)
    before = [{k: v.clone() for k, v in teacher.net.state_dict().items()} for teacher in run.teachers]
    student = {k: v.clone() for k, v in run.student.state_dict().items()}
    train(tiny.tiny_method(name), run)
    assert tiny.state_differences(before, [teacher.net.state_dict() for teacher in run.teachers]) == []
    for teacher in run.teachers:
        assert not any(module.training for module in teacher.net.modules())
        assert all(parameter.grad is None for parameter in teacher.net.parameters())
    moved = tiny.state_differences(student, run.student.state_dict())
    assert set(moved) == {f"/{key}" for key in student}, "the whole student moves, including its statistics"


def assert_survives_saturated_teacher(folder: Path, name: str) -> None:
    """One class has probability 1 and another one 0, to the last bit; losses and models stay finite."""
    run = tiny.tiny_run(folder, name, log_every=1)
    last = [module for module in run.teacher.net.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.bias.copy_(torch.tensor([1000.0, -1000.0, 0.0, 0.0]))
    train(tiny.tiny_method(name), run)  # raises if a logged loss is not finite
    assert all(model.is_finite() for model in run.trainables.values())


def assert_saves_plain_values(folder: Path, name: str) -> None:
    """The pickles in a checkpoint reference only the functions that rebuild tensors."""
    train(tiny.tiny_method(name), tiny.tiny_run(folder, name, steps=1))
    for path in (folder / "checkpoints").glob("*.pt"):
        with zipfile.ZipFile(path) as archive:
            content = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
        names = {str(arg) for op, arg, _ in pickletools.genops(content) if op.name == "GLOBAL"}
        allowed = ("torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch ")
        assert names
        assert all(name.startswith(allowed) for name in names), names
