"""Balanced: sampling against counts computed by hand."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny import InMemoryImages, tiny_method, tiny_run

from compress.engine.trainer import train
from compress.errors import CompressError
from compress.methods.balanced import class_repeats, shortage_messages

STEPS = 3


def image_repeats(run) -> torch.Tensor:
    """Return how often the run's stream repeats each image."""
    odds = run.registered["stream unlabeled"][0].batches.odds
    assert odds is not None
    return torch.from_numpy(odds) * len(odds)


def set_up(folder, **settings):
    """Set up a run; returns it with the labels predicted by its teacher."""
    run = tiny_run(folder, "balanced")
    tiny.balance_predictions(run.teacher)
    run.seed_all()
    tiny_method("balanced", **settings).setup(run)
    with torch.no_grad():
        labels = run.teacher.net(InMemoryImages(seed=5).pixels / 255).argmax(1)
    return run, labels


def test_classes_are_sampled_equally(tmp_path):
    run, labels = set_up(tmp_path)
    shown = torch.zeros(tiny.CLASSES, dtype=torch.float64).index_add_(0, labels, image_repeats(run))
    seen = labels.unique()
    assert len(seen) > 1
    assert torch.allclose(shown[seen], torch.tensor(len(labels) / len(seen)).double())


def test_one_repeat_is_plain_sampling(tmp_path):
    run, labels = set_up(tmp_path, max_repeats=1.0)
    assert torch.allclose(image_repeats(run), torch.ones(len(labels)).double())


# Repeats.


@pytest.mark.parametrize(
    ("counts", "repeats", "expected"),
    [
        ([10, 10], 50, [1, 1]),
        ([30, 10], 50, [20 / 30, 2]),
        ([30, 0, 10], 50, [20 / 30, 0, 2]),
        ([99, 1], 50, [50 / 99, 50]),
        ([99, 1], 3, [97 / 99, 3]),  # the other class gets what the capped one leaves
        ([90, 9, 1], 2, [80 / 90, 2, 2]),  # capping one caps the next
        ([100, 0], 50, [1, 0]),
        ([7, 3], 1, [1, 1]),
    ],
)
def test_class_repeats_inverse_to_counts(counts, repeats, expected):
    actual = class_repeats(torch.tensor(counts), float(repeats))
    assert torch.allclose(actual, torch.tensor(expected).double())


def test_class_repeats_keep_total_and_cap():
    generator = torch.Generator().manual_seed(0)
    for repeats in (1.0, 1.5, 4.0, 50.0):
        counts = torch.randint(0, 1000, (100,), generator=generator) ** 3 // 10**6
        actual = class_repeats(counts, repeats)
        assert float((actual * counts).sum()) == pytest.approx(float(counts.sum()))
        assert float(actual.max()) <= repeats
        open_ = (counts > 0) & (actual < repeats)
        if open_.any():
            assert torch.allclose((actual * counts)[open_], (actual * counts)[open_][0])


def test_shortage_messages_name_classes():
    counts = torch.tensor([90, 9, 0, 1])
    names = ["shirt", "bag", "boot", "coat"]
    absent, rare = shortage_messages(counts, class_repeats(counts, 2.0), names)
    assert [name for name in names if name in absent] == ["boot"]
    assert [name for name in names if name in rare] == ["bag", "coat"]
    assert shortage_messages(counts[:2], class_repeats(counts[:2], 50.0), names[:2]) == []
    many = torch.tensor([5] + [0] * 9)
    message = shortage_messages(many, class_repeats(many, 50.0), None)[0]
    assert "class 5 and 4 more" in message


# Resuming.


def test_teacher_predicts_once_across_resume(tmp_path):
    first = tiny_run(tmp_path, "balanced", steps=4)
    train(tiny_method("balanced"), first)
    again = tiny_run(tmp_path, "balanced", steps=6)
    train(tiny_method("balanced"), again)
    assert [run.sources["unlabeled"].predict_calls for run in (first, again)] == [1, 0]
    assert torch.equal(image_repeats(again), image_repeats(first))


def test_predictions_come_from_checkpoint(tmp_path):
    """On another machine the last bits of predictions can differ."""
    first = tiny_run(tmp_path, "balanced", steps=2)
    train(tiny_method("balanced"), first)
    again = tiny_run(tmp_path, "balanced", steps=4)
    with torch.no_grad():
        [m for m in again.teacher.net.modules() if isinstance(m, torch.nn.Linear)][-1].bias[0] += 100
    train(tiny_method("balanced"), again)
    assert torch.equal(image_repeats(again), image_repeats(first))


def test_changed_image_count_raises(tmp_path):
    train(tiny_method("balanced"), tiny_run(tmp_path, "balanced", steps=2))
    again = tiny_run(tmp_path, "balanced", steps=4)
    again.sources["unlabeled"] = InMemoryImages(47, seed=5)
    with pytest.raises(CompressError, match=r"47.*48"):
        train(tiny_method("balanced"), again)
