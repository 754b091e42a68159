"""Accuracy budget: sensitive layers stay in fp32, and only as many as necessary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fashion_teacher import accuracy, answers, batch_function, export_fashion, fashion_images, teacher
from numpy.typing import NDArray
from torch import nn

from exporters.errors import RejectedError
from exporters.quantization import mixed_precision
from exporters.quantization.float16 import Float16Session
from exporters.quantization.mixed_precision import MixedPrecisionResult, quantize_within_budget
from exporters.quantization.static import calibrated_session
from exporters.torch_exporters import GraphSignature, export_torchscript, save_model

SORE = "/body/block2/block2.1/conv2/Conv"
COUNT = 120  #: test images of a score
DEPTH = 17  #: layers of `stack`


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The teacher with one channel so large before a convolution that one scale for all channels loses the others.

    What the convolution makes of it is as soft as before: in fp32 nothing has changed.
    """
    net = teacher()
    block = net.body.block2[1]
    with torch.no_grad():
        for value in (block.bn2.weight, block.bn2.bias):
            value[3] *= 3000
        block.conv2.weight[:, 3] /= 3000
    return export_fashion(net, tmp_path_factory.mktemp("budget") / "sore.onnx")


@pytest.fixture(scope="module")
def fp32(source: Path) -> float:
    return accuracy(source, COUNT)


def score(path: Path) -> float:
    return accuracy(path, COUNT)


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Path:
    """A chain of many small layers."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(3 if i == 0 else 12, 12, 3, padding=1), nn.ReLU()) for i in range(DEPTH - 1)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)).eval()
    for layer in layers:
        nn.init.kaiming_normal_(layer[0].weight)  # keeps the scale of activations
    path = tmp_path_factory.mktemp("budget") / "stack.onnx"
    save_model(export_torchscript(net, torch.zeros(2, 3, 8, 8), 18, GraphSignature()), path)
    return path


class Passes:
    """Calibration images that count the passes."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Iterator[NDArray]:
        self.count += 1
        yield np.random.default_rng(0).random((8, 3, 8, 8), dtype=np.float32)


def bytes_within(source: Path, draft: Path, batches, *budget, target="ort-cpu") -> MixedPrecisionResult:
    with calibrated_session(source, batches, target=target, calibrator="minmax") as session:
        return quantize_within_budget(session, draft, batches, *budget)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_only_sensitive_layer_stays_fp32(source: Path, fp32: float, tmp_path: Path, target) -> None:
    batches = batch_function(fashion_images("train", 32)[0])
    found = bytes_within(source, tmp_path / "a.onnx", batches, score, fp32, 1.0, target=target)
    assert found.result.kept_fp32 == (SORE,)
    assert found.result.layers == 16
    assert [attempt.kept_fp32 for attempt in found.attempts] == [(), (SORE,)]
    assert found.attempts[0].score < fp32 - 10
    assert found.score == found.attempts[1].score == score(tmp_path / "a.onnx") >= fp32 - 1
    assert max(found.sensitivity, key=found.sensitivity.__getitem__) == SORE
    assert len(found.sensitivity) == 17
    assert (found.reference_score, found.max_drop) == (fp32, 1.0)


def test_no_search_if_int8_suffices(stack: Path, tmp_path: Path) -> None:
    found = bytes_within(stack, tmp_path / "a.onnx", Passes(), lambda _: 0.5, 0.6, 0.2)
    assert (found.result.kept_fp32, found.sensitivity, len(found.attempts)) == ((), {}, 1)


def layers_in_int8(path: Path) -> int:
    model = onnx.load(path)
    rounded = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(node.op_type in ("Conv", "Gemm") and node.input[1] in rounded for node in model.graph.node)


@pytest.mark.parametrize("most", [16, 15, 12, 10, 5, 1])
def test_search_keeps_fewest_layers(stack: Path, tmp_path: Path, most) -> None:
    """The score is sufficient with at most `most` layers in int8."""
    passes = Passes()
    found = bytes_within(stack, tmp_path / "a.onnx", passes, lambda path: float(layers_in_int8(path) <= most), 1.0, 0.5)
    assert found.result.layers == layers_in_int8(tmp_path / "a.onnx") == most
    assert passes.count == 2, "once for the ranges, and once for the images that layers are ranked on"
    assert len(found.attempts) <= 2 * np.log2(DEPTH) + 1
    kept = sorted(found.sensitivity, key=lambda name: -found.sensitivity[name])[: DEPTH - most]
    assert set(found.result.kept_fp32) == set(kept)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("most", [17, 14, 1])
def test_float16_search_keeps_fewest_layers(stack: Path, tmp_path: Path, precision, most) -> None:
    """The score is sufficient with at most `most` layers in the precision."""

    def low(path: Path) -> int:
        nodes = onnx.load(path).graph.node
        return sum(one.op_type in ("Conv", "Gemm") and one.input[1].endswith(f"_{precision}") for one in nodes)

    session = Float16Session(stack, precision, {}, emulate=precision == "bf16")
    found = quantize_within_budget(
        session, tmp_path / "a.onnx", Passes(), lambda path: float(low(path) <= most), 1.0, 0.5
    )
    assert low(tmp_path / "a.onnx") == most
    kept = sorted(found.sensitivity, key=lambda name: -found.sensitivity[name])[: DEPTH - most]
    assert set(found.kept_fp32) == set(kept)


def test_many_layers_are_ranked_in_groups(stack: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(mixed_precision, "MAX_GROUPS", 5)
    found = bytes_within(stack, tmp_path / "a.onnx", Passes(), lambda path: float(layers_in_int8(path) <= 15), 1.0, 0.0)
    assert len(set(found.sensitivity.values())) == 5
    assert len(found.sensitivity) == DEPTH
    assert found.result.layers == 15


@pytest.mark.parametrize("answer", [0.125, float("nan")])
def test_rejection_names_scores(stack: Path, tmp_path: Path, answer) -> None:
    score = "no score" if answer != answer else f"{answer:g}"
    with pytest.raises(RejectedError, match=rf"{score}.*17 layers.*{score}.*91\.5.*--max-drop"):
        bytes_within(stack, tmp_path / "a.onnx", Passes(), lambda _: answer, 91.5, 1.0)
    assert not (tmp_path / "a.onnx").exists()


def test_written_file_is_scored_file(stack: Path, tmp_path: Path) -> None:
    images = next(Passes()())
    seen: list[NDArray] = []

    def remember(path: Path) -> float:
        seen.append(answers(path, images))
        return float(layers_in_int8(path) <= 14)

    found = bytes_within(stack, tmp_path / "a.onnx", Passes(), remember, 1.0, 0.0)
    right = next(i for i, attempt in enumerate(found.attempts) if attempt.kept_fp32 == found.result.kept_fp32)
    np.testing.assert_array_equal(answers(tmp_path / "a.onnx", images), seen[right])
