"""Losses and metrics of tasks that decide by threshold, against two-class losses and counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.losses import logits
from compress.models.card import ModelCard
from compress.tasks import task_for_card

LABELS = ModelCard("x", classes=3, image_size=(4, 4), task="multilabel_classification", class_names=["a", "b", "c"])
MASK = ModelCard("x", classes=1, image_size=(4, 4), task="segmentation")


def two_classes(z: Tensor) -> Tensor:
    """[k, 2] logits of "no" and "yes" for all z."""
    return torch.stack([torch.zeros_like(z.flatten()), z.flatten()], 1)


def test_a_single_logit_is_a_decision_by_threshold():
    assert MASK.task == "binary_segmentation"
    assert ModelCard("x", classes=1, image_size=(4, 4)).task == "multilabel_classification"
    assert ModelCard("x", classes=2, image_size=(4, 4)).task == "classification"


@pytest.mark.parametrize(("card", "shape"), [(LABELS, (5, 3)), (MASK, (2, 1, 4, 4))])
def test_losses_of_single_logits_are_those_of_two_classes(card: ModelCard, shape: tuple[int, ...]):
    torch.manual_seed(0)
    s, t = torch.randn(shape, requires_grad=True), torch.randn(shape)
    rows = task_for_card(card).rows
    for T in (1.0, 4.0):
        loss = logits.kl(rows(s), rows(t), T)
        expected = logits.kl(two_classes(s), two_classes(t), T)
        p, q = (t / T).sigmoid(), (s / T).sigmoid()
        by_hand = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean() * T**2
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(loss, by_hand)
        assert float(torch.autograd.grad(loss, s)[0].abs().sum()) > 0
    torch.testing.assert_close(logits.entropy(rows(t)), logits.entropy(two_classes(t)))


def test_supervised_losses_are_binary_cross_entropies():
    torch.manual_seed(0)
    z, y = torch.randn(5, 3), torch.randint(2, (5, 3))
    expected = -(y * z.sigmoid().log() + (1 - y) * (1 - z.sigmoid()).log()).mean()
    torch.testing.assert_close(task_for_card(LABELS).supervised_loss(z, y), expected)

    maps, mask = torch.randn(2, 1, 4, 4), torch.randint(2, (2, 4, 4))
    mask[0, :2] = 255
    p, scored = maps[:, 0].sigmoid(), mask != 255
    expected = -torch.where(mask == 1, p.log(), (1 - p).log())[scored].mean()
    torch.testing.assert_close(task_for_card(MASK).supervised_loss(maps, mask), expected)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_binary_segmentation_scores_count_pixels(threshold: float):
    rng = np.random.default_rng(0)
    z, mask = rng.normal(size=(3, 1, 4, 4)).astype(np.float32), rng.integers(0, 2, (3, 4, 4))
    mask[0, 0] = 255
    task = task_for_card(ModelCard("x", classes=1, image_size=(4, 4), task="segmentation", threshold=threshold))
    scores = task.score(lambda x: x, [(torch.from_numpy(z), torch.from_numpy(mask))])
    yes, scored = 1 / (1 + np.exp(-z[:, 0])) > threshold, mask != 255
    both, either = (yes & (mask == 1)).sum(), ((yes | (mask == 1)) & scored).sum()
    total = (yes & scored).sum() + (mask == 1).sum()
    expected = [both / either, 2 * both / total, (yes == (mask == 1))[scored].mean()]
    assert [scores[name] for name in ("iou", "dice", "pixel_accuracy")] == pytest.approx(expected, abs=1e-6)
    labels = task.score(
        lambda x: (x[:, 0] > np.log(threshold / (1 - threshold))).to(torch.uint8),
        [(torch.from_numpy(z), torch.from_numpy(mask))],
    )
    assert labels == scores


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the precision at every positive, by descending score."""
    ranked = truth[np.argsort(-scores)]
    precision = ranked.cumsum() / np.arange(1, len(ranked) + 1)
    return float(precision[ranked == 1].mean())


def test_multilabel_scores_count_labels():
    rng = np.random.default_rng(0)
    z, truth = (20 * rng.normal(size=(40, 3))).astype(np.float32), rng.integers(0, 2, (40, 3))
    z[:, 2], truth[:, 2] = -1, 0  # a label that occurs neither in targets nor in predictions
    batches = [(torch.from_numpy(z[i : i + 8]), torch.from_numpy(truth[i : i + 8])) for i in range(0, 40, 8)]
    scores = task_for_card(LABELS).score(lambda x: x, batches)
    yes = z > 0
    f1 = [2 * (yes & (truth == 1))[:, c].sum() / (yes[:, c].sum() + truth[:, c].sum()) for c in range(2)]
    expected = {
        "f1": np.mean(f1), "map": np.mean([average_precision(z[:, c], truth[:, c]) for c in range(2)]),
        "label_accuracy": (yes == (truth == 1)).mean(), "f1/a": f1[0], "f1/b": f1[1],
    }  # fmt: skip
    assert scores == pytest.approx(expected, abs=1e-6)
