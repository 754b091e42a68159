"""What a dry run says before anything is trained, and what a real run refuses before it starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner, Result

import compress
from compress.cli import main
from compress.training import memory
from compress.training.memory import Memory

TEACHER = "embedded/fashion_wrn16_2"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in arguments])


def distill(*arguments: object, teacher: object = TEACHER, out: Path) -> Result:
    return run(
        "distill", "--teacher", teacher, "--ood", "embedded/photos", "--method", "kd", "--set", "data.views=1",
        "--device", "cpu", "--precision", "32", "--out", out, *arguments,
    )  # fmt: skip


def assert_refused(result: Result, out: Path, *words: str) -> None:
    """A sentence with these words, and nothing was written."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "internal error" not in result.stderr
    for word in words:
        assert word in result.stderr.splitlines()[-1]
    assert not out.exists()


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    """A ViT for images of 224 pixels, as a state dict of timm."""
    path = tmp_path_factory.mktemp("vit") / "vit.pt"
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=10).state_dict(), path)
    return path


@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_teacher_that_does_not_read_the_size(vit, tmp_path, dry) -> None:
    out = tmp_path / "run"
    result = distill("--steps", 2, "--image-size", 64, *dry, teacher=vit, out=out)
    assert_refused(result, out, str(vit), "64x64", "--image-size 224x224")


@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_student_that_does_not_read_the_size(tmp_path, dry) -> None:
    out = tmp_path / "run"
    result = distill("--steps", 2, "--student", "torchvision/inception_v3", *dry, out=out)
    assert_refused(result, out, "torchvision/inception_v3", "32x32")


@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_batch_of_one_that_the_student_cannot_normalize(tmp_path, dry) -> None:
    with pytest.raises(ValueError, match="more than 1 value"):  # PyTorch's own answer
        torchvision.models.resnet18(num_classes=10).train()(torch.rand(1, 3, 32, 32))
    out = tmp_path / "run"
    result = distill("--steps", 2, "--student", "torchvision/resnet18", "--batch-size", 1, *dry, out=out)
    assert_refused(result, out, "torchvision/resnet18", "--batch-size 2")


def test_batch_of_one_that_the_student_can_normalize(tmp_path) -> None:
    """Maps of several pixels have a variance for one image, too."""
    result = distill("--steps", 1, "--student", "wrn16_1", "--batch-size", 1, out=tmp_path / "run")
    assert result.exit_code == 0, result.stderr


def test_batch_is_divided_by_the_processes(tmp_path) -> None:
    out = tmp_path / "run"
    result = distill("--steps", 2, "--student", "torchvision/resnet18", "--batch-size", 2, "--devices", 2, out=out)
    assert_refused(result, out, "--batch-size 4")


def test_time_limit_that_is_too_short_for_the_student(tmp_path) -> None:
    result = distill("--student", "wrn16_1", "--time-limit", "2s", "--dry-run", "--json", out=tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    (warning,) = content["warnings"]
    assert f"{content['steps']} steps" in warning
    assert warning in result.stderr
    needed = float(warning.partition("--time-limit ")[2].split(",")[0].rstrip("msh"))
    unit = {"s": 1, "m": 60, "h": 3600}[warning.partition("--time-limit ")[2].split(",")[0][-1]]
    assert needed * unit == pytest.approx(1000 * content["seconds_per_step"], rel=0.1, abs=60)


def test_number_of_steps_has_no_warning(tmp_path) -> None:
    result = distill("--student", "wrn16_1", "--steps", 5, "--dry-run", "--json", out=tmp_path / "run")
    assert json.loads(result.stdout)["warnings"] == []


def test_memory_that_does_not_suffice(tmp_path, monkeypatch) -> None:
    def plan(limit: int, batch_size: int) -> Any:
        monkeypatch.setattr(memory, "device_memory", lambda *_: Memory(int(2e8), limit))
        return compress.estimate_training(
            TEACHER, student="wrn16_1", unlabeled="embedded/photos", method="kd", steps=1, device="cpu",
            precision="32", batch_size=batch_size, output_dir=tmp_path / "run", settings={"data.views": 1},
        )  # fmt: skip

    (warning,) = plan(int(1e12), 64).warnings
    fitting = int(warning.partition("--batch-size ")[2].split()[0])
    assert fitting < 64
    assert plan(int(1e12), fitting).warnings == []
    with pytest.raises(compress.CompressError, match=f"--batch-size {fitting} "):
        plan(int(2e8), 64)


def test_defaults_fit_large_images() -> None:
    """At most the pixels of 256 images of 64x64, and 8 images at least."""
    from compress.training.recipes import resolve_config
    from compress.training.setup import prepare_training

    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 8), torch.nn.BatchNorm2d(4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(4, 10),
    )  # fmt: skip
    for side, expected in ((64, 256), (128, 64), (224, 16), (512, 8)):
        settings = {"task.image_size": [side, side]}
        arguments = {"teacher": compress.models.register_module(network), "method": "fastdfkd", "steps": 1}
        setup = prepare_training(*resolve_config(settings=settings, student="wrn16_1", **arguments))
        assert setup.config.training.batch_size == min(expected, 256)
        assert setup.config.method["images_per_synthesis"] == setup.method.images_per_synthesis == expected
        settings["method.images_per_synthesis"] = 256
        setup = prepare_training(*resolve_config(settings=settings, student="wrn16_1", **arguments))
        assert setup.method.images_per_synthesis == 256


def test_length_that_is_assumed_is_said_and_used(tmp_path) -> None:
    result = distill("--student", "wrn16_1", "--dry-run", "--json", out=tmp_path / "run")
    assert json.loads(result.stdout)["steps"] == 10_000
    assert "10000 steps" in result.stderr.replace(",", "")


def test_all_usage_errors_at_once_and_before_torch(tmp_path) -> None:
    out = tmp_path / "run"
    result = distill(
        "--steps", 0, "--seed", -1, "--batch-size", "many", "--stepz", 3, "--val", tmp_path / "none",
        teacher=tmp_path / "teacher.pt", out=out,
    )  # fmt: skip
    words = ("--steps", "--seed", "--batch-size", "--stepz", str(tmp_path / "none"), str(tmp_path / "teacher.pt"))
    assert_refused(result, out, *words)
    result = distill("--val", tmp_path / "none", teacher=tmp_path / "teacher.pt", out=out)
    assert_refused(result, out, *words[-2:])
    script = (
        "import sys\n"
        "from compress.cli import main\n"
        "try:\n"
        "    main(['distill', '--steps', '0', '--seed', '-1'])\n"
        "except SystemExit as error:\n"
        "    print(error.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2", "False"]
    assert done.stderr.count("Error") == 1
