"""Descriptions of checkpoints, and the lists of models and datasets."""

import math
import os

import pytest
import torch
import torchvision

from compress.data import DATASETS
from compress.errors import CompressError, UsageError
from compress.models.card import ModelCard
from compress.models.catalog import list_models
from compress.models.inspection import inspect_model
from compress.models.overrides import ModelOverrides
from compress.models.registry import build_model, build_network
from compress.models.serialization import save_model


def inspect(path, **overrides):
    return inspect_model(path, ModelOverrides(**overrides))


def test_inspect_model_directory(tmp_path):
    card = ModelCard("wrn16_1", 3, (32, 32), class_names=["cat", "dog", "owl"], metrics={"accuracy": 0.75})
    save_model(tmp_path, build_network(card), card)
    result = inspect(tmp_path)
    assert (result.format, result.architecture, result.card) == ("model directory", "wrn16_1", card)
    assert result.params == sum(p.numel() for p in build_model("wrn16_1", classes=3).parameters())
    assert result.non_finite == []


def test_inspect_wrapped_checkpoint(tmp_path):
    state = {"module." + key: value for key, value in build_model("wrn16_2", classes=7).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 12, "state_dict_ema": state}, tmp_path / "w.pth")
    result = inspect(tmp_path / "w.pth")
    assert result.card is not None
    assert (result.architecture, result.card.classes) == ("wrn16_2", 7)
    assert (list(result.wrapping), result.has_ema) == (["state_dict", "module."], True)
    assert result.metadata == {"epoch": 12}
    assert result.card.provenance["field_sources"] == dict.fromkeys(["image_size", "resize", "mean", "std"], "assumed")


def test_inspect_names_lookalikes(tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=4).state_dict(), tmp_path / "w.pth")
    result = inspect(tmp_path / "w.pth")
    assert (result.architecture, result.candidates, result.problem) == ("torchvision/resnet18", (), None)
    assert result.card is not None
    assert result.card.provenance["also_fits"] == ["timm/resnetblur18"]


def test_inspect_reports_unloadable_weights(tmp_path):
    torch.save({"foo": torch.ones(3)}, tmp_path / "w.pth")
    result = inspect(tmp_path / "w.pth")
    assert (result.architecture, result.card, result.params) == (None, None, 3)
    assert "--teacher-arch" in str(result.problem)


def test_inspect_names_non_finite_tensors(tmp_path):
    state = build_model("wrn16_1", classes=3).state_dict()
    state["fc.bias"][0] = math.nan
    state["conv1.weight"][0, 0, 0, 0] = math.inf
    torch.save(state, tmp_path / "w.pth")
    assert sorted(inspect(tmp_path / "w.pth").non_finite) == ["conv1.weight", "fc.bias"]


def test_inspect_counts_dtypes(tmp_path):
    torch.save(build_model("wrn16_1", classes=3).half().state_dict(), tmp_path / "w.pth")
    assert "float16" in inspect(tmp_path / "w.pth").dtypes


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(("name", "error"), [("none", UsageError), ("cut", CompressError), ("evil", CompressError)])
def test_inspect_refuses_bad_files(tmp_path, name, error):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 nothing more")
    torch.save({"x": Payload(tmp_path / "executed")}, tmp_path / "evil.pth")
    with pytest.raises(error, match=rf"{name}\.pth"):
        inspect(tmp_path / f"{name}.pth")
    assert not (tmp_path / "executed").exists()


def test_models_and_datasets_are_listed():
    models = list_models()
    assert {model.name for model in models["built_in"]} >= {"wrn40_2", "wrn16_1", "resnet34", "vgg11"}
    assert {model.name for model in models["torchvision/"]} >= {"torchvision/resnet18"}
    assert all(model.description for models_ in models.values() for model in models_)
    assert DATASETS.keys() >= {"cifar10", "cifar100", "svhn", "imagenet"}
