"""Exported files as sources of an export, compared with the network that they were made from."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from torch import Tensor, nn

from compress.cli import main
from exporters.loading import load

SIZE, CLASSES = 16, 5


class Net(nn.Module):
    """A classifier, or a segmenter with maps at half the size."""

    def __init__(self, *, maps: bool = False, softmax: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU())
            self.head = nn.Conv2d(32, CLASSES, 1) if maps else nn.Linear(32, CLASSES)
        self.maps, self.softmax = maps, softmax

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        logits = 3 * self.head(y if self.maps else y.mean((2, 3)))
        return logits.softmax(1) if self.softmax else logits


def write_onnx(net: nn.Module, path: Path, opset: int = 17, batch: int | None = None) -> Path:
    """Write a file as other tools do: no normalization, other names, an older opset."""
    axes = None if batch else {"x": [0], "y": [0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), (torch.rand(batch or 2, 3, SIZE, SIZE),), str(path), dynamo=False, opset_version=opset,
            input_names=["x"], output_names=["y"], dynamic_axes=axes,
        )  # fmt: skip
    return path


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments), "--exporter", "torchscript", "--json"])


def read_files(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["artifacts"]


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def run_file(path: str | Path, x: Tensor) -> Tensor:
    with load(Path(path)) as runner:
        return torch.from_numpy(runner(x.numpy()))


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_foreign_onnx_file_is_exported_with_normalization(tmp_path, opset) -> None:
    net = Net()
    source = write_onnx(net, tmp_path / "t.onnx", opset)
    files = read_files(
        export(source, "--format", "onnx,openvino", "--mean", 0.5, "--std", 0.25, "--out", tmp_path / "out")
    )
    with torch.no_grad():
        expected = net((images() - 0.5) / 0.25)
    assert [one["format"] for one in files] == ["onnx", "openvino"]
    for one in files:
        torch.testing.assert_close(run_file(one["path"], images()), expected, rtol=1e-5, atol=1e-5)


def test_onnx_file_becomes_int8(tmp_path) -> None:
    """The command of the issue; int8 is compared with the original network by its classes."""
    net = Net()
    source = write_onnx(net, tmp_path / "t.onnx")
    (one,) = read_files(
        export(
            source, "--format", "openvino", "--precision", "int8", "--calibration", "embedded/photos", "--images",
            "embedded/photos", "--calibration-images", 32, "--allow-slower",
        )
    )  # fmt: skip
    assert (one["format"], one["precision"], Path(one["path"]).name) == ("openvino", "int8", "t.int8.xml")
    with torch.no_grad():
        expected = net(images())
    difference = (run_file(one["path"], images()) - expected).abs().max() / expected.abs().max()
    assert 0 < float(difference) < 0.1
    assert one["details"]["int8"]


def test_own_onnx_file_is_exported_again(tmp_path) -> None:
    """Its normalization is inside, and is not applied twice."""
    net = Net()
    source = write_onnx(net, tmp_path / "t.onnx")
    (first,) = read_files(export(source, "--mean", 0.5, "--std", 0.5, "--out", tmp_path / "first.onnx"))
    (second,) = read_files(export(first["path"], "--precision", "fp16", "--out", tmp_path / "second.onnx"))
    with torch.no_grad():
        expected = net((images() - 0.5) / 0.5)
    torch.testing.assert_close(run_file(second["path"], images()), expected, rtol=1e-2, atol=1e-2)
    entries = {entry.key: entry.value for entry in onnx.load(second["path"]).metadata_props}
    assert json.loads(entries["normalization"])["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("maps", [False, True])
def test_softmax_of_source_is_undone(tmp_path, maps) -> None:
    """The file returns logits; --postprocess gives probabilities at the size of the image."""
    net = Net(maps=maps, softmax=True)
    source = write_onnx(net, tmp_path / "t.onnx")
    (plain,) = read_files(export(source, "--out", tmp_path / "logits.onnx"))
    (soft,) = read_files(export(source, "--postprocess", "softmax", "--out", tmp_path / "soft.onnx"))
    with torch.no_grad():
        logits = Net(maps=maps)(images())
    if maps:
        logits = F.interpolate(logits, (SIZE, SIZE), mode="bilinear")
    torch.testing.assert_close(run_file(plain["path"], images()), logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run_file(soft["path"], images()), logits.softmax(1), rtol=1e-5, atol=1e-5)


def test_fixed_batch_is_kept(tmp_path) -> None:
    source = write_onnx(Net(), tmp_path / "t.onnx", batch=2)
    refused = export(source, "--out", tmp_path / "out.onnx")
    assert refused.exit_code == 2
    assert "--batch 2" in refused.stderr
    (one,) = read_files(export(source, "--batch", 2, "--out", tmp_path / "out.onnx"))
    with torch.no_grad():
        torch.testing.assert_close(run_file(one["path"], images(2)), Net()(images(2)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["program", "script"])
def test_program_is_exported(tmp_path, kind) -> None:
    net, path = Net(softmax=True).eval(), tmp_path / ("t.pt2" if kind == "program" else "t.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "program":
            batch = torch.export.Dim("batch")
            torch.export.save(torch.export.export(net, (images(),), dynamic_shapes=({0: batch},)), path)
        else:
            torch.jit.save(torch.jit.trace(net, images()), str(path))
    (one,) = read_files(
        export(path, "--format", "openvino", "--trust-pickle", "--image-size", SIZE, "--out", tmp_path / "t.xml")
    )
    with torch.no_grad():
        torch.testing.assert_close(run_file(one["path"], images()), Net()(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["tensorrt", "engine"])
def test_engine_is_built_up_to_the_library(tmp_path, name) -> None:
    """Without TensorRT or a GPU, the sentence is that of a network as the source: the graph has been made."""
    source = write_onnx(Net(), tmp_path / "t.onnx")
    from_file = export(source, "--format", name, "--precision", "fp16", "--out", tmp_path / "t.engine")
    from_network = export(
        "embedded/fashion_wrn16_2", "--format", "tensorrt", "--precision", "fp16", "--out", tmp_path / "t.engine"
    )
    if from_network.exit_code == 0:
        assert from_file.exit_code == 0
        return
    assert from_file.exit_code == from_network.exit_code == 1
    sentences = [result.stderr.strip().splitlines()[-1] for result in (from_file, from_network)]
    assert sentences[0] == sentences[1]
    assert "internal error" not in sentences[0]
    assert not (tmp_path / "t.engine").exists()


def test_int8_file_is_no_source(tmp_path) -> None:
    source = write_onnx(Net(), tmp_path / "t.onnx")
    (one,) = read_files(
        export(source, "--precision", "int8", "--calibration", "embedded/photos", "--calibration-images", 32,
               "--allow-slower", "--out", tmp_path / "i.onnx")
    )  # fmt: skip
    refused = export(one["path"], "--format", "openvino", "--out", tmp_path / "i.xml")
    assert refused.exit_code == 1
    assert "fp32" in refused.stderr


def test_source_is_not_replaced(tmp_path) -> None:
    source = write_onnx(Net(), tmp_path / "t.onnx")
    before = source.read_bytes()
    assert export(source).exit_code == 2
    assert source.read_bytes() == before
