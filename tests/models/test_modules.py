"""Modules of the user as teachers and students."""

from __future__ import annotations

import pytest
import tiny
import torch
import torchvision
from torch import nn

from compress.errors import UsageError
from compress.models import ModelCard, ModelOverrides, build_model_like, load_model, register_module
from compress.models.inspection import inspect_model
from compress.models.registry import build_model
from compress.models.serialization import save_model


def small(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *pool, nn.Linear(4, classes))


def test_module_is_a_teacher() -> None:
    module = small().eval()
    network, card = load_model(module, ModelOverrides(image_size=(16, 16)))
    x = card.example_input(3)
    assert (card.classes, card.task, card.image_size) == (5, "classification", (16, 16))
    assert card.provenance["field_sources"] == {
        "mean": "assumed",
        "std": "assumed",
        "image_size": "option",
        "resize": "option",
    }
    assert torch.equal(network(x), module(x))
    next(network.parameters()).data.zero_()
    assert not torch.equal(network(x), module(x)), "the module itself is not changed"


def test_module_normalization_from_overrides() -> None:
    module = small().eval()
    network, card = load_model(module, ModelOverrides(image_size=(16, 16), mean=[0.5], std=[0.25]))
    x = card.example_input(2)
    torch.testing.assert_close(network(x), module((x - 0.5) / 0.25))
    assert set(card.provenance["field_sources"].values()) == {"option"}


def test_module_of_known_architecture_has_its_preprocessing() -> None:
    module = torchvision.models.mobilenet_v3_small(num_classes=7).eval()
    network, card = load_model(module)
    assert (card.classes, card.image_size, card.mean) == (7, (224, 224), (0.485, 0.456, 0.406))
    assert card.provenance["field_sources"] == dict.fromkeys(["image_size", "resize", "mean", "std"], "assumed")
    with torch.no_grad():
        torch.testing.assert_close(network(card.example_input()), module(network.normalize(card.example_input())))


def test_unknown_module_needs_its_image_size() -> None:
    with pytest.raises(UsageError, match="--image-size"):
        load_model(small())


def test_network_keeps_its_card() -> None:
    network, card = load_model("embedded/fashion_wrn16_2")
    again, same = load_model(network)
    assert same == card
    assert torch.equal(again(card.example_input()), network(card.example_input()))


def test_module_name_depends_on_content() -> None:
    assert register_module(small()) == register_module(small())
    changed = small()
    changed[0].weight.data[0, 0, 0, 0] += 1
    assert len({register_module(small()), register_module(changed), register_module(small(6))}) == 3
    with pytest.raises(UsageError, match="module:0123"):
        load_model("module:0123")


def test_module_as_student_is_saved_and_loaded(tmp_path) -> None:
    like = ModelCard("tiny:small", 5, (16, 16))
    spec = register_module(small())
    student, card = build_model_like(spec, like=like)
    assert student.training
    student.eval()
    save_model(tmp_path, student, card)
    loaded, same = load_model(tmp_path)
    assert same.architecture == spec
    assert torch.equal(loaded(like.example_input()), student(like.example_input()))
    with pytest.raises(UsageError, match="5"):
        build_model_like(register_module(small(6)), like=like)


def test_module_inspection_counts_parameters() -> None:
    result = inspect_model(small(), ModelOverrides(image_size=(16, 16)))
    assert (result.format, result.params) == ("module", sum(p.numel() for p in small().parameters()))


def test_example_input_is_fixed() -> None:
    card = tiny.CARDS["segmentation"]
    assert card.example_input(4).shape == (4, 3, *card.image_size)
    assert torch.equal(card.example_input(2), card.example_input(2))
    assert build_model(card.architecture, classes=card.classes).eval()(card.example_input()).shape[0] == 1


def test_distill_accepts_python_objects(tmp_path) -> None:
    import compress

    images = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labeled = torch.utils.data.TensorDataset(images, torch.arange(32) % 5)
    run = compress.distill(
        load_model(small().eval(), ModelOverrides(image_size=(16, 16)))[0], student=small(),
        unlabeled=torch.utils.data.DataLoader(images, batch_size=8), validation=labeled, method="kd", steps=2,
        batch_size=8, device="cpu", settings={"data.views": 1, "data.cache_dir": str(tmp_path / "cache")},
        output_dir=tmp_path / "run",
    )  # fmt: skip
    student, card = load_model(run.best)
    assert card.architecture == register_module(small())
    assert student(card.example_input()).shape == (1, 5)
