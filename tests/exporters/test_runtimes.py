"""`exporters.load`: one interface for every runtime, and one error for every invalid file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from exporters.errors import MissingFileError, RunnerError
from exporters.loading import load
from exporters.onnx_export import export_onnx
from exporters.runtimes import Provider
from exporters.runtimes.onnxruntime import PROVIDER_PACKAGES, PROVIDERS, OnnxRuntimeRunner


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    export_onnx(net(), torch.zeros(1, 3, 8, 10), path, metadata={"classes": "6"}, exporter="torchscript")
    return path


def test_torch_and_onnxruntime_agree(file: Path) -> None:
    x = np.random.default_rng(0).random((3, 3, 8, 10), dtype=np.float32)
    torch_runner, onnx_runner = load(net()), load(file, threads=1)
    np.testing.assert_allclose(torch_runner(x), onnx_runner(x), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(torch_runner(x), torch_runner(torch.from_numpy(x)))
    np.testing.assert_array_equal(onnx_runner(x), onnx_runner(torch.from_numpy(x)))
    assert (torch_runner.runtime, onnx_runner.runtime) == ("torch", "onnxruntime")


def test_bound_tensors_give_same_outputs(file: Path) -> None:
    """The code path of GPU images works for CPU memory as well."""
    runner = load(file, threads=1)
    assert isinstance(runner, OnnxRuntimeRunner)
    x = torch.rand(3, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    (expected,) = runner.run(x).values()
    strided = x.to(memory_format=torch.channels_last)
    for images in (x, strided, x.double()):
        (result,) = runner.run_on_device(next(iter(runner.inputs)), images)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.gpu
def test_gpu_images_give_same_outputs(file: Path) -> None:
    runner = load(file, provider="cuda")
    x = torch.rand(3, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(runner(x.cuda()), runner(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(RunnerError, match=r"\[1, 3, 8, 11\]"):
        runner(torch.rand(1, 3, 8, 11, device="cuda"))


def test_runner_attributes(file: Path) -> None:
    runner = load(file, threads=1)
    assert (runner.input_size, runner.classes, runner.batch_size, runner.channels) == ((8, 10), 6, None, 3)
    assert (runner.provider, runner.threads, runner.metadata["classes"]) == ("cpu", 1, "6")


def test_module_runs_in_eval_mode() -> None:
    dropping = nn.Sequential(nn.Flatten(), nn.Dropout(0.9)).train()
    assert (load(dropping)(np.ones((2, 3, 4, 4), np.float32)) == 1).all()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing\.onnx: no such file") as caught:
        load(tmp_path / "nothing.onnx")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_truncated_file(file: Path, tmp_path: Path, length: int) -> None:
    content = file.read_bytes()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(content[:length])
    with pytest.raises(RunnerError, match=r"broken\.onnx") as caught:
        load(broken)(np.zeros((1, 3, 8, 10), np.float32))
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_other_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "picture.onnx"
    path.write_bytes(b"\x89PNG\r\n" + bytes(1000))
    with pytest.raises(RunnerError, match="cannot be loaded as ONNX"):
        load(path)


def test_graph_without_images(tmp_path: Path) -> None:
    vector = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [vector], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "vector.onnx")
    with pytest.raises(RunnerError, match="found inputs"):
        load(tmp_path / "vector.onnx")


def test_images_of_other_shape(file: Path) -> None:
    with pytest.raises(RunnerError, match=r"\[1, 3, 9, 9\].*expected \[\"any\", 3, 8, 10\]"):
        load(file)(np.zeros((1, 3, 9, 9), np.float32))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_never_falls_back(file: Path) -> None:
    with pytest.raises(RunnerError, match="CUDA"):
        load(file, provider="cuda")
    with pytest.raises(RunnerError, match="CUDA"):
        load(net(), provider="cuda")


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "cpu"])
def test_missing_provider_names_package(file: Path, provider: Provider, monkeypatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RunnerError, match=f"{PROVIDERS[provider]}.*{PROVIDER_PACKAGES[provider]}"):
        load(file, provider=provider)


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "cpu"])
def test_provider_fallback_raises(file: Path, provider: Provider, monkeypatch) -> None:
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDERS[provider], "CPUExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(RunnerError, match="found ONNX Runtime on CPUExecutionProvider"):
        load(file, provider=provider)


def test_operators_left_to_cpu_raise(file: Path, monkeypatch) -> None:
    """The provider is first in the session's list, but runs no compute operator."""

    class Pretending(onnxruntime.InferenceSession):
        def __init__(self, path, options, providers) -> None:
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return ["OpenVINOExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", Pretending)
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not tell where operators run")
    with pytest.raises(RunnerError, match="found 2 convolutions"):
        load(file, provider="openvino")


def test_wrong_runtime_or_provider(file: Path, tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="found runtime torch, expected onnxruntime or openvino"):
        load(file, runtime="torch")
    with pytest.raises(RunnerError, match="found runtime onnxruntime, expected openvino"):
        load(tmp_path / "a.xml", runtime="onnxruntime")
    with pytest.raises(RunnerError, match="openvino runs files"):
        load(net(), runtime="openvino")
    with pytest.raises(RunnerError, match="found provider cpu, expected cuda"):
        load(tmp_path / "a.engine", provider="cpu")


@pytest.mark.slow
def test_compiled_module_matches_module() -> None:
    x = np.random.default_rng(0).random((2, 3, 8, 10), dtype=np.float32)
    runner = load(net(), runtime="torch-compile", threads=1)
    assert runner.runtime == "torch-compile"
    np.testing.assert_allclose(runner(x), load(net())(x), rtol=1e-4, atol=1e-6)


def test_compile_failure_names_reason(monkeypatch) -> None:
    def broken(module, **options):
        def answer(images):
            raise RuntimeError("no compiler here\nat length")

        return answer

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(RunnerError, match="no compiler here"):
        load(net(), runtime="torch-compile")(np.zeros((1, 3, 8, 10), np.float32))


def test_dict_output_raises() -> None:
    class Segmenter(nn.Module):
        def forward(self, x):
            return {"out": x}

    with pytest.raises(RunnerError, match="found dict"):
        load(Segmenter())(np.zeros((1, 3, 4, 4), np.float32))
