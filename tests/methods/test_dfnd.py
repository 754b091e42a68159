"""DFND against a float64 reference: selection, softened predictions, labels through Q."""

from __future__ import annotations

import copy
import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import tiny_method, tiny_run
from torch import Tensor
from torch.optim import SGD, Adam

from compress.engine.trainer import train
from compress.errors import UsageError
from compress.methods.dfnd import DFND, NoiseAdaptation, select_confident

STEPS, ACCURACY = 4, 0.8


def full_Q(free: Tensor, accuracy: float) -> Tensor:
    """Q from learned rows without the diagonal, as in the authors' code."""
    off = free.softmax(1) * (1 - accuracy)
    rows = [torch.cat([row[:i], row.new_tensor([accuracy]), row[i:]]) for i, row in enumerate(off)]
    return torch.stack(rows)


def off_diagonal(square: Tensor) -> Tensor:
    c = len(square)
    return square[~torch.eye(c, dtype=torch.bool)].view(c, c - 1)


@pytest.mark.parametrize(
    "settings", [{}, {"noisy_labels": 0.3, "keep_images": 20.0, "temperature": 2.0, "augment": False}]
)
def test_step_matches_reference(tmp_path, settings):
    method, run = tiny_method("dfnd", teacher_accuracy=ACCURACY, **settings), tiny_run(tmp_path, "dfnd", steps=STEPS)
    assert isinstance(method, DFND)
    tiny.balance_predictions(run.teacher)
    T, S = copy.deepcopy(run.teacher.net).double(), copy.deepcopy(run.student).double().train()
    free = torch.zeros(tiny.CLASSES, tiny.CLASSES - 1, dtype=torch.float64, requires_grad=True)
    of_S, of_Q = SGD(S.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4), Adam([free], lr=1e-3)
    train(method, run)
    batches = run.registered["stream unlabeled"][0].batches
    for i in range(STEPS):
        of_S.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * i / STEPS)) / 2
        x = batches.batch_at(i)[0].double() / 255
        with torch.no_grad():
            t = T(x)
        s, k = S(x), method.temperature
        loss = F.kl_div((s / k).log_softmax(1), (t / k).softmax(1), reduction="batchmean") * k**2
        loss = loss + method.noisy_labels * F.nll_loss((s.softmax(1) @ full_Q(free, ACCURACY)).log(), t.argmax(1))
        of_S.zero_grad()
        of_Q.zero_grad()
        loss.backward()
        of_S.step()
        of_Q.step()
    tiny.assert_weights_near(run.student, S)
    Q = run.trainables["Q"].net
    assert isinstance(Q, NoiseAdaptation)
    assert torch.allclose(off_diagonal(Q.off_diagonal).double(), free, atol=2e-5)
    assert float(free.detach().abs().max()) > 1e-3, "Q has learned"


# Q.


def learned(classes: int = 5) -> NoiseAdaptation:
    Q = NoiseAdaptation(classes, ACCURACY)
    with torch.no_grad():
        Q.off_diagonal.normal_(0, 3, generator=torch.Generator().manual_seed(0))
    return Q


def test_noise_matrix_rows_are_distributions():
    for Q in (NoiseAdaptation(5, ACCURACY), learned()):
        matrix = Q.log_matrix().exp()
        assert torch.allclose(matrix.sum(1), torch.ones(5))
        assert torch.allclose(matrix.diagonal(), torch.full((5,), ACCURACY))
    assert torch.allclose(off_diagonal(NoiseAdaptation(5, ACCURACY).log_matrix().exp()), torch.full((5, 4), 0.2 / 4))
    assert torch.allclose(
        learned().log_matrix().exp().double(), full_Q(off_diagonal(learned().off_diagonal).double(), ACCURACY)
    )


def test_noise_matrix_diagonal_is_fixed():
    Q = learned()
    Q(torch.randn(9, 5, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 5).mean().backward()
    assert Q.off_diagonal.grad is not None
    assert torch.equal(Q.off_diagonal.grad.diagonal(), torch.zeros(5))
    assert (off_diagonal(Q.off_diagonal.grad) != 0).all()


def test_noise_matrix_learns_confusion():
    """The student is right; the teacher calls a fifth of class 0 class 2."""
    Q = NoiseAdaptation(4, ACCURACY)
    true = torch.arange(40) % 4
    said = torch.where((true == 0) & (torch.arange(40) % 5 == 0), 2, true)
    optimizer = Adam(Q.parameters(), lr=0.1)
    for _ in range(50):
        loss = Q(20 * F.one_hot(true, 4).float(), said).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert Q.log_matrix().exp()[0].tolist() == pytest.approx([0.8, 0, 0.2, 0], abs=0.02)


def test_ruled_out_label_costs_its_noise():
    sure = torch.tensor([[1000.0, -1000.0, 0.0]])
    loss = NoiseAdaptation(3, ACCURACY)(sure, torch.tensor([1]))
    assert loss.item() == pytest.approx(-math.log(0.1), rel=1e-5)


# Selection.


def test_most_confident_images_are_sampled(tmp_path):
    run = tiny_run(tmp_path, "dfnd")
    run.seed_all()
    tiny_method("dfnd", keep_images=0.25).setup(run)
    with torch.no_grad():
        t = run.teacher.net(tiny.InMemoryImages(seed=5).pixels / 255).double()
    best = F.cross_entropy(t, t.argmax(1), reduction="none").topk(12, largest=False).indices
    odds = run.registered["stream unlabeled"][0].batches.odds
    assert odds.nonzero()[0].tolist() == sorted(best.tolist())
    drawn = {
        i
        for position in range(20)
        for i in run.registered["stream unlabeled"][0].batches.batch_at(position)[2].tolist()
    }
    assert drawn == set(best.tolist())


@pytest.mark.parametrize(("keep", "chosen"), [(0.5, [1, 3]), (1.0, [0, 1, 2, 3]), (3.0, [0, 1, 3]), (0.01, [1])])
def test_keep_images_is_share_or_count(keep, chosen):
    """Ties are resolved by order."""
    found = select_confident(torch.tensor([0.5, 0.9, 0.5, 0.7]).double(), keep)
    assert found.nonzero()[:, 0].tolist() == chosen


def test_keep_images_above_total_raises(tmp_path):
    with pytest.raises(UsageError, match="600000"):
        train(tiny_method("dfnd", keep_images=600_000.0), tiny_run(tmp_path, "dfnd"))


def test_selection_restores_from_checkpoint(tmp_path):
    first, again = (tiny_run(tmp_path, "dfnd", steps=steps) for steps in (2, 4))
    for run in (first, again):
        train(tiny_method("dfnd"), run)
    assert [run.sources["unlabeled"].predict_calls for run in (first, again)] == [1, 0]
