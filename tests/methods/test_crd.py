"""CRD against a float64 reference with the authors' quotients, gathered rows and loops."""

from __future__ import annotations

import copy
import math

import distinct_images
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import tiny_method, tiny_run
from torch import Tensor
from torch.optim import SGD

from compress.engine.accelerator import Accelerator
from compress.engine.run import Run
from compress.engine.trainer import train
from compress.errors import UsageError
from compress.methods.crd import CRD, EmbeddingBank

STEPS = 4


def create_method(folder, **settings) -> tuple[CRD, Run]:
    method, run = tiny_method("crd", **settings), tiny_run(folder, "crd", steps=STEPS)
    assert isinstance(method, CRD)
    run.seed_all()
    method.setup(run)
    return method, run


class Reference:
    """The authors' step: gathered rows of the banks, Z from the first batch, banks updated last."""

    def __init__(self, method: CRD, run: Run) -> None:
        self.m, self.T = method, copy.deepcopy(run.teacher.net).double()
        self.S, self.E_T, self.E_S = (
            copy.deepcopy(run.trainables[n].net).double().train() for n in ("S", "E_T", "E_S")
        )
        self.banks = {"T": method.M_T.rows.double(), "S": method.M_S.rows.double()}
        self.Z: dict[str, float] = {}
        learned = [p for net in (self.S, self.E_T, self.E_S) for p in net.parameters()]
        self.optim = SGD(learned, lr=1, momentum=0.9, weight_decay=method.weight_decay)

    def contrast(self, of: str, e: Tensor, drawn: Tensor) -> Tensor:
        bank, n, K = self.banks[of], len(self.banks[of]), drawn.shape[1] - 1
        out = torch.einsum("bkd,bd->bk", bank[drawn], e).div(self.m.tau).exp()
        self.Z.setdefault(of, out.mean().item() * n)
        h = out / self.Z[of]
        true, noise = h[:, 0] / (h[:, 0] + K / n), (K / n) / (h[:, 1:] + K / n)
        return -(true.log().sum() + noise.log().sum()) / len(e)

    def step(self, x: Tensor, indices: Tensor, progress: float) -> dict[str, Tensor]:
        m = self.m
        self.optim.param_groups[0]["lr"] = m.lr * (1 + math.cos(math.pi * progress)) / 2
        (f_t, t), (f_s, s) = (
            distinct_images.features_and_logits(self.T, x),
            distinct_images.features_and_logits(self.S, x),
        )
        e_t, e_s = (e / e.norm(dim=1, keepdim=True) for e in (self.E_T(f_t.detach()), self.E_S(f_s)))
        drawn = m.draw_negatives(indices)
        loss_E = self.contrast("T", e_s, drawn) + self.contrast("S", e_t, drawn)
        k = m.temperature
        loss_S = F.kl_div((s / k).log_softmax(1), (t / k).softmax(1), reduction="batchmean") * k * k
        self.optim.zero_grad()
        (m.kl * loss_S + m.nce * loss_E).backward()
        self.optim.step()
        for of, e in (("T", e_t), ("S", e_s)):
            for place, i in enumerate(indices.tolist()):
                if i not in indices[:place].tolist():
                    mixed = m.momentum * self.banks[of][i] + (1 - m.momentum) * e[place].detach()
                    self.banks[of][i] = mixed / mixed.norm()
        return {"S": loss_S, "E": loss_E}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"tau": 0.5}, id="soft"),
        pytest.param({}, id="published"),
        pytest.param(
            {"nce": 0.1, "kl": 3.0, "momentum": 0.9, "negatives": 100, "embedding_dim": 5, "lr": 0.02}, id="others"
        ),
    ],
)
def test_step_matches_reference(tmp_path, settings):
    method, run = create_method(tmp_path, **{"lr": 0.02} | settings)
    reference = Reference(method, run)
    batches = run.registered["stream unlabeled"][0].batches
    for i in range(STEPS):
        state = torch.get_rng_state()
        run.set_progress(i / STEPS)
        ours = method.step()
        torch.set_rng_state(state)
        pixels, _, indices = batches.batch_at(i)
        theirs = reference.step(pixels.double() / 255, indices, i / STEPS)
        for name in ours:
            assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-4), (i, name)
    for of, bank in (("T", method.M_T), ("S", method.M_S)):
        assert bank.Z is not None
        assert bank.Z.item() == pytest.approx(reference.Z[of], rel=1e-5)
        assert torch.allclose(bank.rows.double(), reference.banks[of], atol=1e-4)
    for name in ("S", "E_T", "E_S"):
        tiny.assert_weights_near(run.trainables[name].net, getattr(reference, name), rtol=1e-3, atol=5e-5)


# Negatives.


@pytest.mark.parametrize("negatives", [5, 24])
def test_negatives_are_distinct_others(tmp_path, negatives):
    method, _ = create_method(tmp_path, negatives=negatives)
    i = torch.arange(48).repeat(20)
    drawn = method.draw_negatives(i)
    assert torch.equal(drawn[:, 0], i)
    assert (drawn.sort(1).values.diff(dim=1) > 0).all(), "no number twice in a row, so none is the image's own"
    assert drawn.min() == 0
    assert drawn.max() == 47


@pytest.mark.parametrize("negatives", [25, 500])
def test_negatives_of_small_set_exclude_self(tmp_path, negatives):
    method, _ = create_method(tmp_path, negatives=negatives)
    i = torch.arange(48).repeat(20)
    drawn = method.draw_negatives(i)
    assert drawn.shape == (len(i), 1 + negatives)
    assert (drawn[:, 1:] != i[:, None]).all()


@pytest.mark.parametrize("negatives", [10, 40])
def test_negatives_are_uniform(tmp_path, negatives):
    method, _ = create_method(tmp_path, negatives=negatives)
    drawn = method.draw_negatives(torch.full((4000,), 17))[:, 1:]
    counts = torch.bincount(drawn.reshape(-1), minlength=48).double()
    expected = 4000 * negatives / 47
    assert counts[17] == 0
    others = torch.cat([counts[:17], counts[18:]])
    assert (others - expected).abs().max() < 5 * math.sqrt(expected)


# The banks.


def test_bank_starts_with_small_rows(tmp_path):
    method, _ = create_method(tmp_path, embedding_dim=27)
    for bank in (method.M_T, method.M_S):
        assert bank.rows.shape == (48, 27)
        assert bank.rows.abs().max() <= 1 / 3
        assert bank.rows.std().item() == pytest.approx(1 / 3 / math.sqrt(3), rel=0.1)
    assert not torch.equal(method.M_T.rows, method.M_S.rows)


def test_step_updates_rows_of_its_images(tmp_path):
    method, _ = create_method(tmp_path)
    before = method.M_S.rows.clone()
    method.step()
    seen = torch.zeros(48, dtype=torch.bool)
    seen[method.data.indices] = True
    assert torch.equal(method.M_S.rows[~seen], before[~seen])
    assert torch.allclose(method.M_S.rows[seen].norm(dim=1), torch.ones(int(seen.sum())), atol=1e-6)


def test_repeated_image_updates_bank_once():
    bank = EmbeddingBank(4, 3, Accelerator(tiny.CPU, "32"))
    old, e = bank.rows.clone(), torch.eye(3)
    bank.update(torch.tensor([2, 0, 2]), e, 0.5)
    assert torch.allclose(bank.rows[2], F.normalize(old[2] + e[0], dim=0))
    assert torch.allclose(bank.rows[0], F.normalize(old[0] + e[1], dim=0))
    assert torch.equal(bank.rows[[1, 3]], old[[1, 3]])


def test_z_is_set_by_first_batch(tmp_path):
    method, run = create_method(tmp_path)
    method.step()
    first = [bank.Z for bank in (method.M_T, method.M_S)]
    method.step()
    assert [bank.Z for bank in (method.M_T, method.M_S)] == first
    run.save()
    state = tiny.final_state(run)["shared"]["registered"]
    assert [state[f"bank {name}"]["Z"].item() for name in "TS"] == [Z.item() for Z in first if Z is not None]


def test_first_scores_average_to_noise_odds(tmp_path):
    """Z normalizes h over all images, so its mean over the first draw is 1/N."""
    method, _ = create_method(tmp_path)
    e = F.normalize(torch.randn(8, 8))
    log_h = method.M_T.log_h(e, method.draw_negatives(torch.arange(8)), method.tau)
    assert log_h.exp().mean().item() == pytest.approx(1 / 48, rel=1e-5)


# Training.


def test_heads_train_with_student(tmp_path):
    run = tiny_run(tmp_path, "crd", steps=2)
    train(tiny_method("crd"), run)
    state = tiny.final_state(run)["shared"]["trainables"]
    assert state.keys() == {"S", "E_T", "E_S"}
    assert all(model["optimizer"]["state"] for model in state.values())


def test_embeddings_identify_their_image(tmp_path):
    """Embeddings of the same image become more similar than those of different ones."""
    method, run = tiny_method("crd", augment=False, lr=0.02), tiny_run(tmp_path, "crd", steps=150, batch_size=16)
    assert isinstance(method, CRD)
    distinct_images.center_features(run)
    train(method, run)
    alike = method.M_S.rows @ method.M_T.rows.mT
    nearer = (alike > alike.diagonal()[:, None]).sum(1).double()
    assert nearer.mean() < 8, "others of 47; 23.5 by chance"


def test_single_image_raises(tmp_path):
    run = tiny_run(tmp_path, "crd")
    run.sources = {"unlabeled": tiny.InMemoryImages(1)}
    with pytest.raises(UsageError, match=r"data\.unlabeled: found 1 images, expected two or more"):
        tiny_method("crd").setup(run)
