"""Rollbacks: a diverged run returns to its last good state with lower learning rates, a limited number of times."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from contract import CLOCK, CountingMethod, FailingMethod, Killed, read_metrics
from tiny import tiny_method, tiny_run
from torch import Tensor, nn

from compress.engine.trainable import DivergedError
from compress.engine.trainer import train
from compress.errors import CompressError
from compress.methods import METHODS

NAN = torch.tensor(math.nan)


class PoisonedMethod(CountingMethod):
    """A method whose models become NaN in the steps for which `when(run)` holds, or only its logged losses."""

    def __init__(self, method: Any, when: Any, *, loss_only: bool = False) -> None:
        super().__init__(method)
        self.when, self.loss_only = when, loss_only

    def setup(self, run: Any) -> None:
        self.run = run
        super().setup(run)

    def step(self) -> dict[str, Tensor]:
        losses = super().step()
        if not self.when(self.run):
            return losses
        if not self.loss_only:
            for model in self.run.trainables.values():
                with torch.no_grad():
                    next(model.net.parameters()).fill_(math.nan)
        return dict.fromkeys(losses, NAN)


def once(step: int) -> Any:
    return lambda run: run.step + 1 == step and not run.rollbacks


def lr(run: Any) -> float:
    return run.trainables["S"].optimizer.param_groups[0]["lr"]


def assert_finite_checkpoint(run: Any) -> None:
    state = tiny.flatten_state(tiny.final_state(run))
    assert all(bool(v.isfinite().all()) for v in state.values() if isinstance(v, Tensor) and v.is_floating_point())


@pytest.mark.parametrize(("save_every", "returned_to"), [(2, 2), (100, 0)])
def test_single_failure_costs_one_rollback(tmp_path, save_every, returned_to):
    run = tiny_run(tmp_path, "kd", steps=6, save_every=save_every, log_every=1)
    method = PoisonedMethod(tiny_method("kd"), once(3))
    train(method, run)
    assert (run.step, method.steps) == (6, 3 + 6 - returned_to)
    (rollback,) = run.rollbacks
    assert (rollback["step"], rollback["to_step"], rollback["learning_rate_factor"]) == (3, returned_to, 0.5)
    assert [line["to_step"] for line in run.metrics_logger.read_records("rollback")] == [returned_to]
    assert tiny.final_state(run)["shared"]["rollbacks"] == run.rollbacks
    assert_finite_checkpoint(run)


def test_lower_rate_that_helps_is_found(tmp_path):
    run = tiny_run(tmp_path, "kd", steps=6, save_every=1, evaluate_every=100)
    train(PoisonedMethod(tiny_method("kd", lr=0.4), lambda run: lr(run) > 0.15), run)
    assert [rollback["learning_rate_factor"] for rollback in run.rollbacks] == [0.5, 0.25]


def test_run_that_always_fails_stops(tmp_path):
    run = tiny_run(
        tmp_path, "kd", steps=6, save_every=2, evaluate_every=1, max_rollbacks=2, rollback_factor=0.1,
        validate=tiny.score_class_0, save_models=True,
    )  # fmt: skip
    method = PoisonedMethod(tiny_method("kd"), lambda run: run.step + 1 == 4)
    with pytest.raises(DivergedError, match=r"step 4.*2 rollbacks.*step-000000002\.json") as caught:
        train(method, run)
    assert caught.value.exit_code == 1
    assert run.learning_rate_factor == pytest.approx(0.01)
    assert_finite_checkpoint(run)
    # The same command continues with the lower rate, and has no rollbacks left.
    again = tiny_run(tmp_path, "kd", steps=6, save_every=2, max_rollbacks=2, rollback_factor=0.1)
    method = PoisonedMethod(tiny_method("kd"), lambda run: run.step + 1 == 4)
    with pytest.raises(DivergedError):
        train(method, again)
    assert method.steps == 2


def test_without_rollbacks_the_first_failure_stops(tmp_path):
    run = tiny_run(tmp_path, "kd", steps=6, save_every=2, max_rollbacks=0)
    method = PoisonedMethod(tiny_method("kd"), once(3))
    with pytest.raises(DivergedError):
        train(method, run)
    assert (method.steps, run.rollbacks) == (3, [])


@pytest.mark.parametrize("save_every", [3, 4, 100])
def test_loss_between_two_logs_is_not_forgotten(tmp_path, save_every):
    """As on a GPU, where losses are read only when they are logged, evaluated or saved."""
    run = tiny_run(tmp_path, "kd", steps=8, save_every=save_every, evaluate_every=100, log_every=100)
    method = PoisonedMethod(tiny_method("kd"), once(4), loss_only=True)
    train(method, run)
    assert [rollback["to_step"] for rollback in run.rollbacks] == [3 if save_every == 3 else 0]


def test_failed_batch_is_not_repeated(tmp_path):
    seen = []

    def is_bad(run: Any) -> bool:
        seen.append(run.streams["unlabeled"].position)
        return seen[-1] == 3

    run = tiny_run(tmp_path, "kd", steps=5, save_every=2)
    train(PoisonedMethod(tiny_method("kd"), is_bad), run)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert len(run.rollbacks) == 1


def test_clock_and_best_student_are_kept(tmp_path):
    run = tiny_run(
        tmp_path, "kd", steps=5, save_every=2, evaluate_every=1, save_models=True,
        validate=lambda net: {"accuracy": 1 / (1 + run.step)},
    )  # fmt: skip
    train(PoisonedMethod(tiny_method("kd"), lambda run: run.step + 1 == 4 and not run.rollbacks), run)
    assert run.best["step"] == 1
    assert run.rollbacks
    lines = run.metrics_logger.read_records("evaluation")
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 5]
    assert sorted(line["seconds"] for line in lines) == [line["seconds"] for line in lines]


@pytest.mark.parametrize("name", ["kd", "cmi", "mosaic", pytest.param("all", marks=pytest.mark.slow)])
def test_rolled_back_run_resumes_exactly(tmp_path, name):
    """A rollback in a live process and a new process that resumes from its checkpoint compute the same."""
    for method in METHODS if name == "all" else [name]:
        run = partial(tiny_run, name=method, steps=5, save_every=2, log_every=1)
        whole = run(tmp_path / method / "whole")
        train(PoisonedMethod(tiny_method(method), once(2)), whole)
        assert [rollback["to_step"] for rollback in whole.rollbacks] == [0]

        poisoned = PoisonedMethod(tiny_method(method), once(2))
        with pytest.raises(Killed):
            train(FailingMethod(poisoned, 3), run(tmp_path / method / "cut"))
        torch.manual_seed(99)
        resumed = run(tmp_path / method / "cut")
        train(PoisonedMethod(tiny_method(method), once(2)), resumed)
        assert tiny.state_differences(tiny.final_state(whole), tiny.final_state(resumed), ignore=CLOCK) == [], method
        assert read_metrics(tmp_path / method / "whole") == read_metrics(tmp_path / method / "cut")


class FaultyNetwork(nn.Module):
    """A network whose outputs for dark images are NaN."""

    def __init__(self, net: nn.Module, threshold: float) -> None:
        super().__init__()
        self.net, self.threshold = net, threshold

    def forward(self, x: Tensor) -> Tensor:
        dark = x.mean((1, 2, 3)) < self.threshold
        return torch.where(dark[:, None], NAN, self.net(x))


@pytest.mark.parametrize("loss_only", [False, True])
def test_faulty_teacher_is_named(tmp_path, monkeypatch, loss_only):
    if loss_only:  # as on a GPU
        monkeypatch.setattr("compress.engine.trainable.check_finite_loss", lambda *_: None)
    run = tiny_run(tmp_path, "kd", steps=30, save_every=5)
    brightness = (tiny.InMemoryImages(seed=5).pixels / 255).mean((1, 2, 3)).sort().values
    run.teacher.net = FaultyNetwork(run.teacher.net, float(brightness[6]))
    with pytest.raises(DivergedError, match="teacher"):
        train(tiny_method("kd"), run)
    assert len(run.rollbacks) == 3
    assert all("teacher" in rollback["reason"] for rollback in run.rollbacks)
    assert_finite_checkpoint(run)


def test_score_that_is_not_a_number_is_never_best(tmp_path):
    scores = iter([math.nan, 0.2, math.inf, 0.1, math.nan])
    run = tiny_run(
        tmp_path, "kd", steps=5, evaluate_every=1, save_models=True,
        validate=lambda net: {"accuracy": next(scores), "other": 0.5},
    )  # fmt: skip
    train(tiny_method("kd"), run)
    assert run.best == {"step": 2, "metrics": {"accuracy": 0.2, "other": 0.5}}
    assert run.rollbacks == []


def test_state_that_is_not_finite_is_not_saved(tmp_path):
    class Bank:
        def state_dict(self) -> dict[str, Any]:
            return {"rows": torch.full((2,), math.inf), "next": 0}

    run = tiny_run(tmp_path, "kd")
    tiny_method("kd").setup(run)
    run.register("bank", Bank())  # pyright: ignore[reportArgumentType]
    with pytest.raises(DivergedError, match="bank"):
        run.save()
    assert run.checkpoints.saved_steps() == []


def test_removed_checkpoints_are_one_sentence(tmp_path):
    run = tiny_run(tmp_path, "kd", steps=6, save_every=1)

    def remove(run: Any) -> bool:
        if run.step == 2:
            for path in (tmp_path / "checkpoints").iterdir():
                path.unlink()
        return run.step == 2

    with pytest.raises(CompressError):
        train(PoisonedMethod(tiny_method("kd"), remove), run)
