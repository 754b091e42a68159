"""Engines in their runner: on host memory through a fake CUDA driver, and on a GPU if there is one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_files as cases
import numpy as np
import pytest
import tensorrt_rtx
import torch
from engine_files import SHAPES, engine_of, read_json

from exporters import cuda
from exporters.cuda import Gpu
from exporters.errors import MissingFileError, RunnerError, RuntimeUnavailableError
from exporters.loading import load
from exporters.runtimes.tensorrt import TensorRTRunner, to_output_array
from exporters.tensorrt.build import EngineBuildResult, build_engine
from exporters.tensorrt.libraries import get_logger
from exporters.tensorrt.metadata import incompatibility_reason, read_engine
from exporters.tensorrt.options import BuildOptions, ShapeRanges

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
needs_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is None, reason="tensorrt is an extra of its own"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return cases.classifier_with_metadata(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def built(source: Path) -> tuple[Path, EngineBuildResult]:
    return engine_of(source)


@pytest.fixture
def engine(built: tuple[Path, EngineBuildResult], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for part in built[0].parent.glob("net.engine*"):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    return tmp_path / "net.engine"


def change_metadata(engine: Path, **changes: Any) -> None:
    engine.with_name(engine.name + ".json").write_text(json.dumps(read_json(engine) | changes), encoding="utf-8")


@pytest.mark.parametrize("length", [0, 10, -1])
def test_engine_truncated(engine: Path, length: int) -> None:
    engine.write_bytes(engine.read_bytes()[:length])
    with pytest.raises(RunnerError, match=r"net\.engine: found \d+ bytes"):
        load(engine)


@pytest.mark.parametrize("byte", [0, 0.5, 0.99])
def test_engine_with_a_flipped_bit_is_not_loaded(engine: Path, byte: float) -> None:
    content = bytearray(engine.read_bytes())
    content[int(byte * len(content))] ^= 1
    engine.write_bytes(content)
    with pytest.raises(RunnerError, match=r"net\.engine: found \d+ bytes"):
        load(engine)


def test_engine_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing\.engine"):
        load(tmp_path / "nothing.engine")


def test_engine_without_metadata(engine: Path) -> None:
    engine.with_name("net.engine.json").unlink()
    with pytest.raises(RunnerError, match=r"net\.engine\.json"):
        load(engine)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"format": 3}, "format 3"),
        ({"kind": "tensorrt-lite"}, "kind"),
        ({"version": "newest"}, "newest"),
        ({"profiles": []}, "0 profiles"),
        ({"profiles": [{"min": [1], "opt": [1], "max": [1]}]}, r"profiles\.0\.min"),
        ({"inputs": {}}, "0 inputs"),
        ({"inputs": {"images": {"shape": [1, 3, 8, 8], "type": "load"}}}, r"inputs\.images\.type"),
        ({"inputs": {"images": {"shape": [1, 3, 8, 8]}}}, r"inputs\.images\.type"),
        ({"sha256": None}, "sha256"),
        ({"profiles": [{"min": [9**9, 3, 9, 9], "opt": [9**9, 3, 9, 9], "max": [9**9, 3, 9, 9]}]}, "profiles"),
        ({"profiles": [{"min": [2, 3, 8, 10], "opt": [1, 3, 8, 10], "max": [1, 3, 8, 10]}]}, "profiles"),
        ({"profiles": [{"min": [-1, 3, 8, 10], "opt": [1, 3, 8, 10], "max": [1, 3, 8, 10]}]}, "profiles"),
    ],
)
def test_metadata_invalid(engine: Path, changes: dict[str, Any], key: str) -> None:
    change_metadata(engine, **changes)
    with pytest.raises(RunnerError, match=rf"net\.engine\.json: .*{key}"):
        load(engine)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 10**5, b"9" * 10**4])
def test_metadata_damaged(engine: Path, content: bytes) -> None:
    engine.with_name("net.engine.json").write_bytes(content)
    with pytest.raises(RunnerError, match=r"net\.engine\.json"):
        load(engine)


def test_metadata_with_another_value_are_refused(engine: Path) -> None:
    """The hash in the file is that of the old content."""
    path = engine.with_name("net.engine.json")
    path.write_text(path.read_text().replace('"classes": "4"', '"classes": "5"'))
    with pytest.raises(RunnerError, match="metadata_sha256"):
        load(engine)


def test_engine_of_other_version(engine: Path) -> None:
    change_metadata(engine, version="1.2.0.54")
    with pytest.raises(RunnerError, match=rf"1\.2\.0\.54.*{tensorrt_rtx.__version__}"):
        load(engine)


def test_engine_of_other_library(engine: Path) -> None:
    with pytest.raises(RunnerError, match="expected tensorrt-rtx"):
        load(engine, runtime="tensorrt")


def test_library_missing(engine: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(RuntimeUnavailableError, match="pip install tensorrt-rtx-cu13"):
        load(engine)


@no_gpu
def test_driver_missing(engine: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="NVIDIA GPU"):
        load(engine)
    assert (cuda.detect_gpu(), cuda.gpu_uuid()) == (None, None)


def test_driver_without_gpu(monkeypatch) -> None:
    cases.plug_in(monkeypatch, cases.BrokenCuda())
    with pytest.raises(RuntimeUnavailableError, match="no CUDA-capable device is detected"):
        cuda.CudaDriver()


@no_gpu
def test_engine_rejected_by_library(engine: Path, monkeypatch) -> None:
    cases.plug_in(monkeypatch)
    if torch.version.cuda is not None:
        with pytest.raises(RunnerError, match=r"NVIDIA A10 \(8\.6\).*driver"):
            load(engine)
    monkeypatch.setattr("exporters.runtimes.tensorrt.incompatibility_reason", lambda *_: None)
    with pytest.raises(RunnerError, match=r"net\.engine: cannot be loaded.*driver"):
        load(engine)


def test_incompatibility_names_library_reasons(engine: Path) -> None:
    content, metadata = read_engine(engine)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def get_engine_validity(self, engine: bytes) -> tuple[Any, int]:
            assert engine == content
            return tensorrt_rtx.EngineValidity.INVALID, 2 | 4

    trt = SimpleNamespace(**{**vars(tensorrt_rtx), "Runtime": Runtime})
    reason = incompatibility_reason(metadata, content, trt, Gpu("NVIDIA T4", "7.5"))
    assert reason is not None
    assert "NVIDIA T4 (7.5)" in reason
    assert "unsupported cc; old cuda driver" in reason


@pytest.mark.parametrize(
    ("level", "name", "capability", "datum"),
    [
        (None, "NVIDIA A10", "8.6", None),
        (None, "NVIDIA A40", "8.6", "NVIDIA A40 (8.6)"),
        (None, "NVIDIA L4", "8.9", "NVIDIA L4 (8.9)"),
        ("same-capability", "NVIDIA A40", "8.6", None),
        ("same-capability", "NVIDIA L4", "8.9", "compute capability 8.6"),
        ("ampere+", "NVIDIA B200", "10.0", None),
        ("ampere+", "NVIDIA T4", "7.5", "Ampere"),
    ],
)
def test_tensorrt_engine_gpu_compatibility(engine: Path, level, name, capability, datum) -> None:
    metadata = tensorrt_metadata(engine, hardware_compatible=level)
    reason = incompatibility_reason(metadata, b"", SimpleNamespace(__version__="10.13.3.9"), Gpu(name, capability))
    assert reason is None if datum is None else datum in str(reason)


@pytest.mark.parametrize(
    ("compatible", "installed", "runs"),
    [(False, "10.14.1.48", False), (True, "10.14.1.48", True), (True, "11.0.0", True), (True, "10.2.0", False)],
)
def test_tensorrt_engine_version_compatibility(engine: Path, compatible, installed, runs) -> None:
    metadata = tensorrt_metadata(engine, version_compatible=compatible)
    reason = incompatibility_reason(metadata, b"", SimpleNamespace(__version__=installed), metadata.gpu)
    assert (reason is None) == runs


def test_tensorrt_engine_other_platform(engine: Path) -> None:
    metadata = replace(tensorrt_metadata(engine), platform="Windows AMD64")
    reason = incompatibility_reason(metadata, b"", SimpleNamespace(__version__="10.13.3.9"), metadata.gpu)
    assert "Windows AMD64" in str(reason)


def tensorrt_metadata(engine: Path, **options: Any) -> Any:
    _, metadata = read_engine(engine)
    return replace(metadata, kind="tensorrt", version="10.13.3.9", gpu=Gpu("NVIDIA A10", "8.6"), options=options)


@pytest.fixture
def runner(engine: Path, source: Path, monkeypatch) -> TensorRTRunner:
    return on_host(engine, cases.Context(source), monkeypatch)


def on_host(engine: Path, context: Any, monkeypatch, *, trust_engine: bool = False) -> TensorRTRunner:
    """An engine that runs `context` on host memory."""
    cases.plug_in(monkeypatch)
    monkeypatch.setattr(tensorrt_rtx, "Runtime", cases.runtime(context))
    monkeypatch.setattr("exporters.runtimes.tensorrt.incompatibility_reason", lambda *_: None)
    monkeypatch.setattr("exporters.runtimes.tensorrt.wait_for_tensor", lambda _: None)
    return TensorRTRunner(engine, trust_engine=trust_engine)


def test_runner_matches_onnx_runtime(runner: TensorRTRunner, source: Path) -> None:
    reference = load(source, threads=1)
    for size in (1, 5, 64, 5):
        images = cases.noise(size, 3, *cases.SIZE)
        np.testing.assert_array_equal(runner(images), reference(images))
        np.testing.assert_array_equal(runner(torch.from_numpy(images)), reference(images))
    images.flags.writeable = False
    np.testing.assert_array_equal(runner(images), reference(images))
    assert set(runner.context.streams) == {cases.STREAM}
    runner.close()
    assert not runner.driver.library.buffers


def test_runner_binds_gpu_tensor_in_place(runner: TensorRTRunner) -> None:
    images = torch.from_numpy(cases.noise(2, 3, *cases.SIZE))
    expected = runner(images)
    on_gpu: Any = cases.HostTensor(images)
    np.testing.assert_array_equal(runner(on_gpu), expected)
    assert runner.context.addresses["images"] == images.data_ptr()
    strided: Any = cases.HostTensor(images.contiguous(memory_format=torch.channels_last))
    np.testing.assert_array_equal(runner(strided), expected)
    np.testing.assert_array_equal(runner(images), expected)


@pytest.mark.parametrize("shape", [(65, 3, 8, 10), (0, 3, 8, 10), (1, 3, 8, 11), (1, 1, 8, 10), (3, 8, 10)])
def test_runner_rejects_other_shapes(runner: TensorRTRunner, shape: tuple[int, ...]) -> None:
    with pytest.raises(RunnerError, match=r"\[1 to 64, 3, 8, 10\]") as caught:
        runner(np.zeros(shape, np.float32))
    assert str(list(shape)) in str(caught.value)


def test_runner_attributes(runner: TensorRTRunner) -> None:
    assert (runner.runtime, runner.provider, runner.precision) == ("tensorrt-rtx", "cuda", "fp32")
    assert (runner.input_size, runner.channels, runner.classes) == (cases.SIZE, 3, 4)
    assert (runner.batch_size, runner.batch_range) == (None, (1, 64))
    assert (runner.returns_labels, runner.predicts_maps, runner.expects_uint8) == (False, False, False)
    assert runner.metadata["classes"] == "4"
    assert runner.inputs == {"images": ["batch", 3, 8, 10]}
    assert runner.outputs == {"logits": ["batch", 4]}
    assert runner.gpu_uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"


def test_runner_stages_are_timed(runner: TensorRTRunner) -> None:
    events = [runner.create_event() for _ in range(2)]
    runner.copy_in(cases.noise(1, 3, *cases.SIZE))
    events[0].record()
    runner.compute()
    events[1].record()
    events[1].synchronize()
    assert events[0].elapsed_time(events[1]) == 1.0
    assert list(runner.copy_out()) == ["logits"]


def test_runner_returns_labels_of_uint8_images(tmp_path: Path, monkeypatch) -> None:
    source = cases.labeller(tmp_path / "labels.onnx")
    engine, _ = engine_of(source, ShapeRanges((3, 3, 3), (12, 16)))
    runner = on_host(engine, cases.Context(source), monkeypatch)
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 16, 3), np.uint8)
    expected = load(source, threads=1).run(images)
    outputs = runner.run(images)
    assert list(outputs) == list(expected) == ["labels", "greatest"]
    for name, output in expected.items():
        np.testing.assert_array_equal(outputs[name], output)
        assert outputs[name].dtype == output.dtype
    assert (runner.returns_labels, runner.predicts_maps, runner.expects_uint8, runner.classes) == (
        True,
        True,
        True,
        None,
    )
    assert (runner.input_size, runner.batch_size, runner.batch_range) == ((12, 16), 3, (3, 3))
    with pytest.raises(RunnerError, match="uint8"):
        runner(torch.zeros(3, 12, 16, 3))


def test_runner_failure_names_reason(engine: Path, source: Path, monkeypatch) -> None:
    class Failing(cases.Context):
        def execute_async_v3(self, stream: int) -> bool:
            get_logger(tensorrt_rtx.ILogger).log(tensorrt_rtx.ILogger.Severity.ERROR, "out of\nmemory")
            return False

    with pytest.raises(RunnerError, match=r"\[1, 3, 8, 10\].*out of memory"):
        on_host(engine, Failing(source), monkeypatch)(cases.noise(1, 3, *cases.SIZE))


def test_runner_rejects_content_dependent_shape(engine: Path, source: Path, monkeypatch) -> None:
    class Open(cases.Context):
        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (-1, 4)

    with pytest.raises(RunnerError, match="logits"):
        on_host(engine, Open(source), monkeypatch)(cases.noise(1, 3, *cases.SIZE))


@pytest.mark.parametrize("compatible", [False, True])
def test_host_code_allowed_only_for_version_compatible(engine: Path, source: Path, monkeypatch, compatible) -> None:
    change_metadata(engine, options={"version_compatible": compatible})
    runner = on_host(engine, cases.Context(source), monkeypatch, trust_engine=True)
    assert runner.library_runtime.engine_host_code_allowed is compatible


def test_host_code_needs_trust(engine: Path, source: Path, monkeypatch) -> None:
    change_metadata(engine, options={"version_compatible": True})
    with pytest.raises(RunnerError, match="--trust-engine"):
        on_host(engine, cases.Context(source), monkeypatch)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (torch.tensor([1.5, -3.0, 1e30]).bfloat16().view(torch.uint16).numpy(), "bfloat16", "float32"),
        (np.array([1.5, -3.0], np.float16), "float16", "float32"),
        (np.array([True, False]), "bool", "uint8"),
        (np.array([3, 4], np.int64), "int64", "int64"),
    ],
)
def test_output_types(values: Any, kind: str, expected: str) -> None:
    output = to_output_array(values, kind)
    assert output.dtype == expected
    if kind == "bfloat16":
        np.testing.assert_array_equal(output, torch.tensor([1.5, -3.0, 1e30]).bfloat16().float().numpy())


def test_runtimes_import_no_framework() -> None:
    code = (
        "import sys, exporters.runtimes.onnxruntime, exporters.runtimes.openvino, exporters.runtimes.tensorrt;"
        "print(*{'torch', 'onnx', 'onnxruntime', 'openvino', 'pydantic', 'packaging', 'click'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


KINDS = [pytest.param("tensorrt-rtx"), pytest.param("tensorrt", marks=needs_tensorrt)]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("graph", "tolerance"), [(cases.classifier, 1e-5), (cases.halved, 1e-2)])
def test_gpu_engine_matches_onnx_runtime(tmp_path: Path, kind: Any, graph: Any, tolerance: float) -> None:
    source = graph(tmp_path / "net.onnx")
    engine, built = engine_of(source, kind=kind)
    assert built.incompatibility is None
    reference = load(source, threads=1)
    with load(engine, runtime=kind) as runner:
        for size in (1, 5, 64):
            images = cases.noise(size, 3, *cases.SIZE)
            expected = reference(images)
            np.testing.assert_allclose(runner(images), expected, rtol=tolerance, atol=tolerance)
            np.testing.assert_array_equal(runner(torch.from_numpy(images).cuda()), runner(images))


@pytest.mark.gpu
def test_gpu_tensor_of_side_stream(source: Path, built: tuple[Path, EngineBuildResult]) -> None:
    """Images that another stream still computes are complete when the engine reads them."""
    with load(built[0]) as runner:
        images = torch.from_numpy(cases.noise(64, 3, *cases.SIZE)).cuda()
        expected = runner(images)
        with torch.cuda.stream(torch.cuda.Stream()):
            late = images.clone()
            torch.cuda._sleep(100_000_000)
            late = late * 1.0
            np.testing.assert_array_equal(runner(late), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_engine_labels_at_several_sizes(tmp_path: Path, kind: Any) -> None:
    source = cases.labeller(tmp_path / "labels.onnx")
    engine, built = engine_of(source, ShapeRanges((1, 2, 4), ((8, 8), (16, 16), (32, 48))), kind)
    assert built.incompatibility is None
    reference = load(source, threads=1)
    with load(engine) as runner:
        for shape in ((1, 8, 9, 3), (4, 32, 47, 3)):
            images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            expected = reference.run(images)
            outputs = runner.run(images)
            np.testing.assert_allclose(outputs["greatest"], expected["greatest"], rtol=1e-5, atol=1e-2)
            assert (outputs["labels"] == expected["labels"]).mean() > 0.99


@pytest.mark.gpu
@needs_tensorrt
def test_gpu_timing_cache_written_and_read(source: Path, tmp_path: Path) -> None:
    options = BuildOptions(timing_cache=tmp_path / "timing.cache")
    states = [
        build_engine(source, tmp_path / "net.engine", kind="tensorrt", shapes=SHAPES, options=options).timing_cache
        for _ in range(2)
    ]
    assert states == ["new", "read"]
