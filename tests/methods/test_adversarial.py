"""Methods that train generator and student in turn."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from generator_reference import create_method, inputs_of
from tiny import tiny_method, tiny_run
from torch import Tensor

from compress.engine.trainer import train

#: method, task, order of the optimization steps with three student steps
ORDERS = [
    ("mosaic", "classification", "DGSSS"),
    ("mosaic", "segmentation", "DGSSS"),
    ("dfad", "classification", "SSSG"),
    ("dfad", "segmentation", "SSSG"),
    ("dfq", "classification", "GSSS"),
    ("zskt", "classification", "GSSS"),
    ("dafl", "classification", "GS"),
]


@pytest.mark.parametrize(("name", "task", "order"), ORDERS)
def test_each_loss_moves_own_model(tmp_path, monkeypatch, name, task, order):
    """A step of one model gives no gradient to the others or the teacher, and does not change them."""
    settings: dict[str, Any] = {} if name == "dafl" else {"student_steps": 3}
    method, run = create_method(tmp_path, name, task=task, **settings)
    moved = []
    for model in run.trainables.values():

        def step(loss: Tensor, model: Any = model, original: Any = model.optimization_step, **options: Any) -> None:
            others = [p for other in run.trainables.values() if other is not model for p in other.net.parameters()]
            for p in others:
                p.grad = None
            before = [p.detach().clone() for p in others]
            original(loss, **options)
            moved.append(model.name)
            assert all(p.grad is None for p in [*others, *run.teacher.net.parameters()])
            assert all(torch.equal(p, old) for p, old in zip(others, before, strict=True))
            assert all(p.grad is not None for p in model.net.parameters())

        monkeypatch.setattr(model, "optimization_step", step)
    method.step()
    assert "".join(moved) == order


@pytest.mark.parametrize("name", ["dfad", "dfq"])
def test_student_steps_use_new_images(tmp_path, name):
    method, _ = create_method(tmp_path, name, student_steps=3)
    inputs = [inputs_of(method.G.net), inputs_of(method.S.net)]
    method.step()
    for batches in inputs:
        assert len(batches) == 4
        assert not any(torch.equal(a, b) for i, a in enumerate(batches) for b in batches[:i])


@pytest.mark.parametrize(
    ("name", "task", "images"),
    [
        ("mosaic", "classification", "mosaics"),
        ("dafl", "classification", "synthetic"),
        ("dfad", "segmentation", "synthetic"),
    ],
)
def test_image_grids_change_nothing(tmp_path, name, task, images):
    """Grids are saved at every evaluation, also without real images."""
    states = []
    for every in (1, 4):
        run = tiny_run(tmp_path / str(every), name, task=task, evaluate_every=every)
        train(tiny_method(name), run)
        states.append(tiny.final_state(run)["shared"]["trainables"])
    names = sorted(path.name for path in (tmp_path / "1" / "compress-images").iterdir())
    assert names == [f"{images}-{step:07d}.png" for step in (1, 2, 3, 4)]
    assert tiny.state_differences(*states) == []
