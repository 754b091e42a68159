"""Checkpoints: wrapping is removed; damaged and unsafe files are refused."""

import argparse
import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.errors import CompressError, UsageError
from compress.models.checkpoints import read_checkpoint
from compress.models.registry import MODELS


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return MODELS["wrn16_1"](10, 3).state_dict()


def same(result, state) -> bool:
    return result.keys() == state.keys() and all(torch.equal(result[key], state[key]) for key in state)


def prefixed(state, prefix):
    return collections.OrderedDict((prefix + key, value) for key, value in state.items())


WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 7},
    "model": lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "model_state": lambda s: {"model_state": s},
    "module.": lambda s: prefixed(s, "module."),
    "_orig_mod.": lambda s: prefixed(s, "_orig_mod."),
    "_orig_mod.module.": lambda s: prefixed(s, "_orig_mod.module."),
    "lightning": lambda s: {"state_dict": prefixed(s, "model."), "epoch": 1, "hyper_parameters": {"lr": 0.1}},
    "student.": lambda s: {"state_dict": prefixed(s, "student.")},
    "network of ours": lambda s: prefixed(s, "body."),
    "ema only": lambda s: {"model_ema": prefixed(s, "module.") | {"n_averaged": torch.tensor(3)}},
    "nested": lambda s: {"ema": {"module": s}},
    "namespace": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1, data="/x"), "best_acc": np.float64(0.5)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_checkpoint_wrapping_is_removed(tmp_path, state, wrapping):
    path = tmp_path / "w.pth"
    torch.save(WRAPPINGS[wrapping](state), path)
    assert same(read_checkpoint(path).state, state)


def test_checkpoint_formats_are_read(tmp_path, state):
    save_file(dict(state), tmp_path / "w.safetensors", metadata={"arch": "wrn16_1"})
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    result = read_checkpoint(tmp_path / "w.safetensors")
    assert same(result.state, state)
    assert (result.container, result.wrapping, result.metadata) == ("safetensors", (), {"arch": "wrn16_1"})
    assert same(read_checkpoint(tmp_path / "old.pth").state, state)


def test_plain_weights_precede_ema(tmp_path, state):
    averaged = {key: value + 1 for key, value in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": averaged}, tmp_path / "w.pth")
    result = read_checkpoint(tmp_path / "w.pth")
    assert result.has_ema
    assert same(result.state, state)
    assert same(read_checkpoint(tmp_path / "w.pth", ema=True).state, averaged)


def test_checkpoint_metadata_is_kept(tmp_path, state):
    torch.save({"model": state, "epoch": 7, "arch": "wrn16_1", "classes": ["cat", "dog"]}, tmp_path / "a.pth")
    result = read_checkpoint(tmp_path / "a.pth")
    assert result.metadata == {"epoch": 7, "arch": "wrn16_1"}
    assert result.class_names == ["cat", "dog"]
    torch.save({"model": state, "class_to_idx": {"dog": 1, "cat": 0}}, tmp_path / "b.pth")
    assert read_checkpoint(tmp_path / "b.pth").class_names == ["cat", "dog"]


def test_partial_prefix_is_kept(tmp_path):
    state = {"model.weight": torch.ones(2), "head.weight": torch.ones(2)}
    torch.save(state, tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth").state, state)


class Payload:
    """Creates a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("writer", ["torch", "old torch", "pickle"])
def test_pickle_with_code_is_refused(tmp_path, state, writer):
    tripwire, path = tmp_path / "executed", tmp_path / "evil.pth"
    content = {"state_dict": state, "extra": Payload(tripwire)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"extra": Payload(tripwire)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(CompressError, match=r"posix\.system.*--trust-pickle") as caught:
        read_checkpoint(path)
    assert caught.value.exit_code == 1
    assert not tripwire.exists()


def test_pickled_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "m.pth")
    with pytest.raises(CompressError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "m.pth")


def test_pickled_module_with_trust(tmp_path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "m.pth")
    result = read_checkpoint(tmp_path / "m.pth", trust_pickle=True)
    assert isinstance(result.module, nn.Linear)
    assert not result.module.training
    assert result.container == "pickled module"


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_truncated_checkpoint_is_refused(tmp_path, state, kind, share):
    path = tmp_path / f"w.{kind}"
    torch.save(state, path) if kind == "pth" else save_file(dict(state), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CompressError, match=path.name):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "datum"),
    [
        ({}, ""),
        ({"epoch": 3}, "epoch"),
        ([1, 2], "list"),
        ({"state_dict": {}}, ""),
        ({"state_dict": {"note": "x"}}, ""),
        (torch.ones(3), "Tensor"),
        ({"w": torch.ones(1).expand(10**6, 10**6)}, "w .*1000000"),
        ({"w": torch.ones(2, 2).to_sparse()}, "w "),
    ],
)
def test_other_content_is_refused(tmp_path, content, datum):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CompressError, match=rf"w\.pth: .*{datum}"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"hello, world", bytes(range(256)) * 40, b"\x89PNG\r\n\x1a\n" + bytes(500)])
def test_other_file_is_refused(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CompressError, match=r"w\.pth"):
        read_checkpoint(tmp_path / "w.pth")


def test_decompression_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200 * 2**20))
    with pytest.raises(CompressError, match=r"w\.pth"):
        read_checkpoint(tmp_path / "w.pth")


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"w\.pth"):
        read_checkpoint(tmp_path / "w.pth")
