"""RKD against the published loss in float64."""

from __future__ import annotations

import copy
import math

import distinct_images
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import tiny_method, tiny_run
from torch import Tensor, nn
from torch.optim import SGD

from compress.engine.trainer import train
from compress.errors import UsageError
from compress.losses import relations
from compress.methods.rkd import RKD

STEPS = 3


def relation_losses(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (L_RKD-D, L_RKD-A) from potentials of pairs and triples, as in the paper."""
    pairs, cosines = [], []
    for e in (s, t):
        d = torch.cdist(e, e, compute_mode="donot_use_mm_for_euclid_dist")
        pairs.append(d / d[d > 0].mean())
        u = F.normalize(e[None] - e[:, None], dim=2, eps=1e-300)
        cosines.append(torch.einsum("ijd,ikd->ijk", u, u))
    return tuple(F.huber_loss(mine, theirs) for mine, theirs in (pairs, cosines))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="published"),
        pytest.param({"relate": "logits"}, id="logits"),
        pytest.param({"distance": 3.0, "angle": 0.5, "kl": 2.0, "temperature": 2.0, "lr": 0.02}, id="others"),
        pytest.param({"distance": 0.0, "kl": 0.0}, id="angles alone"),
    ],
)
def test_step_matches_reference(tmp_path, settings):
    method, run = tiny_method("rkd", **settings), tiny_run(tmp_path, "rkd", steps=STEPS)
    assert isinstance(method, RKD)
    run.sources = {"unlabeled": distinct_images.DistinctImages(seed=5)}
    S, T = copy.deepcopy(run.student).double().train(), copy.deepcopy(run.teacher.net).double()
    optim = SGD(S.parameters(), lr=method.lr, momentum=0.9, weight_decay=1e-4)
    train(method, run)
    batches = run.registered["stream unlabeled"][0].batches
    for i in range(STEPS):
        optim.param_groups[0]["lr"] = method.lr * (1 + math.cos(math.pi * i / STEPS)) / 2
        x = batches.batch_at(i)[0].double() / 255
        (f_s, s), (f_t, t) = distinct_images.features_and_logits(S, x), distinct_images.features_and_logits(T, x)
        d, a = relation_losses(s, t) if method.relate == "logits" else relation_losses(f_s, f_t)
        K = method.temperature
        kl = F.kl_div((s / K).log_softmax(1), (t / K).softmax(1), reduction="batchmean") * K * K
        optim.zero_grad()
        (method.kl * kl + method.distance * d + method.angle * a).backward()
        optim.step()
    tiny.assert_weights_near(run.student, S, rtol=1e-3)


def test_relations_approach_teacher(tmp_path):
    run = tiny_run(tmp_path, "rkd", steps=60, batch_size=16)
    x = tiny.InMemoryImages(seed=5).pixels[:24] / 255
    values = []
    for moment in ("before", "after"):
        run.student.eval()
        with torch.no_grad():
            (f_s, _), (f_t, _) = (
                distinct_images.features_and_logits(run.student, x),
                distinct_images.features_and_logits(run.teacher.net, x),
            )
        values.append((relations.distance(f_s, f_t), relations.angle(f_s, f_t)))
        if moment == "before":
            train(tiny_method("rkd", lr=0.02), run)
    assert values[1][0] < values[0][0] / 2
    assert values[1][1] < values[0][1] / 2


class Convolved(nn.Module):
    """A classifier without a linear layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, tiny.CLASSES, tiny.SIZE)

    def forward(self, x):
        return self.layer(x).flatten(1)


def test_teacher_without_features_uses_logits(tmp_path):
    run = tiny_run(tmp_path, "rkd", steps=1)
    run.teachers[0].net = Convolved().requires_grad_(False).eval()
    with pytest.raises(UsageError, match="linear layer"):
        tiny_method("rkd").setup(run)
    run = tiny_run(tmp_path, "rkd", steps=1)
    run.teachers[0].net = Convolved().requires_grad_(False).eval()
    train(tiny_method("rkd", relate="logits"), run)


def test_single_image_batch_raises(tmp_path):
    with pytest.raises(UsageError, match="batch_size"):
        tiny_method("rkd").setup(tiny_run(tmp_path, "rkd", batch_size=1))


def test_angles_use_image_subset(tmp_path, monkeypatch):
    """512 images have 134 million angles."""
    seen = []
    angle = relations.angle
    monkeypatch.setattr("compress.methods.rkd.MAX_ANGLE_IMAGES", 5)
    monkeypatch.setattr(relations, "angle", lambda s, t: seen.append((len(s), len(t))) or angle(s, t))
    train(tiny_method("rkd"), tiny_run(tmp_path, "rkd", steps=1))
    assert seen == [(5, 5)]
