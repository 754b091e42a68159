"""A user's own teacher, from its bare state dict to a verified ONNX student, by the command line alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from invoking import distill, read_result, run
from torch import nn

ARCHITECTURE = "timm/resnet10t"
SIZE = 32


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A timm model trained for some steps of plain PyTorch on a few hundred pieces of clothing; its bare state dict."""
    import timm

    from compress.data import open_images

    torch.manual_seed(0)
    images = open_images("embedded/fashion", split="train", labeled=True)
    assert images.labels is not None
    pixels = np.stack([np.asarray(images.read_image(i).convert("RGB").resize((SIZE, SIZE))) for i in range(512)])
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


def test_inspect_recognizes_state_dict(trained) -> None:
    found = read_result(run("inspect", trained, "--json"))
    assert ARCHITECTURE in [found["architecture"], *found["candidates"], *found["same_as"]]
    assert found["card"]["classes"] == 10
    assert found["non_finite"] == []


def test_state_dict_teacher_yields_onnx_student(trained, tmp_path, photos, clothes) -> None:
    shape = ["--set", f"task.image_size=[{SIZE}, {SIZE}]"]
    out = tmp_path / "run"
    made = read_result(distill(*shape, "--val", clothes, "--json", teacher=trained, ood=photos, out=out))
    best = Path(made["best"])
    (export,) = read_result(run("export", best, "--images", clothes, "--exporter", "torchscript", "--json"))[
        "artifacts"
    ]
    assert export["parity"]["top1_agreement"] == 1.0
    scores = [read_result(run("eval", m, "--data", clothes, "--json"))["metrics"] for m in (best, export["path"])]
    assert scores[0] == scores[1] == made["metrics"]


def test_state_dict_teacher_scores_as_onnx(trained, size, tmp_path, clothes) -> None:
    shape = ["--arch", ARCHITECTURE, *size]
    out = ["--images", clothes, "--exporter", "torchscript", "--out", tmp_path / "teacher.onnx", "--json"]
    onnx = read_result(run("export", trained, *shape, *out))["artifacts"][0]["path"]
    torch_, onnx_ = (
        read_result(run("eval", *which, "--data", clothes, "--json"))["metrics"]["accuracy"]
        for which in ([trained, *shape], [onnx])
    )
    assert torch_ == onnx_
    assert torch_ > 0.3


def test_given_architecture_must_fit_weights(trained, photos, tmp_path) -> None:
    wrong = ["--teacher-arch", "timm/resnet18"]
    result = distill(*wrong, teacher=trained, ood=photos, out=tmp_path / "x")
    assert (result.exit_code, result.stdout) == (1, "")
    first, *differences = result.stderr.splitlines()
    assert str(trained) in first
    assert "timm/resnet18" in first
    assert len(differences) <= 7


@pytest.mark.slow
def test_bare_resnet18_needs_no_more_options(tmp_path, photos) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), tmp_path / "teacher.pt")
    assert read_result(run("inspect", tmp_path / "teacher.pt", "--json"))["architecture"] == "torchvision/resnet18"
    options = ("--student", "torchvision/mobilenet_v2", "--set", "data.views=1", "--out", tmp_path / "run", "--dry-run")
    planned = read_result(run("distill", "--teacher", tmp_path / "teacher.pt", "--ood", photos, *options, "--json"))
    assert planned["steps"] == 10_000


FACTORY = """
from torch import nn


def small(classes):
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), pool, nn.Linear(8, classes))
"""


def test_user_network_is_student_and_teacher(tmp_path, monkeypatch, photos, clothes) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # as under the installed script
    Path("my_nets_for_the_test.py").write_text(FACTORY)
    name = "my_nets_for_the_test:small"
    made = read_result(distill("--val", clothes, "--json", ood=photos, out="first", student=name))
    unnamed = distill(teacher="first/best", ood=photos, out="second")
    assert (unnamed.exit_code, f"--teacher-arch {name}" in unnamed.stderr) == (2, True)
    named = ["--teacher-arch", name]
    again = read_result(distill("--json", "--val", clothes, *named, teacher="first/best", ood=photos, out="second"))
    assert 0 <= again["metrics"]["accuracy"] <= 1
    scored = read_result(run("eval", made["best"], *named, "--data", clothes, "--json"))
    assert scored["metrics"] == made["metrics"]
    bare = read_result(run("profile", name, "--classes", 10, "--input-size", "32x32", "--json"))
    assert bare["params"] == made["params"]
