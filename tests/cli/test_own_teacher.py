"""A user's own teacher, from its bare state dict to a verified ONNX student, by the command line alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from invoking import answer, distill, run
from torch import nn

ARCHITECTURE = "timm/resnet10t"
SIZE = 32


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A timm model trained for some steps of plain PyTorch on a few hundred pieces of clothing; its bare state dict."""
    import timm

    from compress.data import open_images

    torch.manual_seed(0)
    images = open_images("embedded/fashion", split="train", labelled=True)
    assert images.labels is not None
    pixels = np.stack([np.asarray(images.read(i).convert("RGB").resize((SIZE, SIZE))) for i in range(512)])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    y = torch.as_tensor(np.asarray(images.labels[:512])).long()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # as timm's configuration says
    x = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    net = timm.create_model(ARCHITECTURE.removeprefix("timm/"), pretrained=False, num_classes=10).train()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for step in range(24):
        rows = torch.arange(step * 64, step * 64 + 64) % 512
        loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("mine") / "teacher.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def size() -> list[str]:
    return ["--image-size", str(SIZE)]


def test_inspect_recognises_it(trained) -> None:
    found = answer(run("inspect", trained, "--json"))
    assert ARCHITECTURE in [found["architecture"], *found["candidates"], *found["same_as"]]
    assert found["classes"] == 10
    assert found["non_finite"] == []


def test_from_the_state_dict_to_an_onnx_student_that_scores_as_in_pytorch(trained, tmp_path, photos, clothes) -> None:
    shape = ["--set", f"task.image_size=[{SIZE}, {SIZE}]"]
    out = tmp_path / "run"
    made = answer(distill(*shape, "--val", clothes, "--json", teacher=trained, ood=photos, out=out))
    best = Path(made["student"])
    (export,) = answer(run("export", best, "--images", clothes, "--exporter", "torchscript", "--json"))["artefacts"]
    assert export["parity"]["top1_agreement"] == 1.0
    scores = [answer(run("eval", m, "--data", clothes, "--json"))["metrics"] for m in (best, export["path"])]
    assert scores[0] == scores[1] == made["metrics"]


def test_the_teacher_itself_is_better_than_chance_in_pytorch_and_as_onnx(trained, size, tmp_path, clothes) -> None:
    shape = ["--arch", ARCHITECTURE, *size]
    out = ["--images", clothes, "--exporter", "torchscript", "--out", tmp_path / "teacher.onnx", "--json"]
    onnx = answer(run("export", trained, *shape, *out))["artefacts"][0]["path"]
    torch_, onnx_ = (
        answer(run("eval", *which, "--data", clothes, "--json"))["metrics"]["accuracy"]
        for which in ([trained, *shape], [onnx])
    )
    assert torch_ == onnx_
    assert torch_ > 0.3


def test_an_architecture_given_by_name_must_fit_the_weights(trained, photos, tmp_path) -> None:
    wrong = ["--teacher-arch", "timm/resnet18"]
    result = distill(*wrong, teacher=trained, ood=photos, out=tmp_path / "x")
    assert (result.exit_code, result.stdout) == (1, "")
    first, *differences = result.stderr.splitlines()
    assert first == f"Error: {trained} (as timm/resnet18): the weights do not fit the network:"
    assert len(differences) <= 7


@pytest.mark.slow
def test_bare_resnet18_needs_no_more_options(tmp_path, photos) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), tmp_path / "teacher.pt")
    assert answer(run("inspect", tmp_path / "teacher.pt", "--json"))["architecture"] == "torchvision/resnet18"
    options = ("--student", "torchvision/mobilenet_v2", "--set", "data.views=1", "--out", tmp_path / "run", "--dry-run")
    planned = answer(run("distill", "--teacher", tmp_path / "teacher.pt", "--ood", photos, *options, "--json"))
    assert planned["steps"] == 10_000


FACTORY = """
from torch import nn


def small(classes):
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), pool, nn.Linear(8, classes))
"""


def test_a_network_of_ones_own_is_student_and_teacher(tmp_path, monkeypatch, photos, clothes) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # as under the installed script
    Path("my_nets_for_the_test.py").write_text(FACTORY)
    name = "my_nets_for_the_test:small"
    made = answer(distill("--val", clothes, "--json", ood=photos, out="first", student=name))
    unnamed = distill(teacher="first/best", ood=photos, out="second")
    assert (unnamed.exit_code, f"--teacher-arch {name}" in unnamed.stderr) == (2, True)
    named = ["--teacher-arch", name]
    again = answer(distill("--json", "--val", clothes, *named, teacher="first/best", ood=photos, out="second"))
    assert 0 <= again["metrics"]["accuracy"] <= 1
    scored = answer(run("eval", made["student"], *named, "--data", clothes, "--json"))
    assert scored["metrics"] == made["metrics"]
    bare = answer(run("profile", name, "--classes", 10, "--input-size", "32x32", "--json"))
    assert bare["params"] == made["params"]
