"""Knowledge distillation and training on labels against the formulas, written again in float64."""

from __future__ import annotations

import copy
import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import tiny_method, tiny_run
from torch.optim import SGD

from compress.engine.trainer import train

STEPS = 3


def reference(folder, name, loss, *, nesterov=False, weight_decay=1e-4, **settings):
    """The state of a student after STEPS steps of ours, and of the same steps in double precision."""
    run = tiny_run(folder, name, steps=STEPS)
    S = copy.deepcopy(run.student).double().train()
    optim = SGD(S.parameters(), lr=0.1, momentum=0.9, weight_decay=weight_decay, nesterov=nesterov)
    train(tiny_method(name, **settings), run)
    batches = next(iter(run.registered.values()))[0].batches
    for i in range(STEPS):
        optim.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * i / STEPS)) / 2
        pixels, labels, _ = batches.batch_at(i)
        optim.zero_grad()
        loss(S, pixels.double() / 255, labels, run).backward()
        optim.step()
    return run.student.state_dict(), S.state_dict()


def close(mine, his):
    assert mine.keys() == his.keys()
    for key, value in mine.items():
        assert torch.allclose(value.double(), his[key].double(), rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("settings", [{}, {"augment": False}, {"augment": False, "cache_teacher_logits": True}])
def test_kd_step_matches_reference(tmp_path, settings):
    def loss(S, x, labels, run):
        T = copy.deepcopy(run.teacher.net).double()
        with torch.no_grad():
            p = (T(x) / 5).softmax(1)
        return 25 * (p * (p.log() - (S(x) / 5).log_softmax(1))).sum(1).mean()

    close(*reference(tmp_path, "kd", loss, **settings))


def test_supervised_step_matches_reference(tmp_path):
    def loss(S, x, labels, run):
        return F.nll_loss(S(x).log_softmax(1), labels)

    close(*reference(tmp_path, "supervised", loss, nesterov=True, weight_decay=5e-4))


@pytest.mark.parametrize("name", ["kd", "supervised"])
def test_step_draws_one_batch(tmp_path, name):
    run = tiny_run(tmp_path, name, steps=3)
    train(tiny_method(name), run)
    assert [kept["position"] for kept in tiny.final_state(run)["per_rank"]["registered"].values()] == [3]


def test_student_approaches_teacher(tmp_path):
    """A student that starts elsewhere agrees with the teacher after a hundred steps on the images it learned from."""
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
