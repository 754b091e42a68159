"""The loop: its clock, its looking and keeping, and how it stops where a player breaks."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from contract import CLOCK, Counting
from tiny import tiny_method, tiny_run

from compress.engine.play import play
from compress.engine.player import Diverged
from compress.models.folder import load_card, load_model_folder


class Poisoner:
    """A method after whose step `at` something in a player, or in the teacher, is not finite."""

    def __init__(self, method, at: int, who: str, what: str = "parameter", value: float = float("nan")) -> None:
        self.method, self.at, self.who, self.what, self.value, self.steps = method, at, who, what, value, 0

    def setup(self, run) -> None:
        self.run = run
        self.method.setup(run)

    def step(self):
        losses = self.method.step()
        self.steps += 1
        if self.steps == self.at:
            net = self.run.teacher.net if self.who == "T" else self.run.players[self.who].net
            tensors = dict(net.named_parameters()) if self.what == "parameter" else dict(net.named_buffers())
            name = [n for n, t in tensors.items() if t.is_floating_point() and "normalise" not in n][-1]
            with torch.no_grad():
                tensors[name].view(-1)[0] = self.value
        return losses


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["parameter", "buffer"])
@pytest.mark.parametrize("who", ["G", "D", "S"])
def test_a_broken_player_stops_the_run_naming_step_player_and_last_good_checkpoint(tmp_path, who, what, value):
    run = tiny_run(tmp_path, steps=9, save=2, evaluate=100)
    with pytest.raises(Diverged) as caught:
        play(Poisoner(tiny_method("mosaic"), 3, who, what, value), run)
    words = str(caught.value)
    assert words.startswith(("step 3: ", "step 4: ")), words
    assert f"parameters that are not finite: {who}" in words or f"parameters of {who} are not finite" in words
    assert str(tmp_path / "checkpoints" / "step-000000002.json") in words
    assert caught.value.exit_code == 1
    assert run.checkpoints.steps() == [2]


def test_the_loss_that_broke_is_named(tmp_path):
    with pytest.raises(Diverged, match=r"^step 2: the loss of G is nan; there is no checkpoint yet\."):
        play(Poisoner(tiny_method("mosaic"), 1, "T"), tiny_run(tmp_path, steps=9, save=4))


def test_after_a_passing_fault_the_run_goes_on_from_the_last_good_checkpoint(tmp_path):
    whole = tiny_run(tmp_path / "whole", steps=6, save=2)
    play(tiny_method("mosaic"), whole)
    with pytest.raises(Diverged):
        play(Poisoner(tiny_method("mosaic"), 3, "S"), tiny_run(tmp_path / "hit", steps=6, save=2))
    again, method = tiny_run(tmp_path / "hit", steps=6, save=2), Counting(tiny_method("mosaic"))
    play(method, again)
    assert method.steps == 4
    assert tiny.differences(tiny.finished(whole), tiny.finished(again), ignore=CLOCK) == []


def test_a_broken_student_is_never_kept_as_the_best(tmp_path):
    run = tiny_run(tmp_path, "kd", steps=9, save=100, evaluate=1, validate=lambda net: {"accuracy": 1.0}, keep=True)
    with pytest.raises(Diverged):
        play(Poisoner(tiny_method("kd"), 1, "S"), run)
    assert not (tmp_path / "best").exists()
    assert not (tmp_path / "last").exists()


def scores(*values: float):
    given = iter(values)
    return lambda net: {"accuracy": next(given), "other": 0.0}


def test_the_best_and_the_last_student_are_kept(tmp_path):
    students = []

    def score(net):
        students.append(copy.deepcopy(net.state_dict()))
        return {"accuracy": (0.1, 0.7, 0.7, 0.3)[len(students) - 1]}

    run = tiny_run(tmp_path, "kd", steps=4, evaluate=1, validate=score, keep=True)
    play(tiny_method("kd"), run)
    for name, step, accuracy in (("best", 2, 0.7), ("last", 4, 0.3)):
        card = load_card(tmp_path / name)
        assert (card.provenance, card.metrics) == ({"step": step}, {"accuracy": accuracy})
        net, _ = load_model_folder(tmp_path / name, own="tiny:small")
        assert tiny.differences(net.state_dict(), students[step - 1]) == []
    assert run.best == {"metrics": {"accuracy": 0.7}, "step": 2}


def test_without_a_score_the_last_student_is_also_the_best(tmp_path):
    play(tiny_method("kd"), tiny_run(tmp_path, "kd", keep=True))
    best, last = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("best", "last"))
    assert best == last


def evaluations(run) -> list[int]:
    return [line["step"] for line in run.journal.lines("evaluation")]


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (20, None, [*range(2, 21, 2)]),
        (7, None, [*range(1, 8)]),
        (10, 4, [4, 8, 10]),
        (6, 3, [3, 6]),
    ],
)
def test_a_run_is_evaluated_ten_times_or_as_often_as_it_says_and_at_its_end(tmp_path, steps, every, expected):
    run = tiny_run(tmp_path, "kd", steps=steps, evaluate=every, validate=tiny.share_of_class_0)
    play(tiny_method("kd"), run)
    assert evaluations(run) == expected


def test_the_student_is_judged_at_rest_and_goes_on_training(tmp_path):
    seen = []
    run = tiny_run(tmp_path, "kd", steps=2, evaluate=1, validate=lambda net: seen.append(net.training) or {})
    play(tiny_method("kd"), run)
    assert seen == [False, False]
    assert run.student.training


def test_the_journal_has_the_first_step_every_tenth_and_the_last(tmp_path):
    run = tiny_run(tmp_path, "kd", steps=23, log=10)
    play(tiny_method("kd"), run)
    lines = run.journal.lines("train")
    assert [line["step"] for line in lines] == [1, 10, 20, 23]
    assert all({"S", "images_per_s", "data_wait_share", "seconds"} <= line.keys() for line in lines)
    assert all(0 <= line["data_wait_share"] <= 1 for line in lines)


def test_a_finished_run_that_is_played_again_is_left_as_it_is(tmp_path):
    options = {"steps": 3, "validate": tiny.share_of_class_0, "keep": True}
    first = tiny_run(tmp_path, **options)
    play(tiny_method("mosaic"), first)
    made = [p for p in tmp_path.rglob("*") if p.is_file() and p.parent.name in ("best", "last", "pictures")]
    files, before = {p: p.read_bytes() for p in [*made, tmp_path / "metrics.jsonl"]}, tiny.finished(first)
    again, method = tiny_run(tmp_path, **options), Counting(tiny_method("mosaic"))
    play(method, again)
    assert method.steps == 0
    assert tiny.differences(before, tiny.finished(again), ignore=CLOCK) == []
    assert {p: p.read_bytes() for p in files} == files


def test_a_time_limit_ends_the_run_and_the_learning_rate_follows_the_clock(tmp_path):
    run, method = tiny_run(tmp_path, "kd", steps=None, time_limit=0.5, log=1), Counting(tiny_method("kd"))
    play(method, run)
    assert run.progress == 1
    assert run.step == method.steps > 0
    assert run.players["S"].optimizer.param_groups[0]["lr"] < 0.1


def test_time_spent_before_a_break_counts(tmp_path):
    run = tiny_run(tmp_path, "kd", steps=None, time_limit=0.3)
    play(tiny_method("kd"), run)
    again, method = tiny_run(tmp_path, "kd", steps=None, time_limit=0.3), Counting(tiny_method("kd"))
    play(method, again)
    assert method.steps == 0
    assert again.elapsed >= 0.3


def test_an_averaged_student_is_the_decayed_sum_of_all_students_and_the_one_that_is_kept(tmp_path):
    class Watched(Counting):
        def step(self):
            losses = super().step()
            students.append({k: v.clone().double() for k, v in run.student.state_dict().items()})
            return losses

    run, students = tiny_run(tmp_path, "kd", steps=4, ema=0.75, keep=True), []
    expected = {k: v.clone().double() for k, v in run.student.state_dict().items()}
    play(Watched(tiny_method("kd")), run)
    for student in students:
        expected = {
            k: 0.75 * v + 0.25 * student[k] if "num_batches" not in k else student[k] for k, v in expected.items()
        }  # fmt: skip
    net, _ = load_model_folder(tmp_path / "last", own="tiny:small")
    for key, value in net.state_dict().items():
        assert torch.allclose(value.double(), expected[key], atol=1e-6), key
    assert tiny.differences(net.state_dict(), run.student.state_dict())


def test_names_are_given_once(tmp_path):
    run = tiny_run(tmp_path, "kd")
    run.keep("thing", run.student)
    with pytest.raises(AssertionError, match="thing"):
        run.keep("thing", run.student)


def test_streams_of_different_names_have_orders_of_their_own(tmp_path):
    run = tiny_run(tmp_path)
    a, b = run.stream("real", "unlabelled"), run.stream("ood", "unlabelled")
    assert not torch.equal(next(a), next(b))


def test_noise_for_pictures_is_the_same_each_time_and_draws_from_no_global_state(tmp_path):
    run, before = tiny_run(tmp_path), torch.get_rng_state()
    assert torch.equal(run.noise(5, 3), run.noise(5, 3))
    assert torch.equal(before, torch.get_rng_state())


def test_tensorboard_has_all_that_was_logged_also_where_a_run_breaks(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Diverged):
        play(Poisoner(tiny_method("kd"), 3, "S"), tiny_run(tmp_path, "kd", steps=9, log=1, evaluate=100))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/S")] == [1, 2, 3]
