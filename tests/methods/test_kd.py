"""KD, Balanced and supervised training against float64 references."""

from __future__ import annotations

import copy
import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import tiny_method, tiny_run
from torch.optim import SGD

from compress.engine.stream import Stream
from compress.engine.trainer import train

STEPS = 3


def assert_step_matches(folder, name, loss, *, nesterov=False, weight_decay=1e-4, **settings):
    """Compare the student after STEPS steps of ours, and after the same steps in float64."""
    run = tiny_run(folder, name, steps=STEPS)
    if name == "balanced":
        tiny.balance_predictions(run.teacher)
    S = copy.deepcopy(run.student).double().train()
    optimizer = SGD(S.parameters(), lr=0.1, momentum=0.9, weight_decay=weight_decay, nesterov=nesterov)
    train(tiny_method(name, **settings), run)
    batches = next(stream for stream, _ in run.registered.values() if isinstance(stream, Stream)).batches
    for i in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * i / STEPS)) / 2
        pixels, labels, _ = batches.batch_at(i)
        optimizer.zero_grad()
        loss(S, pixels.double() / 255, labels, run).backward()
        optimizer.step()
    tiny.assert_weights_near(run.student, S)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("kd", {}),
        ("kd", {"augment": False}),
        ("kd", {"augment": False, "cache_teacher_logits": True}),
        ("balanced", {}),
    ],
)
def test_kd_step_matches_reference(tmp_path, name, settings):
    def loss(S, x, labels, run):
        T = copy.deepcopy(run.teacher.net).double()
        with torch.no_grad():
            p = (T(x) / 5).softmax(1)
        return 25 * (p * (p.log() - (S(x) / 5).log_softmax(1))).sum(1).mean()

    assert_step_matches(tmp_path, name, loss, **settings)


def test_supervised_step_matches_reference(tmp_path):
    def loss(S, x, labels, run):
        return F.nll_loss(S(x).log_softmax(1), labels)

    assert_step_matches(tmp_path, "supervised", loss, nesterov=True, weight_decay=5e-4)


@pytest.mark.parametrize("name", ["kd", "supervised"])
def test_step_draws_one_batch(tmp_path, name):
    run = tiny_run(tmp_path, name, steps=3)
    train(tiny_method(name), run)
    assert [kept["position"] for kept in tiny.final_state(run)["per_rank"]["registered"].values()] == [3]


def test_student_approaches_teacher(tmp_path):
    """After a hundred steps the student's predictions on the training images are near the teacher's."""
    run = tiny_run(tmp_path, "kd", steps=100, batch_size=32)
    x = tiny.InMemoryImages(seed=5).pixels / 255
    agree = []
    for moment in ("before", "after"):
        with torch.no_grad():
            t, s = run.teacher.net(x), run.student.eval()(x)
        agree.append(float(F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean")))
        if moment == "before":
            train(tiny_method("kd"), run)
    assert agree[1] < agree[0] / 5
