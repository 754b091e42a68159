"""SSKD against its two published stages in float64, with the authors' order of views and sorting."""

from __future__ import annotations

import copy
import math

import contract
import distinct_images
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import tiny_method, tiny_run
from torch import Tensor
from torch.optim import SGD

from compress.engine.run import Run
from compress.methods import sskd
from compress.methods.sskd import SSKD

STEPS = 5


def create_method(folder, **settings) -> tuple[SSKD, Run]:
    method, run = tiny_method("sskd", **settings), tiny_run(folder, "sskd", steps=STEPS)
    assert isinstance(method, SSKD)
    run.sources = {"unlabeled": distinct_images.DistinctImages(seed=5)}
    run.seed_all()
    method.setup(run)
    return method, run


class Reference:
    """The authors' steps: the four views of an image are adjacent, and rows are selected by sorting."""

    def __init__(self, method: SSKD, run: Run) -> None:
        self.m, self.T = method, copy.deepcopy(run.teacher.net).double()
        self.S, self.H_T, self.H_S = (
            copy.deepcopy(run.trainables[n].net).double().train() for n in ("S", "H_T", "H_S")
        )
        own = {"momentum": 0.9, "weight_decay": method.weight_decay}
        self.first = SGD(self.H_T.parameters(), lr=1, **own)
        self.second = SGD([*self.S.parameters(), *self.H_S.parameters()], lr=1, **own)

    def predict(self, net, head, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits, and the similarity of each rotated view to each original."""
        features, rows = distinct_images.features_and_logits(net, x)
        e = head(features)
        plain = torch.arange(len(x)) % 4 == 0
        return rows, F.cosine_similarity(e[~plain][:, None], e[plain][None], dim=2)

    def step(self, x: Tensor, progress: float) -> dict[str, Tensor]:
        m, n = self.m, len(x)
        x = torch.stack([x.rot90(k, (2, 3)) for k in range(4)], 1).flatten(0, 1)
        plain, truth = torch.arange(4 * n) % 4 == 0, torch.arange(n)[:, None].expand(n, 3).reshape(-1)
        t, similarity_t = self.predict(self.T, self.H_T, x)
        if progress < m.head_fraction:
            self.first.param_groups[0]["lr"] = m.lr_head * (1 + math.cos(math.pi * progress / m.head_fraction)) / 2
            return self.update(self.first, {"H_T": F.cross_entropy(similarity_t, truth)})
        past = (progress - m.head_fraction) / (1 - m.head_fraction)
        self.second.param_groups[0]["lr"] = m.lr * (1 + math.cos(math.pi * past)) / 2
        s, similarity_s = self.predict(self.S, self.H_S, x)
        label = t[plain].argmax(1)[:, None].expand(n, 3).reshape(-1)
        use_rotated = self.chosen(t[~plain], label, m.wrong_rotated_fraction)
        use_similarity = self.chosen(similarity_t, truth, m.wrong_similarity_fraction)
        loss_S = (
            m.kl * self.kl(s[plain], t[plain], m.temperature)
            + m.rotated * self.kl(s[~plain][use_rotated], t[~plain][use_rotated], m.temperature)
            + m.similarity
            * self.kl(similarity_s[use_similarity], similarity_t[use_similarity], m.similarity_temperature)
        )
        return self.update(self.second, {"S": loss_S})

    @staticmethod
    def chosen(rows: Tensor, truth: Tensor, share: float) -> Tensor:
        rank = (rows.argsort(dim=1, descending=True) == truth[:, None]).long().argmax(1)
        wrong = int((rank > 0).sum())
        return rank.argsort(stable=True)[: len(rank) - wrong + int(wrong * share)]

    @staticmethod
    def kl(s: Tensor, t: Tensor, k: float) -> Tensor:
        return F.kl_div((s / k).log_softmax(1), (t.detach() / k).softmax(1), reduction="batchmean") * k * k

    @staticmethod
    def update(optim: SGD, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        optim.zero_grad()
        next(iter(losses.values())).backward()
        optim.step()
        return losses


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"head_fraction": 0.4}, id="published"),
        pytest.param(
            {"head_fraction": 0.2, "kl": 2.0, "rotated": 0.5, "similarity": 1.0, "temperature": 2.0, 
             "wrong_rotated_fraction": 0.0, "wrong_similarity_fraction": 0.3, "lr_head": 0.5},
            id="others",
        ),
    ],
)  # fmt: skip
def test_step_matches_reference(tmp_path, settings):
    method, run = create_method(tmp_path, augment=False, **settings)
    reference = Reference(method, run)
    batches = run.registered["stream unlabeled"][0].batches
    for i in range(STEPS):
        run.set_progress(i / STEPS)
        ours = method.step()
        theirs = reference.step(batches.batch_at(i)[0].double() / 255, i / STEPS)
        run.step += 1
        assert ours.keys() == theirs.keys()
        assert all(ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-4) for name in ours), i
    for name in ("S", "H_T", "H_S"):
        tiny.assert_weights_near(run.trainables[name].net, getattr(reference, name), rtol=1e-3, atol=5e-5)


# The stages.


def test_stages_move_their_models(tmp_path):
    method, run = create_method(tmp_path, head_fraction=0.4)
    moved = []
    for i in range(STEPS):
        before = {name: copy.deepcopy(model.net.state_dict()) for name, model in run.trainables.items()}
        run.set_progress(i / STEPS)
        method.step()
        run.step += 1
        moved.append(
            {n for n, model in run.trainables.items() if tiny.state_differences(before[n], model.net.state_dict())}
        )
    assert moved == [{"H_T"}] * 2 + [{"S", "H_S"}] * 3


def test_learning_rates_fall_per_stage(tmp_path):
    method, _ = create_method(tmp_path, head_fraction=0.2)
    assert (method.stage_1(0.0), method.stage_2(0.2)) == (1, 1)
    assert method.stage_1(0.1) == pytest.approx(0.5)
    assert method.stage_2(0.6) == pytest.approx(0.5)
    assert (method.stage_1(0.2), method.stage_2(1.0)) == (pytest.approx(0), pytest.approx(0))
    assert (method.stage_1(0.7), method.stage_2(0.1)) == (0, 1)


def test_stage_is_kept_with_time_limit(tmp_path, monkeypatch):
    """With a time limit, stage 2 starts once; a resumed run stays in its stage."""
    run = tiny_run(tmp_path, "sskd", steps=None, time_limit=100.0)
    clock = iter([0.0, 0.1, 0.3, 0.1])
    monkeypatch.setattr(Run, "progress", property(lambda _: next(clock)))
    method = tiny_method("sskd", head_fraction=0.2)
    assert isinstance(method, SSKD)
    run.seed_all()
    method.setup(run)
    players = []
    for _ in range(4):
        players += method.step()
        run.step += 1
    assert players == ["H_T", "H_T", "S", "S"]
    assert run.registered["stage"][0].state_dict() == {"step": 2}
    again = sskd.StageState()
    again.load_state_dict({"step": 2})
    assert again.step == 2


@pytest.mark.parametrize("head_fraction", [0.25, 0.5, 0.75])
def test_run_resumes_in_either_stage(tmp_path, head_fraction):
    """Checkpoints in either stage, and at the transition."""
    contract.assert_resumes_exactly(tmp_path, "sskd", "32", {"head_fraction": head_fraction})


def test_head_learns_rotations(tmp_path):
    run = tiny_run(tmp_path, "sskd", steps=100, batch_size=16)
    distinct_images.center_features(run)
    run.sources = {"unlabeled": distinct_images.DistinctImages(seed=5)}
    method = tiny_method("sskd", head_fraction=0.99, lr_head=0.2, augment=False)
    assert isinstance(method, SSKD)
    run.seed_all()
    method.setup(run)
    losses = []
    for i in range(100):
        run.set_progress(i / 100)
        losses.append(method.step()["H_T"].item())
    assert losses[0] == pytest.approx(math.log(16), rel=0.1)
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5]), "cosines of at most 1 cannot do much"


# The views.


def test_rotated_views_order(tmp_path):
    method, _ = create_method(tmp_path, augment=False)
    x = torch.rand(5, 3, 16, 16)
    views = method.rotated_views(x)
    assert torch.equal(views[:5], x)
    assert torch.equal(views[5:10], x.transpose(2, 3).flip(2))
    assert torch.equal(views[10:15], x.flip(2).flip(3))
    assert torch.equal(views[15:], x.transpose(2, 3).flip(3))
    assert sskd.source_index(views).tolist() == [0, 1, 2, 3, 4] * 3


def test_random_shift_within_border():
    x = torch.rand(40, 3, 16, 16)
    seen = sskd.random_shift(x)
    assert seen.shape == x.shape
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")
    shifts = set()
    for image, whole in zip(seen, padded, strict=True):
        crops = {(i, j): whole[:, i : i + 16, j : j + 16] for i in range(9) for j in range(9)}
        matches = [shift for shift, crop in crops.items() if torch.equal(crop, image)]
        assert len(matches) == 1
        shifts.update(matches)
    assert len(shifts) > 20


def test_views_flip_consistently(tmp_path, monkeypatch):
    method, _ = create_method(tmp_path)
    monkeypatch.setattr(sskd, "random_shift", lambda x: x)
    x = torch.rand(200, 3, 16, 16)
    views = method.rotated_views(x)
    mirrored = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(views[:200], x, strict=True)])
    assert 60 < int(mirrored.sum()) < 140
    assert torch.equal(views, sskd.rotate_all(torch.where(mirrored[:, None, None, None], x.flip(3), x)))
