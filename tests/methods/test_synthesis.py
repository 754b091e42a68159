"""Methods that synthesize images into a pool."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from generator_reference import create_method

METHODS = ("deepinversion", "cmi", "fastdfkd")


@pytest.mark.parametrize("name", METHODS)
def test_synthesis_balances_classes(tmp_path, name):
    method, run = create_method(tmp_path, name, iterations=1)
    for _ in range(40):
        method.synthesize()
    counts = torch.bincount(method.pool.labels, minlength=run.task.classes).double()
    expected = len(method.pool) / run.task.classes
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < 16.3, "the 0.1 % quantile for three degrees of freedom"


@pytest.mark.parametrize(("name", "settings"), [("deepinversion", {}), ("cmi", {}), ("fastdfkd", {"warmup": 0})])
def test_synthesis_changes_no_network(tmp_path, name, settings):
    method, run = create_method(tmp_path, name, **settings)
    nets = [run.student, run.teacher.net]
    before = [copy.deepcopy(net.state_dict()) for net in nets]
    method.synthesize()
    assert tiny.state_differences(before, [net.state_dict() for net in nets]) == []
    assert all(p.grad is None for net in nets for p in net.parameters())
    assert run.student.training


#: method -> settings without any term, long enough to descend
NO_TERMS = {
    "cmi": {"cross_entropy": 0.0, "bn": 0.0, "adv": 0.0, "contrast": 0.0, "lr_G": 0.01, "iterations": 40},
    "fastdfkd": {
        "cross_entropy": 0.0, "bn": 0.0, "adv": 0.0, "warmup": 0, "reset": 0, "lr_G": 0.01, "iterations": 30,
    },
}  # fmt: skip
TERMS = [(name, term) for name in NO_TERMS for term in ("cross_entropy", "bn", "adv")] + [("cmi", "contrast")]


@pytest.mark.parametrize(("name", "term"), TERMS)
def test_each_term_descends(tmp_path, name, term, monkeypatch):
    """Alone, each term goes down; the divergence of the student, which is subtracted, goes up."""
    method, _ = create_method(tmp_path, name, **{**NO_TERMS[name], term: 1.0})
    losses, synthesis_loss = [], method.synthesis_loss
    monkeypatch.setattr(method, "synthesis_loss", lambda x, y: losses.append(synthesis_loss(x, y)) or losses[-1])
    if term == "adv":  # a student that predicts the same class with less confidence
        monkeypatch.setattr(method.S, "forward_eval", lambda x: 0.5 * method.T(x))
    method.synthesize()
    values = [loss.item() for loss, _ in losses]
    assert sum(values[-5:]) < sum(values[:5])
    assert term != "adv" or values[-1] < 0
