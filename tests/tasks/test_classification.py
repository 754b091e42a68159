"""Classification: how its answers are read and scored, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress.tasks import TASKS
from compress.tasks.classification import Classification


def answers(n: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    return torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


@pytest.mark.parametrize("classes", [2, 10, 60])
def test_accuracy_independent_of_batches(classes):
    logits, labels = answers(101, classes)
    task = Classification(classes, (8, 8))
    order = np.argsort(-logits.numpy(), 1)
    expected = {"accuracy": (order[:, 0] == labels.numpy()).mean()}
    if classes >= 50:
        expected["accuracy_top5"] = (order[:, :5] == labels.numpy()[:, None]).any(1).mean()
    for sizes in ([101], [64, 37], [100, 1]):
        batches = zip(logits.split(sizes), labels.split(sizes), strict=True)
        assert task.score(lambda x: x, batches) == pytest.approx(expected)


def test_score_computes_no_gradients():
    seen = []

    def net(x):
        seen.append(torch.is_grad_enabled())
        return x.bfloat16()

    Classification(4, (8, 8)).score(net, [answers(5, 4)])
    assert seen == [False]


def test_supervised_loss_is_cross_entropy():
    logits, labels = answers(9, 5)
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    task = TASKS["classification"](5, (8, 8))
    assert task.supervised_loss(logits, labels).item() == pytest.approx(-np.log(p[range(9), labels]).mean(), rel=1e-6)
    assert task.supervised_loss(logits.bfloat16(), labels).dtype == torch.float32


def test_rows_and_example_input():
    task = Classification(5, (8, 6))
    logits, _ = answers(3, 5)
    assert task.rows(logits) is logits
    (images,) = task.example_input(2)
    assert images.shape == (2, 3, 8, 6)


def test_visualize_sorts_by_class():
    classes = [2, 0, 1, 0, 2, 1]
    sizes = [1.0, 2.0, 3.0, 9.0, 8.0, 0.5]
    logits = torch.zeros(6, 3)
    logits[range(6), classes] = torch.tensor(sizes)
    images = torch.arange(6).float().view(6, 1, 1, 1).expand(6, 3, 2, 2)
    assert Classification(logits.shape[1], (2, 2)).visualize(images, logits)[:, 0, 0, 0].tolist() == [3, 1, 2, 5, 4, 0]


def test_visualize_sorts_confident_ties():
    """A confidence of exactly 1 must not carry an image into the class before."""
    logits = torch.tensor([[0.0, 1e4], [1e4, 0.0], [0.1, 0.0], [0.0, 1e4]])
    images = torch.arange(4).float().view(4, 1, 1, 1)
    assert Classification(logits.shape[1], (2, 2)).visualize(images, logits)[:, 0, 0, 0].tolist() == [1, 2, 0, 3]
