"""`export --script`: the script beside a file, in a process of its own, against the logits of `eval` in PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import compress
from compress.cli import main

TEACHER = "embedded/fashion_wrn16_2"
SCENES = "embedded/scenes_deeplab"
#: runs a script as its user does, and prints its first output
RUN = (
    "import json, runpy, sys\n"
    "sys.argv = sys.argv[1:]\n"
    "values = runpy.run_path(sys.argv[0])\n"
    "heavy = {name for name in ('torch', 'compress', 'exporters') if name in sys.modules}\n"
    "print(json.dumps([values['outputs'][0].tolist(), sorted(heavy)]))\n"
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in arguments])


def run_script(script: Path, *arguments: Path) -> tuple[list[str], np.ndarray]:
    """Return the lines that a script prints, and its first output."""
    command = [sys.executable, "-c", RUN, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    output, heavy = json.loads(last)
    assert heavy == []
    return lines, np.array(output)


def save_picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> Path:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (7, 7, len(mode)), dtype=np.uint8), mode)
    small.resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU(), torch.nn.AvgPool2d(6), torch.nn.Flatten(),
        torch.nn.Linear(32, 7),
    ).eval()  # fmt: skip


def evaluated_logits(model: Any, picture: Path, **options: Any) -> np.ndarray:
    """Return the logits that `eval` computes for one picture, by the network itself."""
    from compress.data import open_images
    from compress.models.loading import load_model
    from compress.models.overrides import ModelOverrides
    from compress.training.data import evaluation_view

    network, card = load_model(model, ModelOverrides(**options))
    images = open_images(picture.parent)
    rows, _ = evaluation_view(images, card).make_rows(images.read_image(0), 0, range(1))
    with torch.no_grad():
        return network(torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 255).numpy()


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize(("size", "mode"), [((90, 60), "RGB"), ((40, 71), "RGBA")])
def test_script_gives_the_logits_of_eval(model, tmp_path, kind, size, mode) -> None:
    picture = save_picture(tmp_path / "pictures.png", size, mode)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    picture = picture.rename(pictures / "a.png")
    options: dict[str, Any] = {"image_size": (48, 48), "classes": 7}
    summary = compress.export(model, tmp_path / "out", formats=[kind], exporter="torchscript", script=True, **options)
    (script,) = summary.scripts
    lines, output = run_script(Path(script), picture)
    expected = evaluated_logits(model, picture, **options)
    assert np.abs(output - expected).max() < 1e-4
    best = np.argsort(-expected[0])[:5]
    assert [line.split()[1] for line in lines] == [str(c) for c in best]
    probabilities = torch.from_numpy(expected[0]).softmax(0).numpy()
    assert [float(line.split()[0]) for line in lines] == pytest.approx(probabilities[best], abs=2e-4)
    assert len(Path(script).read_text().splitlines()) <= 27


def test_script_of_maps_writes_the_labels_of_predict(tmp_path) -> None:
    picture = save_picture(tmp_path / "a.png", (96, 64))
    result = run("export", SCENES, "--out", tmp_path / "m.onnx", "--exporter", "torchscript", "--script", "--json")
    assert result.exit_code == 0, result.stderr
    (script,) = json.loads(result.stdout)["scripts"]
    lines, _ = run_script(Path(script), picture, tmp_path / "labels.png")
    (one,) = compress.predict(tmp_path / "m.onnx", picture, output_dir=tmp_path / "out").predictions
    assert one.labels is not None
    with Image.open(one.labels) as expected, Image.open(tmp_path / "labels.png") as found:
        assert (np.array(found) == np.array(expected)).mean() > 0.999
    assert {line.split(maxsplit=1)[1] for line in lines} == {c.name for c in one.classes}


def test_script_of_a_file_that_preprocesses(model, tmp_path) -> None:
    picture = save_picture(tmp_path / "a.png", (90, 60))
    summary = compress.export(
        model, tmp_path / "m.onnx", image_size=(48, 48), classes=7, preprocess=True, postprocess="softmax", script=True
    )
    lines, output = run_script(Path(summary.scripts[0]), picture)
    (one,) = compress.predict(tmp_path / "m.onnx", picture, top_k=7).predictions
    found = {c.index: c.probability for c in one.classes}
    assert output[0] == pytest.approx([found[c] for c in range(7)], abs=1e-3)
    assert lines[0].split()[1] == one.classes[0].name


def test_scripts_of_others_stay_and_engines_have_none(tmp_path) -> None:
    mine = tmp_path / "m.onnx.py"
    mine.write_text("print('mine')\n")
    for arguments in (("--out", tmp_path / "m.onnx"), ("--format", "tensorrt", "--out", tmp_path / "m.engine")):
        result = run("export", TEACHER, "--script", *arguments)
        assert result.exit_code == 2, result.output
        assert "internal error" not in result.stderr
    assert mine.read_text() == "print('mine')\n"
    assert not (tmp_path / "m.onnx").exists()
