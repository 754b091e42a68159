"""The training loop: schedule, evaluation, saved students, and divergence."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from contract import CLOCK, CountingMethod
from tiny import tiny_method, tiny_run

from compress.engine.trainable import DivergedError
from compress.engine.trainer import train
from compress.models.serialization import load_card, load_model_directory


class DivergingMethod:
    """A method that makes a parameter or buffer of a model not finite after step `at`."""

    def __init__(self, method, at: int, who: str, what: str = "parameter", value: float = float("nan")) -> None:
        self.method, self.at, self.who, self.what, self.value, self.steps = method, at, who, what, value, 0

    def setup(self, run) -> None:
        self.run = run
        self.method.setup(run)

    def step(self):
        losses = self.method.step()
        self.steps += 1
        if self.steps == self.at:
            net = self.run.teacher.net if self.who == "T" else self.run.trainables[self.who].net
            tensors = dict(net.named_parameters()) if self.what == "parameter" else dict(net.named_buffers())
            name = [n for n, t in tensors.items() if t.is_floating_point() and "normalize" not in n][-1]
            with torch.no_grad():
                tensors[name].view(-1)[0] = self.value
        return losses


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["parameter", "buffer"])
@pytest.mark.parametrize("who", ["G", "D", "S"])
def test_diverged_model_stops_run_with_details(tmp_path, who, what, value):
    run = tiny_run(tmp_path, steps=9, save_every=2, evaluate_every=100, max_rollbacks=0)
    with pytest.raises(DivergedError) as caught:
        train(DivergingMethod(tiny_method("mosaic"), 3, who, what, value), run)
    message = str(caught.value)
    assert "step 3" in message or "step 4" in message
    assert f": {who}" in message or f" {who} " in message
    assert str(tmp_path / "checkpoints" / "step-000000002.json") in message
    assert caught.value.exit_code == 1
    assert run.checkpoints.saved_steps() == [2]


def test_diverged_loss_is_named(tmp_path):
    with pytest.raises(DivergedError, match=r"step [12].*G.*teacher"):
        train(DivergingMethod(tiny_method("mosaic"), 1, "T"), tiny_run(tmp_path, steps=9, save_every=4))


def test_run_resumes_after_divergence(tmp_path):
    whole = tiny_run(tmp_path / "whole", steps=6, save_every=2)
    train(tiny_method("mosaic"), whole)
    with pytest.raises(DivergedError):
        train(
            DivergingMethod(tiny_method("mosaic"), 3, "S"),
            tiny_run(tmp_path / "hit", steps=6, save_every=2, max_rollbacks=0),
        )
    again, method = tiny_run(tmp_path / "hit", steps=6, save_every=2), CountingMethod(tiny_method("mosaic"))
    train(method, again)
    assert method.steps == 4
    assert tiny.state_differences(tiny.final_state(whole), tiny.final_state(again), ignore=CLOCK) == []


def test_diverged_student_is_not_saved(tmp_path):
    run = tiny_run(
        tmp_path,
        "kd",
        steps=9,
        save_every=100,
        evaluate_every=1,
        max_rollbacks=0,
        validate=lambda net: {"accuracy": 1.0},
        save_models=True,
    )
    with pytest.raises(DivergedError):
        train(DivergingMethod(tiny_method("kd"), 1, "S"), run)
    assert not (tmp_path / "best").exists()
    assert not (tmp_path / "last").exists()


def scores(*values: float):
    given = iter(values)
    return lambda net: {"accuracy": next(given), "other": 0.0}


def test_best_and_last_student_are_saved(tmp_path):
    students = []

    def score(net):
        students.append(copy.deepcopy(net.state_dict()))
        return {"accuracy": (0.1, 0.7, 0.7, 0.3)[len(students) - 1]}

    run = tiny_run(tmp_path, "kd", steps=4, evaluate_every=1, validate=score, save_models=True)
    train(tiny_method("kd"), run)
    for name, step, accuracy in (("best", 2, 0.7), ("last", 4, 0.3)):
        card = load_card(tmp_path / name)
        assert (card.provenance, card.metrics) == ({"step": step}, {"accuracy": accuracy})
        net, _ = load_model_directory(tmp_path / name, user_code="tiny:small")
        assert tiny.state_differences(net.state_dict(), students[step - 1]) == []
    assert run.best == {"metrics": {"accuracy": 0.7}, "step": 2}


def test_last_student_is_best_without_score(tmp_path):
    train(tiny_method("kd"), tiny_run(tmp_path, "kd", save_models=True))
    best, last = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("best", "last"))
    assert best == last


def evaluations(run) -> list[int]:
    return [line["step"] for line in run.metrics_logger.read_records("evaluation")]


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (20, None, [*range(2, 21, 2)]),
        (7, None, [*range(1, 8)]),
        (10, 4, [4, 8, 10]),
        (6, 3, [3, 6]),
    ],
)
def test_evaluations_follow_schedule(tmp_path, steps, every, expected):
    run = tiny_run(tmp_path, "kd", steps=steps, evaluate_every=every, validate=tiny.score_class_0)
    train(tiny_method("kd"), run)
    assert evaluations(run) == expected


def test_student_evaluated_in_eval_mode(tmp_path):
    seen = []
    run = tiny_run(tmp_path, "kd", steps=2, evaluate_every=1, validate=lambda net: seen.append(net.training) or {})
    train(tiny_method("kd"), run)
    assert seen == [False, False]
    assert run.student.training


def test_metrics_lines_follow_log_every(tmp_path):
    run = tiny_run(tmp_path, "kd", steps=23, log_every=10)
    train(tiny_method("kd"), run)
    lines = run.metrics_logger.read_records("train")
    assert [line["step"] for line in lines] == [1, 10, 20, 23]
    assert all({"S", "images_per_s", "data_wait_share", "seconds"} <= line.keys() for line in lines)
    assert all(0 <= line["data_wait_share"] <= 1 for line in lines)


def test_finished_run_stays_unchanged(tmp_path):
    options = {"steps": 3, "validate": tiny.score_class_0, "save_models": True}
    first = tiny_run(tmp_path, **options)
    train(tiny_method("mosaic"), first)
    made = [p for p in tmp_path.rglob("*") if p.is_file() and p.parent.name in ("best", "last", "compress-images")]
    files, before = {p: p.read_bytes() for p in [*made, tmp_path / "metrics.jsonl"]}, tiny.final_state(first)
    again, method = tiny_run(tmp_path, **options), CountingMethod(tiny_method("mosaic"))
    train(method, again)
    assert method.steps == 0
    assert tiny.state_differences(before, tiny.final_state(again), ignore=CLOCK) == []
    assert {p: p.read_bytes() for p in files} == files


def test_time_limit_ends_run(tmp_path):
    run, method = tiny_run(tmp_path, "kd", steps=None, time_limit=0.5, log_every=1), CountingMethod(tiny_method("kd"))
    train(method, run)
    assert run.progress == 1
    assert run.step == method.steps > 0
    assert run.trainables["S"].optimizer.param_groups[0]["lr"] < 0.1


def test_time_before_resume_counts(tmp_path):
    run = tiny_run(tmp_path, "kd", steps=None, time_limit=0.3)
    train(tiny_method("kd"), run)
    again, method = tiny_run(tmp_path, "kd", steps=None, time_limit=0.3), CountingMethod(tiny_method("kd"))
    train(method, again)
    assert method.steps == 0
    assert again.elapsed >= 0.3


def test_ema_student_is_decayed_sum(tmp_path):
    class Watched(CountingMethod):
        def step(self):
            losses = super().step()
            students.append({k: v.clone().double() for k, v in run.student.state_dict().items()})
            return losses

    run, students = tiny_run(tmp_path, "kd", steps=4, ema_decay=0.75, save_models=True), []
    expected = {k: v.clone().double() for k, v in run.student.state_dict().items()}
    train(Watched(tiny_method("kd")), run)
    for student in students:
        expected = {
            k: 0.75 * v + 0.25 * student[k] if "num_batches" not in k else student[k] for k, v in expected.items()
        }  # fmt: skip
    net, _ = load_model_directory(tmp_path / "last", user_code="tiny:small")
    for key, value in net.state_dict().items():
        assert torch.allclose(value.double(), expected[key], atol=1e-6), key
    assert tiny.state_differences(net.state_dict(), run.student.state_dict())


def test_registered_names_are_unique(tmp_path):
    run = tiny_run(tmp_path, "kd")
    run.register("thing", run.student)
    with pytest.raises(AssertionError, match="thing"):
        run.register("thing", run.student)


def test_streams_have_own_order(tmp_path):
    run = tiny_run(tmp_path)
    a, b = run.stream("real", "unlabeled"), run.stream("ood", "unlabeled")
    assert not torch.equal(next(a), next(b))


def test_fixed_noise_uses_no_global_state(tmp_path):
    run, before = tiny_run(tmp_path), torch.get_rng_state()
    assert torch.equal(run.fixed_noise(5, 3), run.fixed_noise(5, 3))
    assert torch.equal(before, torch.get_rng_state())


def test_tensorboard_complete_after_divergence(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(DivergedError):
        train(
            DivergingMethod(tiny_method("kd"), 3, "S"),
            tiny_run(tmp_path, "kd", steps=9, log_every=1, evaluate_every=100, max_rollbacks=0),
        )
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/S")] == [1, 2, 3]
