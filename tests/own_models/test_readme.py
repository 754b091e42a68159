"""The commands of the README's section on one's own teacher, as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F

README = Path(__file__).parents[2] / "README.md"
COLORS = {"blue": (40, 60, 200), "green": (50, 170, 60), "red": (200, 50, 40)}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def read_commands() -> list[list[str]]:
    """The commands of the section; eight hours become half a minute."""
    section = README.read_text().split("## Your own teacher")[1].split("##")[0]
    text = re.sub(r"\\\n", " ", "\n".join(re.findall(r"^    (.*)$", section, flags=re.M)))
    commands = [
        shlex.split(line, comments=True) for line in text.replace("--time-limit 8h", "--time-limit 30s").splitlines()
    ]
    assert [command[:2] for command in commands] == [
        ["compress", "inspect"], ["compress", "distill"], ["compress", "distill"], ["compress", "export"],
    ]  # fmt: skip
    return commands


def draw(rng: np.random.Generator, color: tuple[int, int, int]) -> np.ndarray:
    """A picture of a texture in a color."""
    noise = rng.normal(0, 40, (28, 28, 1)) + rng.normal(0, 20, (28, 28, 3))
    picture = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(picture).resize((224, 224)))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home directory with a resnet18 that was trained for a minute, labeled images, and other images."""
    home, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for _ in range(25):
        labels = torch.from_numpy(rng.integers(0, 3, 8))
        images = np.stack([draw(rng, list(COLORS.values())[int(label)]) for label in labels])
        x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        optimizer.zero_grad()
        F.cross_entropy(network((x - MEAN) / STD), labels).backward()
        optimizer.step()
    torch.save(network.state_dict(), home / "teacher.pt")
    for name, color in COLORS.items():
        (home / "labeled" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(draw(rng, color)).save(home / "labeled" / name / f"{i}.png")
    (home / "images").mkdir()
    for i in range(16):
        Image.fromarray(draw(rng, tuple(rng.integers(0, 256, 3)))).save(home / "images" / f"{i}.png")
    return home


def score(home: Path) -> float:
    """The teacher's accuracy on the labeled images, by a loop of our own."""
    network = torchvision.models.resnet18(num_classes=3)
    network.load_state_dict(torch.load(home / "teacher.pt", weights_only=True))
    network.eval()
    hits = []
    for label, name in enumerate(sorted(COLORS)):
        for path in sorted((home / "labeled" / name).iterdir()):
            image = Image.open(path)
            large = torchvision.transforms.functional.center_crop(
                torchvision.transforms.functional.resize(image, [256], antialias=True), [224]
            )
            x = torch.from_numpy(np.asarray(large).copy()).permute(2, 0, 1) / 255
            with torch.no_grad():
                hits.append(int(network(((x - MEAN) / STD)[None]).argmax()) == label)
    return sum(hits) / len(hits)


@pytest.mark.slow
def test_commands_of_the_readme(home: Path) -> None:
    results = []
    for command in read_commands():
        expanded = [part.replace("~", str(home), 1) if part.startswith("~/") else part for part in command[1:]]
        environment = os.environ | {"HOME": str(home), "COMPRESS_CACHE": str(home / "cache")}
        done = subprocess.run(
            [sys.executable, "-m", "compress", *expanded, "--json"], cwd=home, env=environment, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    inspected, _, run, exported = results
    assert (inspected["architecture"], inspected["classes"]) == ("torchvision/resnet18", 3)
    assert set(run["metrics"]) >= {"accuracy"}
    assert (home / "runs" / "mine" / "report.html").stat().st_size > 10_000
    assert json.loads((home / "runs" / "mine" / "best" / "config.json").read_text())["class_names"] == sorted(COLORS)
    assert {(one["format"], one["precision"]) for one in exported["artifacts"]} >= {
        ("onnx", "fp32"),
        ("openvino", "fp32"),
    }
    assert run["teacher_metrics"]["accuracy"] == pytest.approx(score(home))
