"""Exported programs as teachers, validated before they are loaded."""

import copy
import importlib
import json
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.errors import CompressError, UsageError
from compress.models.file_safety import detect_file_kind
from compress.models.loading import load_model
from compress.models.overrides import ModelOverrides


def small(channels: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 7),
    ).eval()


class Flat(nn.Module):
    """Exported with a fixed batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x):
        return self.net(x)


def export(module, path, example, *, dynamic=True):
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=shapes), path)


def script(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(path))


def rewritten(source, target, change):
    """Copy an archive with the contents that `change(name, content)` returns."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("programs") / "teacher.pt2"
    export(small(), path, torch.rand(2, 3, 24, 24))
    return path


def test_exported_program_is_a_teacher(program):
    model, card = load_model(str(program))
    assert (card.architecture, card.classes, card.image_size) == ("exported", 7, (24, 24))
    x = torch.rand(5, 3, 24, 24, requires_grad=True)
    torch.testing.assert_close(model(x), small()(x))
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert gradient.abs().sum() > 0


def test_exported_program_stays_in_eval(program):
    model, _ = load_model(str(program))
    x = torch.rand(2, 3, 24, 24)
    before = model(x)
    model.train()
    assert torch.equal(model(x), before)


def test_exported_program_with_normalization(program):
    model, _ = load_model(str(program), ModelOverrides(mean=[0.5], std=[0.5]))
    x = torch.rand(2, 3, 24, 24)
    torch.testing.assert_close(model(x), small()((x - 0.5) / 0.5))


def test_exported_grayscale_program(tmp_path):
    export(small(1), tmp_path / "t.pt2", torch.rand(2, 1, 24, 24))
    model, card = load_model(str(tmp_path / "t.pt2"))
    assert card.grayscale
    assert model(torch.rand(2, 3, 24, 24)).shape == (2, 7)


def test_torchscript_needs_image_size(tmp_path):
    path = tmp_path / "teacher.pt"
    script(small(), path)
    assert detect_file_kind(path) == "script"
    with pytest.raises(UsageError, match="--image-size"):
        load_model(str(path), ModelOverrides(trust_pickle=True))
    model, card = load_model(str(path), ModelOverrides(image_size=(24, 24), trust_pickle=True))
    assert card.classes == 7
    x = torch.rand(3, 3, 24, 24, requires_grad=True)
    torch.testing.assert_close(model(x), small()(x))
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert gradient.abs().sum() > 0


def test_copies_of_torchscript_for_estimates(tmp_path):
    script(small(), tmp_path / "t.pt")
    model, _ = load_model(tmp_path / "t.pt", ModelOverrides(image_size=(24, 24), trust_pickle=True))
    assert all(parameter.is_leaf for parameter in copy.deepcopy(model).parameters())
    with pytest.raises(NotImplementedError):
        copy.deepcopy(model).to("meta")


def test_fixed_batch_program_is_refused(tmp_path):
    export(Flat(), tmp_path / "t.pt2", torch.rand(1, 3, 24, 24), dynamic=False)
    with pytest.raises(CompressError, match="dynamic"):
        load_model(str(tmp_path / "t.pt2"))


def test_program_mismatch_is_refused(program):
    with pytest.raises(UsageError, match="24x24"):
        load_model(str(program), ModelOverrides(image_size=(32, 32)))
    with pytest.raises(UsageError, match="7 "):
        load_model(str(program), ModelOverrides(classes=10))


def test_truncated_program_is_refused(program, tmp_path):
    (tmp_path / "t.pt2").write_bytes(program.read_bytes()[:5000])
    with pytest.raises(CompressError, match=r"t\.pt2"):
        load_model(str(tmp_path / "t.pt2"))


def edit(change):
    def apply(name, content):
        if not name.endswith("models/model.json"):
            return content
        graph = json.loads(content)
        change(graph)
        return json.dumps(graph)

    return apply


def call_system(graph):
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def evil_name(graph):
    graph["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"] = "x=__import__('os').system('true')"


def evil_expression(graph):
    text = json.dumps(graph).replace('"expr_str": "', '"expr_str": "__import__(0).system(0)+')
    graph.update(json.loads(text))


def file_operator(graph):
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


@pytest.mark.parametrize("change", [call_system, evil_name, evil_expression, file_operator])
def test_program_with_code_is_refused(program, tmp_path, change):
    path = rewritten(program, tmp_path / "evil.pt2", edit(change))
    assert path.read_bytes() != program.read_bytes()
    with pytest.raises(CompressError, match=r"evil\.pt2: refused"):
        load_model(str(path))


@pytest.mark.parametrize("place", ["sample inputs", "weights"])
def test_pickle_in_program_does_not_run(program, tmp_path, place):
    class Payload:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save((Payload(),), tmp_path / "payload.pt")
    evil = (tmp_path / "payload.pt").read_bytes()

    def change(name, old):
        if name.endswith("model_weights_config.json"):
            return old.replace(b'"use_pickle": false', b'"use_pickle": true')
        return evil if name.endswith("weight_0") else old

    if place == "weights":
        path = rewritten(program, tmp_path / "evil.pt2", change)
        with pytest.raises(CompressError, match="pickle"):
            load_model(str(path))
    else:
        path = rewritten(program, tmp_path / "evil.pt2", lambda name, old: evil if "sample_inputs" in name else old)
        load_model(str(path))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("call", ["torch.save(x, 'leak.pt')", "torch.ops.aten.from_file('leak.pt', True, 8)"])
def test_torchscript_needs_trust(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = f"class Leaking(nn.Module):\n    def forward(self, x):\n        {call}\n        return x.mean((2, 3))\n"
    Path("leaking.py").write_text(f"import torch\nfrom torch import nn\n\n{source}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "leaking", raising=False)
    script(importlib.import_module("leaking").Leaking(), tmp_path / "t.pt")
    with pytest.raises(CompressError, match="--trust-pickle"):
        load_model(str(tmp_path / "t.pt"), ModelOverrides(image_size=(8, 8)))
    assert not (tmp_path / "leak.pt").exists()
