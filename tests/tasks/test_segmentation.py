"""Segmentation: pixels as rows, and mIoU from one confusion matrix, against numpy and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from compress.losses import logits
from compress.tasks import task_for_card
from compress.tasks.segmentation import Segmentation

CLASSES = 5


def answers(n: int = 7, h: int = 6, w: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(CLASSES, (n, h, w), generator=generator)
    masks[:, 0] = 255
    return torch.randn(n, CLASSES, h, w, generator=generator), masks


def batched(answer: torch.Tensor, masks: torch.Tensor, size: int) -> tuple[object, list]:
    """A network that answers with the rows of `answer` that it is given, and the batches of them."""
    parts = zip(answer.split(size), masks.split(size), strict=True)
    return (lambda x: x), list(parts)


def by_hand(labels: np.ndarray, masks: np.ndarray) -> tuple[list[float], float]:
    """IoU of each class that occurs, and the share of right pixels: set by set."""
    judged = masks != 255
    found = []
    for c in range(CLASSES):
        said, right = (labels == c) & judged, (masks == c) & judged
        if (said | right).any():
            found.append((said & right).sum() / (said | right).sum())
    return found, (labels == masks)[judged].mean()


@pytest.mark.parametrize("size", [1, 3, 7])
def test_miou_independent_of_batches(size):
    answer, masks = answers()
    task = Segmentation(CLASSES, (6, 9))
    scores = task.score(*batched(answer, masks, size))
    ious, accuracy = by_hand(answer.argmax(1).numpy(), masks.numpy())
    assert next(iter(scores)) == "miou"
    assert scores["miou"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert scores["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert [scores[f"iou/{c}"] for c in range(CLASSES)] == pytest.approx(ious, abs=1e-6)
    theirs = MulticlassJaccardIndex(CLASSES, ignore_index=255)
    theirs.update(answer.argmax(1), masks)
    assert scores["miou"] == pytest.approx(float(theirs.compute()), abs=1e-6)


def test_label_map_scores_like_logits():
    answer, masks = answers()
    task = Segmentation(CLASSES, (6, 9))
    assert task.score(lambda x: x.argmax(1), [(answer, masks)]) == task.score(lambda x: x, [(answer, masks)])
    assert task.score(lambda x: x.argmax(1).byte(), [(answer, masks)]) == task.score(lambda x: x, [(answer, masks)])


def test_unseen_class_has_no_iou():
    masks = torch.tensor([[[0, 0, 1, 255]]])
    said = torch.tensor([[[0, 1, 1, 3]]])  # class 3 is said of an ignored pixel only
    scores = Segmentation(CLASSES, (1, 4), class_names=list("abcde")).score(lambda x: x, [(said, masks)])
    assert scores == {"miou": 0.5, "pixel_accuracy": 0.666667, "iou/a": 0.5, "iou/b": 0.5}


def test_rows_are_pixels():
    answer, _ = answers(2, 3, 4)
    rows = Segmentation(CLASSES, (3, 4)).rows(answer)
    assert rows.shape == (2, CLASSES, 3 * 4)
    assert torch.equal(rows[0, :, 5], answer[0, :, 1, 1])


def test_row_losses_average_over_pixels():
    """Not F.kl_div's `batchmean`, which sums over pixels; entropies go through log_softmax."""
    (s, _), (t, _) = answers(seed=1), answers(seed=2)
    rows = Segmentation(CLASSES, (6, 9)).rows
    p, q = t.double().softmax(1), s.double().softmax(1)
    kl = (p * (p.log() - q.log())).sum(1).mean()
    entropy = -(p * p.log()).sum(1).mean()
    mean = p.mean((0, 2, 3))
    assert float(logits.kl(rows(s), rows(t))) == pytest.approx(float(kl), rel=1e-5)
    assert float(logits.entropy(rows(t))) == pytest.approx(float(entropy), rel=1e-5)
    assert float(logits.marginal_entropy(rows(t))) == pytest.approx(float(-(mean * mean.log()).sum()), rel=1e-5)
    places = t.double().softmax(1).mean(0)
    expected = -(places * places.log()).sum(0).mean()
    assert float(logits.marginal_entropy(rows(t), per_position=True)) == pytest.approx(float(expected), rel=1e-5)
    batchmean = F.kl_div(q.log(), p, reduction="batchmean")
    assert float(batchmean / kl) == pytest.approx(6 * 9)


def test_balance_per_position_of_equal_images():
    """Every image holds every class once: balanced over all pixels together, never at a place."""
    same = torch.eye(4)[None].expand(8, 4, 4) * 1e3  # [n, c, m]
    assert float(logits.marginal_entropy(same)) == pytest.approx(math.log(4), rel=1e-6)
    assert float(logits.marginal_entropy(same, per_position=True)) == pytest.approx(0, abs=1e-6)
    turned = torch.stack([image.roll(i, 1) for i, image in enumerate(same)])
    assert float(logits.marginal_entropy(turned, per_position=True)) == pytest.approx(math.log(4), rel=1e-6)
    rows = torch.randn(8, 4)  # one place: an image
    assert torch.equal(logits.marginal_entropy(rows, per_position=True), logits.marginal_entropy(rows))


def test_supervised_loss_ignores_masked_pixels():
    answer, masks = answers()
    answer.requires_grad_()
    task = Segmentation(CLASSES, (6, 9))
    loss = task.supervised_loss(answer, masks)
    loss.backward()
    assert answer.grad is not None
    assert not answer.grad[:, :, 0].any()
    assert answer.grad[:, :, 1:].any()
    log_p = answer.detach().double().log_softmax(1)
    mine = -log_p.gather(1, masks.clamp_max(4)[:, None])[:, 0][masks != 255].mean()
    assert float(loss.detach()) == pytest.approx(float(mine), rel=1e-5)
    assert float(task.supervised_loss(answer, torch.full_like(masks, 255)).detach()) == 0.0


def test_visualize_shows_predictions_beside_images():
    answer = torch.full((2, CLASSES, 8, 8), -9.0)
    answer[0, 0], answer[1, 0], answer[1, 3, :, 4:] = 9, 8, 9
    images = torch.full((2, 3, 8, 8), 0.2)
    shown = Segmentation(CLASSES, (8, 8)).visualize(images, answer)
    assert shown.shape == (4, 3, 8, 8)
    assert torch.equal(shown[0], shown[1])  # all background: nothing to color
    assert torch.equal(shown[2][..., :4], shown[3][..., :4])
    assert not torch.equal(shown[2][..., 4:], shown[3][..., 4:])


def test_task_for_card_selects_class():
    class Card:
        task, classes, image_size, class_names, channels = "segmentation", 2, (8, 8), ["ground", "thing"], 3
        decision_threshold = None

    task = task_for_card(Card())
    assert isinstance(task, Segmentation)
    assert task.class_names == ["ground", "thing"]
