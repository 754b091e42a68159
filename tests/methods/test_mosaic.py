"""MosaicKD against Algorithm 1 in float64."""

from __future__ import annotations

import copy
import math

import contract
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import tiny_method, tiny_run
from torch import Tensor
from torch.optim import SGD, Adam

from compress.engine.run import Run
from compress.engine.trainer import train
from compress.errors import UsageError
from compress.losses import adversarial, logits
from compress.methods.mosaic import MosaicKD
from compress.models.discriminators import PATCH_LAYERS, build_discriminator

STEPS = 3
Losses = list[dict[str, float]]


class Reference:
    """Algorithm 1 as in the authors' code: nothing is frozen, and unused gradients are discarded.

    Uses copies of the run's networks in float64, the same images, and the same noise.
    """

    def __init__(self, method: MosaicKD, run: Run) -> None:
        self.m, self.n = method, method.n
        self.T = copy.deepcopy(run.teacher.net).double().requires_grad_(True)
        self.G, self.D, self.S = (copy.deepcopy(run.trainables[name].net).double() for name in "GDS")
        for net in (self.G, self.D, self.S):
            net.train()
        self.optims = {
            "G": Adam(self.G.parameters(), lr=method.lr_G, betas=(0.5, 0.999)),
            "D": Adam(self.D.parameters(), lr=method.lr_D, betas=(0.5, 0.999)),
            "S": SGD(self.S.parameters(), lr=method.lr, momentum=0.9, weight_decay=method.weight_decay),
        }
        self.rates = {"G": method.lr_G, "D": method.lr_D, "S": method.lr}
        self.real = run.registered["stream real"][0].batches
        self.ood = run.registered["stream ood"][0].batches
        self.drawn = 0

    def noise(self) -> Tensor:
        return torch.randn(self.n, self.m.z_dim).double()

    def gan(self, judged: Tensor, is_real: bool) -> Tensor:
        """Binary cross entropy, summed over patches, mean over images."""
        target = torch.full_like(judged, float(is_real))
        return F.binary_cross_entropy_with_logits(judged, target, reduction="sum") / len(judged)

    @staticmethod
    def kl(s: Tensor, t: Tensor, T: float = 1.0) -> Tensor:
        return F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean") * T * T

    def step(self, progress: float) -> dict[str, Tensor]:
        m = self.m
        for name, optim in self.optims.items():
            optim.param_groups[0]["lr"] = self.rates[name] * (1 + math.cos(math.pi * progress)) / 2

        f = self.G(self.noise())
        r = self.real.batch_at(self.drawn // m.student_steps)[0].double() / 255
        loss_D = m.local * (self.gan(self.D(f.detach()), False) + self.gan(self.D(r), True)) / 2
        self.update("D", loss_D)

        t, s = self.T(f), self.S(f)
        p = t.softmax(1)
        mean = p.mean(0)
        loss_G = (
            -m.adv * self.kl(s, t)
            + m.align * -(p * p.log()).sum(1).mean()
            + m.local * self.gan(self.D(f), True)
            + m.balance * (mean * mean.log2()).sum()
        )
        self.update("G", loss_G)

        loss_S = torch.zeros(())
        for _ in range(m.student_steps):
            with torch.no_grad():
                f = self.G(self.noise())
            x = torch.cat([f, self.ood.batch_at(self.drawn)[0].double() / 255])
            self.drawn += 1
            with torch.no_grad():
                t = self.T(x)
            loss_S = self.kl(self.S(x), t, m.temperature)
            self.update("S", loss_S)
        return {"D": loss_D, "G": loss_G, "S": loss_S}

    def update(self, name: str, loss: Tensor) -> None:
        self.optims[name].zero_grad()
        loss.backward()
        self.optims[name].step()


def plain(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


def run_both(folder, **settings) -> tuple[MosaicKD, Run, Reference, Losses, Losses]:
    """Run STEPS iterations of ours and of the reference from the same state."""
    method, run = tiny_method("mosaic", **settings), tiny_run(folder, steps=STEPS)
    assert isinstance(method, MosaicKD)
    run.seed_all()
    method.setup(run)
    reference = Reference(method, run)
    ours, theirs = [], []
    for i in range(STEPS):
        state = torch.get_rng_state()
        run.set_progress(i / STEPS)
        ours.append(plain(method.step()))
        torch.set_rng_state(state)
        theirs.append(plain(reference.step(i / STEPS)))
    return method, run, reference, ours, theirs


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="published"),
        pytest.param(
            {"patch_size": 4, "temperature": 4.0, "student_steps": 3, "adv": 0.3, "local": 0.1, "align": 2.0},
            id="others",
        ),
        pytest.param({"patch_size": 16, "balance": 0.0}, id="whole image"),
        pytest.param({"augment": False, "cache_teacher_logits": True, "student_steps": 12}, id="cached logits"),
    ],
)
def test_step_matches_reference(tmp_path, settings):
    _, run, reference, ours, theirs = run_both(tmp_path, **settings)
    for mine, his in zip(ours, theirs, strict=True):
        for name in mine:
            assert mine[name] == pytest.approx(his[name], rel=2e-5, abs=1e-6)
    # Adam divides by the root of the squared gradient, so float32 noise of 1e-7 can decide the direction of a step of
    # 1e-3 if a gradient is near 0. So nearly all weights agree to float32, and the norms of all networks.
    for name, net in (("G", reference.G), ("D", reference.D), ("S", reference.S)):
        mine = torch.cat([v.reshape(-1).double() for v in run.trainables[name].net.state_dict().values()])
        his = torch.cat([v.reshape(-1).double() for v in net.state_dict().values()])
        close = torch.isclose(mine, his, rtol=1e-4, atol=1e-5).double().mean()
        assert close > 0.995, (name, close)
        assert float((mine - his).norm() / his.norm()) < 1e-4, name


def test_reference_detects_changed_weight(tmp_path):
    """A change of 1 % in the weight of the balance term exceeds the tolerances."""
    method, run = tiny_method("mosaic"), tiny_run(tmp_path, steps=STEPS)
    assert isinstance(method, MosaicKD)
    run.seed_all()
    method.setup(run)
    reference = Reference(method, run)
    reference.m = copy.copy(method)
    reference.m.balance *= 1.01
    state = torch.get_rng_state()
    mine = method.step()
    torch.set_rng_state(state)
    his = reference.step(0.0)
    assert mine["G"].item() != pytest.approx(his["G"].item(), rel=2e-4)


def test_undecided_discriminator_loss():
    D = build_discriminator(8, 32)
    with torch.no_grad():
        for parameter in D.parameters():
            parameter.zero_()
    judged = D(torch.rand(5, 3, 32, 32))
    assert judged.shape == (5, 1, 8, 8)
    assert adversarial.real(judged).item() == pytest.approx(64 * math.log(2), abs=1e-4)
    assert adversarial.real(judged).item() == pytest.approx(44.36, abs=0.005)
    loss_D = (adversarial.fake(judged) + adversarial.real(judged)) / 2
    assert loss_D.item() == pytest.approx(44.36, abs=0.005)


def test_student_batch_is_half_ood(tmp_path):
    method, run = tiny_method("mosaic", augment=False), tiny_run(tmp_path)
    assert isinstance(method, MosaicKD)
    method.setup(run)
    x = method.student_batch(method.G.net)
    assert x.shape == (2 * tiny.BATCH, 3, tiny.SIZE, tiny.SIZE)
    real = run.registered["stream ood"][0].batches.batch_at(0)[0] / 255
    assert torch.equal(x[tiny.BATCH :], real)


@pytest.mark.parametrize(("share", "images"), [(0.0, 0), (0.2, 2), (0.5, 8), (0.75, 24)])
def test_ood_fraction_sets_batch(tmp_path, share, images):
    method, run = tiny_method("mosaic", ood_fraction=share), tiny_run(tmp_path)
    assert isinstance(method, MosaicKD)
    method.setup(run)
    assert len(method.student_batch(method.G.net)) == tiny.BATCH + images
    assert ("stream ood" in run.registered) == bool(images)
    method.step()


def test_logit_cache_skips_ood_images(tmp_path):
    """With a full cache the teacher predicts mosaics only, with equal losses."""
    losses, teacher_batches = [], []
    for keep in (False, True):
        method, run = (
            tiny_method("mosaic", augment=False, cache_teacher_logits=keep, student_steps=40),
            tiny_run(tmp_path / str(keep)),
        )
        assert isinstance(method, MosaicKD)
        run.seed_all()
        method.setup(run)
        sizes: list[int] = []
        run.teacher.net.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        losses.append([plain(method.step()) for _ in range(2)])
        teacher_batches.append(sizes[-20:])
    assert teacher_batches == [[2 * tiny.BATCH] * 20, [tiny.BATCH] * 20]
    for mine, his in zip(*losses, strict=True):
        assert mine == pytest.approx(his, rel=1e-3)


@pytest.mark.parametrize("moves", [1, 3])
def test_student_steps_use_new_images(tmp_path, moves):
    method, run = tiny_method("mosaic", student_steps=moves), tiny_run(tmp_path, steps=2)
    train(method, run)
    state = tiny.final_state(run)
    assert state["per_rank"]["registered"] == {"stream real": {"position": 2}, "stream ood": {"position": 2 * moves}}
    assert state["shared"]["trainables"]["G"]["optimizer"]["state"][0]["step"] == 2


def test_losses_keep_bounds(tmp_path):
    method, run = tiny_method("mosaic", local=1.0, align=1.0, adv=1.0, balance=1.0), tiny_run(tmp_path)
    assert isinstance(method, MosaicKD)
    run.seed_all()
    method.setup(run)
    for _ in range(3):
        x = method.generate(method.G.net, method.sample_noise(method.n))
        assert x.min().item() >= 0
        assert x.max().item() <= 1
        t, s = method.T(x), method.S.forward_frozen(x)
        assert 0 <= logits.entropy(t).item() <= math.log(tiny.CLASSES) + 1e-6
        assert 0 <= logits.marginal_entropy(t).item() / math.log(2) <= math.log2(tiny.CLASSES) + 1e-6
        assert logits.kl(s, t).item() >= 0
        assert all(loss.item() >= 0 for name, loss in method.step().items() if name != "G")


@pytest.mark.parametrize("patch", [*PATCH_LAYERS, 16])
def test_patch_sizes_train(tmp_path, patch):
    train(tiny_method("mosaic", patch_size=patch), tiny_run(tmp_path, steps=1))


def test_bn_changes_generator_only(tmp_path):
    with_them, without = (tiny_run(tmp_path / str(bn), steps=1, batch_size=8) for bn in (1, 0))
    train(tiny_method("mosaic", bn=1.0), with_them)
    train(tiny_method("mosaic", bn=0.0), without)
    moved = tiny.state_differences(
        tiny.final_state(with_them)["shared"]["trainables"], tiny.final_state(without)["shared"]["trainables"]
    )
    assert any(path.startswith("/G/") for path in moved)
    assert not any(path.startswith("/D/") for path in moved)


def test_unknown_patch_or_shape_raises(tmp_path):
    with pytest.raises(UsageError, match="patch_size: found 7"):
        tiny_method("mosaic", patch_size=7).setup(tiny_run(tmp_path))
    run = tiny_run(tmp_path)
    run.task.image_size = (16, 32)
    with pytest.raises(UsageError, match="16x32"):
        tiny_method("mosaic").setup(run)


def run_step(folder, **settings) -> tuple[MosaicKD, Run, dict[str, float]]:
    """Run a step whose images and noise do not depend on the settings."""
    method, run = tiny_method("mosaic", ood_fraction=0.0, **settings), tiny_run(folder)
    assert isinstance(method, MosaicKD)
    run.seed_all()
    method.setup(run)
    return method, run, plain(method.step())


def test_single_meta_step_equals_plain_step(tmp_path):
    """With one step, the copy's gradient and result are G's own."""
    _, one, losses = run_step(tmp_path / "one", meta_steps=1)
    _, other, same = run_step(tmp_path / "other")
    assert losses == same
    for name in "GDS":
        pairs = zip(one.trainables[name].net.parameters(), other.trainables[name].net.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name


def test_meta_step_matches_reference(tmp_path):
    """First-order MAML in float64: three Adam steps of a copy and its noise, then one of G."""
    method, run = tiny_method("mosaic", meta_steps=3, lr_z=0.02, local=0.0, ood_fraction=0.0), tiny_run(tmp_path)
    assert isinstance(method, MosaicKD)
    run.seed_all()
    method.setup(run)
    T, G, S = (copy.deepcopy(net).double() for net in (run.teacher.net, method.G.net, run.student))
    F_, z = copy.deepcopy(G), torch.randn(method.n, method.z_dim).double()
    given = z.float()
    z.requires_grad_()
    adam = Adam([{"params": list(F_.parameters()), "lr": 1e-3}, {"params": [z], "lr": 0.02}], betas=(0.5, 0.999))
    total = [torch.zeros_like(p) for p in G.parameters()]
    for _ in range(3):
        x = F_(z)
        t, s = T(x), S(x)
        p = t.softmax(1)
        loss = -(p * p.log()).sum(1).mean() - Reference.kl(s, t) + 10 * (p.mean(0) * p.mean(0).log2()).sum()
        adam.zero_grad()
        loss.backward()
        total = [a + b.grad for a, b in zip(total, F_.parameters(), strict=True)]
        adam.step()
    outer = Adam(G.parameters(), lr=3e-3, betas=(0.5, 0.999))
    for p, gradient in zip(G.parameters(), total, strict=True):
        p.grad = gradient
    outer.step()

    found, copied = method.meta_step(given)
    assert found.item() == pytest.approx(loss.item(), rel=1e-4)
    for mine, his in ((method.G.net, G), (copied, F_)):
        a, b = (torch.cat([p.detach().reshape(-1).double() for p in net.parameters()]) for net in (mine, his))
        assert torch.isclose(a, b, rtol=1e-3, atol=2e-5).double().mean() > 0.99
        assert float((a - b).norm() / b.norm()) < 1e-3


def test_ema_generator_makes_half(tmp_path):
    method, run, _ = run_step(tmp_path, ema_G=0.9)
    assert method.ema is not None
    before = copy.deepcopy(method.ema.net.state_dict())
    method.ema.update(method.G.net)
    for key, now in method.ema.net.state_dict().items():
        theirs = method.G.net.state_dict()[key]
        expected = 0.9 * before[key].double() + 0.1 * theirs.double() if now.is_floating_point() else theirs
        assert torch.allclose(now.double(), expected.double(), rtol=1e-5, atol=1e-7), key
    torch.manual_seed(3)
    x = method.student_batch(method.G.net)
    torch.manual_seed(3)
    n = method.n - method.n // 2
    fresh = method.generate(method.G.net, method.sample_noise(n))
    assert torch.allclose(x[:n], fresh)
    assert torch.allclose(x[n:], method.generate(method.ema.net, method.sample_noise(method.n // 2)))
    assert "ema of G" in run.registered


def test_ema_generator_normalizes_by_batch(tmp_path):
    """In eval mode its images have another contrast, which cost 25 points of accuracy."""
    method, _, _ = run_step(tmp_path, ema_G=0.5)
    assert method.ema is not None
    method.ema.load_state_dict(method.G.net.state_dict())
    z = method.sample_noise(method.n)
    found, expected = (method.generate(net, z) for net in (method.ema.net, method.G.net))
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("settings", [{"ema_G": 0.9}, {"meta_steps": 2}, {"ema_G": 0.9, "meta_steps": 2, "bn": 1.0}])
def test_extensions_resume_bit_exactly(tmp_path, settings, precision):
    contract.assert_resumes_exactly(tmp_path, "mosaic", precision, settings)
