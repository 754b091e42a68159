"""Cached teacher logits and predictions: computed once, restored from checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from compress.data.cache import ImageCache
from compress.engine.accelerator import Accelerator
from compress.engine.teacher_cache import TeacherLogitCache, cache_teacher_logits, predict_with_teacher
from compress.engine.trainable import FrozenModel
from compress.errors import CompressError, UsageError
from compress.training.data import CachedDataset
from compress.training.estimate import RandomImages

CPU = Accelerator(tiny.CPU, "32")


class CountingTeacher(FrozenModel):
    """A teacher that counts its images."""

    images = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return super().__call__(x)


def create_cache(images: int = 10) -> tuple[TeacherLogitCache, CountingTeacher, Tensor]:
    net = CountingTeacher(tiny.random_network(1), CPU)
    return TeacherLogitCache(net, images, tiny.CLASSES), net, tiny.InMemoryImages(images).pixels / 255


def test_logit_cache_computes_images_once():
    cache, net, x = create_cache()
    one, other = torch.tensor([3, 1, 7]), torch.tensor([7, 3, 1])
    first = cache(x[one], one)
    assert torch.equal(first, net.net(x[one]))
    assert torch.equal(cache(x[other], other), first[[2, 0, 1]])
    assert net.images == 3


def test_logit_cache_keeps_first_logits():
    """A batch with new images is computed whole, but cached logits stay."""
    cache, net, x = create_cache()
    cache(x[:4], torch.arange(4))
    before = cache.table[:4].clone()
    mixed = torch.tensor([2, 3, 4, 5])
    logits = cache(x[mixed] + torch.tensor([1.0, 1.0, 0.0, 0.0]).view(-1, 1, 1, 1), mixed)
    assert net.images == 8
    assert torch.equal(cache.table[:4], before)
    assert torch.equal(logits[:2], before[2:])
    assert torch.allclose(logits[2:], net.net(x[4:6]), atol=1e-6)
    assert cache.is_cached.tolist() == [True] * 6 + [False] * 4


def test_logit_cache_handles_repeated_images():
    cache, net, x = create_cache()
    indices = torch.tensor([5, 5, 2, 5])
    logits = cache(x[indices], indices)
    assert torch.equal(logits[0], logits[3])
    assert torch.allclose(logits, net.net(x[indices]), atol=1e-6)


def test_logit_cache_state_restores():
    cache, _, x = create_cache()
    cache(x[:5], torch.arange(5))
    again, net, _ = create_cache()
    again.load_state_dict({key: value.clone() for key, value in cache.state_dict().items()})
    assert torch.equal(again(x[:5], torch.arange(5)), cache.table[:5])
    assert net.images == 0


def test_logit_cache_rejects_augmentation_and_maps(tmp_path):
    with pytest.raises(UsageError, match=r"method\.cache_teacher_logits"):
        cache_teacher_logits(tiny.tiny_run(tmp_path), "unlabeled", is_augmented=True)
    cache = TeacherLogitCache(FrozenModel(torch.nn.Conv2d(3, 4, 1), CPU), 2, 4)
    with pytest.raises(UsageError, match=r"method\.cache_teacher_logits"):
        cache(torch.rand(2, 3, 8, 8), torch.arange(2))


# Predictions of a whole source.


def cached_images() -> ImageCache:
    pixels = tiny.InMemoryImages(300).pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return ImageCache("photos", pixels, None, None, np.arange(300), [], "photos")


def test_source_predicts_every_image():
    teacher = FrozenModel(tiny.random_network(1), CPU)
    with torch.no_grad():
        p = teacher.net(tiny.InMemoryImages(300).pixels / 255).double().softmax(1)
    labels, confidence = CachedDataset(cached_images()).predict_all(teacher)
    assert torch.equal(labels, p.argmax(1))
    assert torch.allclose(confidence, p.amax(1), rtol=1e-5)


def test_source_with_broken_teacher_raises():
    teacher = FrozenModel(tiny.random_network(1), CPU)
    with torch.no_grad():
        next(teacher.net.parameters()).fill_(float("nan"))
    with pytest.raises(CompressError, match="photos"):
        CachedDataset(cached_images()).predict_all(teacher)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_dry_run_source_predicts_without_teacher(device):
    teacher = FrozenModel(tiny.random_network(1).to(device), Accelerator(torch.device(device), "32"))
    labels, confidence = RandomImages(10, tiny.CARD, torch.device(device)).predict_all(teacher)
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert len(confidence) == 10
    assert not labels.is_meta


def test_predictions_restore_from_checkpoint(tmp_path):
    first = tiny.tiny_run(tmp_path, "kd")
    before = predict_with_teacher(first, "unlabeled")
    first.save()
    again = tiny.tiny_run(tmp_path, "kd")
    again.teachers = [FrozenModel(tiny.random_network(7), again.accelerator)]
    after = predict_with_teacher(again, "unlabeled")
    assert torch.equal(after.labels, before.labels)
    assert torch.equal(after.confidence, before.confidence)
    assert again.sources["unlabeled"].predict_calls == 0
    assert again.resume()
    again.save()
    states = [tiny.final_state(run)["shared"]["registered"] for run in (first, again)]
    assert tiny.state_differences(*states) == []


def test_predictions_fall_back_with_checkpoint(tmp_path):
    run = tiny.tiny_run(tmp_path, "kd")
    predict_with_teacher(run, "unlabeled")
    for run.step in (1, 2):
        run.save()
    path = next((tmp_path / "checkpoints").glob("*2*.pt"))
    path.write_bytes(path.read_bytes()[:-1])
    messages: list[str] = []
    again = tiny.tiny_run(tmp_path, "kd")
    again.checkpoints.progress = messages.append
    predict_with_teacher(again, "unlabeled")
    again.resume()
    assert again.step == 1
    assert len(messages) == 1
