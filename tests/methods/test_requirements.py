"""What methods require of teacher, student and images, depending on their settings."""

from __future__ import annotations

import pytest
import tiny
from tiny import tiny_method, tiny_run
from torch import nn

from compress.engine.trainer import train
from compress.errors import UsageError
from compress.training import setup
from compress.training.setup import incompatibility_reason

#: a classifier without BatchNorm and without a linear layer
PLAIN = nn.Sequential(nn.Conv2d(3, tiny.CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
#: method, weight that requires a signal, the signal
SIGNALS = [
    ("dafl", "activation", "features"),
    ("zskt", "attention", "features"),
    ("mosaic", "bn", "batchnorm"),
    ("dfq", "bn", "batchnorm"),
    ("deepinversion", "bn", "batchnorm"),
    ("fastdfkd", "bn", "batchnorm"),
]


@pytest.mark.parametrize(("name", "weight", "signal"), SIGNALS)
def test_signal_is_required_by_its_weight(tmp_path, name, weight, signal):
    assert set(tiny_method(name, **{weight: 1.0}).uses) == {"gradients", signal}
    without = tiny_method(name, **{weight: 0.0})
    assert without.uses == ("gradients",)
    if name != "deepinversion":
        run = tiny_run(tmp_path, name, steps=2)
        run.teacher.net.body = PLAIN
        train(without, run)


@pytest.mark.parametrize(("name", "bn"), [("dfq", 1), ("deepinversion", 1), ("fastdfkd", 1), ("cmi", 1), ("cmi", 0)])
def test_teacher_without_batchnorm_is_rejected(name, bn):
    reason = incompatibility_reason(name, tiny_method(name, bn=bn), "classification", PLAIN)
    assert reason is not None
    assert ("method.bn" in reason) == (name != "cmi"), "CMI needs BatchNorm layers whatever its weights"
    if name != "cmi":
        assert incompatibility_reason(name, tiny_method(name, bn=0.0), "classification", PLAIN) is None


def test_rkd_of_logits_needs_no_features(monkeypatch):
    monkeypatch.setattr(setup, "is_black_box", lambda net: True)
    logits = tiny_method("rkd", relate="logits")
    assert logits.uses == ()
    assert incompatibility_reason("rkd", logits, "classification", nn.Identity()) is None
    assert "features" in str(incompatibility_reason("rkd", tiny_method("rkd"), "classification", nn.Identity()))


@pytest.mark.parametrize("name", ["mosaic", "sskd", "dafl", "zskt", "dfad", "dfq", "cmi", "fastdfkd"])
def test_non_square_images_raise(tmp_path, name):
    run = tiny_run(tmp_path, name)
    run.task.image_size = (16, 32)
    with pytest.raises(UsageError, match="16x32"):
        tiny_method(name).setup(run)
