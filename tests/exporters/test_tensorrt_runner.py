"""Which engines are refused, and what runs the others: over the host's memory here, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_cases as cases
import numpy as np
import pytest
import tensorrt_rtx
import torch
from engine_cases import SHAPES, described, engine_of, sentence

from exporters.runtimes.tensorrt import TensorRTRunner
from exporters.errors import MissingFileError, RunnerError
from exporters.cuda import Gpu
from exporters.tensorrt.libraries import get_logger
from exporters.loading import load
from exporters.tensorrt.options import ShapeRanges
from exporters.tensorrt.metadata import incompatibility_reason, read_engine
from exporters.tensorrt.build import EngineBuildResult, build_engine
from exporters.tensorrt.options import BuildOptions


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return cases.shipped(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(source: Path) -> tuple[Path, EngineBuildResult]:
    return engine_of(source)


@pytest.fixture
def engine(made: tuple[Path, EngineBuildResult], tmp_path: Path) -> Path:
    """A copy to spoil."""
    for part in made[0].parent.glob("net.engine*"):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    return tmp_path / "net.engine"


def change(engine: Path, **changes: Any) -> None:
    """Rewrite the description of an engine."""
    engine.with_name(engine.name + ".json").write_text(json.dumps(described(engine) | changes), encoding="utf-8")


@pytest.fixture
def gpu(monkeypatch) -> None:
    cases.plug_in(monkeypatch)


@pytest.mark.parametrize("length", [0, 10, -1])
def test_a_truncated_engine_is_refused_in_one_sentence(engine: Path, length: int) -> None:
    engine.write_bytes(engine.read_bytes()[:length])
    with pytest.raises(RunnerError, match=r"net\.engine: found \d+ bytes .* truncated") as caught:
        load(engine)
    sentence(caught)


def test_a_missing_engine_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        load(tmp_path / "nothing.engine")


def test_an_engine_without_its_description_is_refused(engine: Path) -> None:
    engine.with_name("net.engine.json").unlink()
    with pytest.raises(RunnerError, match=r"net\.engine\.json is not beside it") as caught:
        load(engine)
    sentence(caught)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "found format 2"),
        ({"kind": "tensorrt-lite"}, "kind: "),
        ({"version": "newest"}, "version: "),
        ({"profiles": []}, "found format 1"),
        ({"profiles": [{"least": [1], "best": [1], "most": [1]}]}, r"profiles\.0\.least"),
        ({"inputs": {}}, "with 0 inputs"),
        ({"inputs": {"images": {"shape": [1, 3, 8, 8], "type": "load"}}}, "inputs"),
        ({"sha256": None}, "sha256: "),
    ],
)
def test_a_description_that_is_none_is_refused(engine: Path, changes: dict[str, Any], said: str) -> None:
    change(engine, **changes)
    with pytest.raises(RunnerError, match=rf"net\.engine\.json: .*{said}") as caught:
        load(engine)
    sentence(caught)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_damaged_description_is_refused(engine: Path, content: bytes) -> None:
    engine.with_name("net.engine.json").write_bytes(content)
    with pytest.raises(RunnerError, match=r"net\.engine\.json: it does not describe an engine") as caught:
        load(engine)
    sentence(caught)


def test_an_engine_of_another_version_is_refused_naming_both(engine: Path) -> None:
    change(engine, version="1.2.0.54")
    with pytest.raises(
        RunnerError, match=rf"built by TensorRT-RTX 1\.2\.0\.54, found TensorRT-RTX {tensorrt_rtx.__version__};"
    ) as caught:
        load(engine)
    sentence(caught)


def test_an_engine_of_the_other_library_is_not_run_by_this_one(engine: Path) -> None:
    with pytest.raises(RunnerError, match="tensorrt does not read it; it runs in tensorrt-rtx") as caught:
        load(engine, runtime="tensorrt")
    sentence(caught)


def test_an_engine_is_not_run_without_its_library(engine: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(RunnerError, match=r'pip install "compress\[tensorrt-rtx\]"') as caught:
        load(engine)
    sentence(caught)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_engine_is_refused_where_there_is_no_driver_and_the_process_lives(engine: Path) -> None:
    with pytest.raises(RunnerError, match="needs an NVIDIA GPU with its driver, and PyTorch finds none here") as caught:
        load(engine)
    sentence(caught)


@pytest.mark.usefixtures("gpu")
@pytest.mark.skipif(torch.version.cuda is None or torch.cuda.is_available(), reason="there is a CUDA device")
def test_what_the_library_says_of_a_gpu_that_it_cannot_use_is_in_the_sentence(engine: Path) -> None:
    with pytest.raises(RunnerError, match=r"found NVIDIA A10 \(8\.6\), where TensorRT-RTX cannot run it") as caught:
        load(engine)
    assert "driver" in sentence(caught)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_engine_that_the_library_cannot_load_is_refused_with_its_reason(engine: Path, monkeypatch) -> None:
    cases.plug_in(monkeypatch)
    cases.run_on_host(monkeypatch)
    monkeypatch.setattr("exporters.runtimes.tensorrt.obstacle", lambda *_: None)
    with pytest.raises(RunnerError, match=r"net\.engine: cannot be loaded \(TensorRT-RTX says: .*driver") as caught:
        load(engine)
    sentence(caught)


def test_what_a_gpu_lacks_is_said_in_words(engine: Path) -> None:
    content, description = read_engine(engine)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def get_engine_validity(self, engine: bytes) -> tuple[Any, int]:
            assert engine == content
            return tensorrt_rtx.EngineValidity.INVALID, 2 | 4

    trt = SimpleNamespace(**{**vars(tensorrt_rtx), "Runtime": Runtime})
    reason = incompatibility_reason(description, content, trt, Gpu("NVIDIA T4", "7.5"))
    assert reason is not None
    assert "found NVIDIA T4 (7.5)" in reason
    assert "unsupported cc; old cuda driver" in reason


@pytest.mark.parametrize(
    ("level", "name", "capability", "said"),
    [
        (None, "NVIDIA A10", "8.6", None),
        (None, "NVIDIA A40", "8.6", r"built for NVIDIA A10 (8.6), found NVIDIA A40 (8.6)"),
        (None, "NVIDIA L4", "8.9", r"found NVIDIA L4 (8.9)"),
        ("same-capability", "NVIDIA A40", "8.6", None),
        ("same-capability", "NVIDIA L4", "8.9", "built for GPUs of compute capability 8.6"),
        ("ampere+", "NVIDIA B200", "10.0", None),
        ("ampere+", "NVIDIA T4", "7.5", "built for GPUs of Ampere and newer"),
    ],
)
def test_an_engine_of_tensorrt_runs_on_the_gpus_it_was_built_for(engine: Path, level, name, capability, said) -> None:
    description = of_tensorrt(engine, hardware_compatible=level)
    reason = incompatibility_reason(description, b"", SimpleNamespace(__version__="10.13.3.9"), Gpu(name, capability))
    assert reason is None if said is None else said in str(reason)


@pytest.mark.parametrize(
    ("compatible", "installed", "runs"),
    [(False, "10.14.1.48", False), (True, "10.14.1.48", True), (True, "11.0.0", True), (True, "10.2.0", False)],
)
def test_a_version_compatible_engine_runs_in_later_versions_only(engine: Path, compatible, installed, runs) -> None:
    description = of_tensorrt(engine, version_compatible=compatible)
    reason = incompatibility_reason(description, b"", SimpleNamespace(__version__=installed), description.gpu)
    assert (reason is None) == runs


def test_an_engine_of_tensorrt_stays_on_its_system(engine: Path) -> None:
    description = replace(of_tensorrt(engine), platform="Windows AMD64")
    reason = incompatibility_reason(description, b"", SimpleNamespace(__version__="10.13.3.9"), description.gpu)
    assert reason is not None
    assert reason.startswith("built on Windows AMD64, found ")


def of_tensorrt(engine: Path, **options: Any) -> Any:
    _, found = read_engine(engine)
    return replace(found, kind="tensorrt", version="10.13.3.9", gpu=Gpu("NVIDIA A10", "8.6"), options=options)


# --- what runs them


@pytest.fixture
def runner(engine: Path, source: Path, monkeypatch) -> TensorRTRunner:
    """The engine of `source`, over the host's memory."""
    return hosted(engine, cases.Context(source), monkeypatch)


def hosted(engine: Path, context: Any, monkeypatch, *, trusted: bool = False) -> TensorRTRunner:
    cases.plug_in(monkeypatch)
    cases.run_on_host(monkeypatch)
    monkeypatch.setattr(tensorrt_rtx, "Runtime", cases.runtime(context))
    monkeypatch.setattr("exporters.runtimes.tensorrt.obstacle", lambda *_: None)
    return TensorRTRunner(engine, trusted=trusted)


def test_a_runner_answers_at_every_batch_size_as_onnx_runtime_does(runner: TensorRTRunner, source: Path) -> None:
    reference = load(source, threads=1)
    for size in (1, 5, 64):
        images = cases.noise(size, 3, *cases.SIZE)
        np.testing.assert_array_equal(runner(images), reference(images))
        np.testing.assert_array_equal(runner(torch.from_numpy(images)), reference(images))
    assert set(runner.context.streams) == {7}
    runner.close()


def test_images_on_the_device_are_read_where_they_are(runner: TensorRTRunner) -> None:
    images = torch.from_numpy(cases.noise(2, 3, *cases.SIZE))
    runner(images)
    assert runner.context.addresses["images"] == images.data_ptr()
    turned = images.contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(runner(turned), runner(images))


def test_images_that_may_not_be_written_to_are_read_without_a_warning(runner: TensorRTRunner) -> None:
    images = cases.noise(2, 3, *cases.SIZE)
    expected = runner(images)
    images.flags.writeable = False
    np.testing.assert_array_equal(runner(images), expected)


@pytest.mark.parametrize("shape", [(65, 3, 8, 10), (0, 3, 8, 10), (1, 3, 8, 11), (1, 1, 8, 10), (3, 8, 10)])
def test_images_outside_the_ranges_are_refused_naming_both(runner: TensorRTRunner, shape: tuple[int, ...]) -> None:
    with pytest.raises(RunnerError, match=r"expected \[1 to 64, 3, 8, 10\]") as caught:
        runner(np.zeros(shape, np.float32))
    assert str(list(shape)) in sentence(caught)


def test_a_runner_knows_what_the_description_says(runner: TensorRTRunner) -> None:
    assert (runner.runtime, runner.provider, runner.precision) == ("tensorrt-rtx", "cuda", "fp32")
    assert (runner.input_size, runner.channels, runner.classes) == (cases.SIZE, 3, 4)
    assert (runner.batch_size, runner.batch_range) == (None, (1, 64))
    assert (runner.returns_labels, runner.predicts_maps, runner.takes_bytes) == (False, False, False)
    assert runner.metadata["classes"] == "4"
    assert runner.inputs == {"images": ["batch", 3, 8, 10]}
    assert runner.outputs == {"logits": ["batch", 4]}


def test_a_runner_of_bytes_gives_labels_and_all_that_comes_out(tmp_path: Path, monkeypatch) -> None:
    source = cases.labeller(tmp_path / "labels.onnx")
    engine, _ = engine_of(source, ShapeRanges((3, 3, 3), (12, 16)))
    runner = hosted(engine, cases.Context(source), monkeypatch)
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 16, 3), np.uint8)
    expected = load(source, threads=1).run(images)
    found = runner.run(images)
    assert list(found) == list(expected) == ["labels", "greatest"]
    for name, answer in expected.items():
        np.testing.assert_array_equal(found[name], answer)
        assert found[name].dtype == answer.dtype
    assert (runner.returns_labels, runner.predicts_maps, runner.takes_bytes, runner.classes) == (True, True, True, None)
    assert (runner.input_size, runner.batch_size, runner.batch_range) == ((12, 16), 3, (3, 3))
    with pytest.raises(RunnerError, match="expected uint8"):
        runner(torch.zeros(3, 12, 16, 3))


def test_an_engine_that_fails_at_work_is_said_with_its_reason(engine: Path, source: Path, monkeypatch) -> None:
    class Failing(cases.Context):
        def execute_async_v3(self, stream: int) -> bool:
            get_logger(tensorrt_rtx.ILogger).log(tensorrt_rtx.ILogger.Severity.ERROR, "out of\nmemory")
            return False

    runner = hosted(engine, Failing(source), monkeypatch)
    with pytest.raises(RunnerError, match=r"does not run on images \[1, 3, 8, 10\].*out of memory") as caught:
        runner(cases.noise(1, 3, *cases.SIZE))
    sentence(caught)


def test_an_answer_whose_shape_depends_on_the_images_is_refused(engine: Path, source: Path, monkeypatch) -> None:
    class Open(cases.Context):
        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (-1, 4)

    with pytest.raises(RunnerError, match="the shape of logits depends on") as caught:
        hosted(engine, Open(source), monkeypatch)(cases.noise(1, 3, *cases.SIZE))
    sentence(caught)


@pytest.mark.parametrize("compatible", [False, True])
def test_only_a_version_compatible_engine_may_bring_its_own_runtime(
    engine: Path, source: Path, monkeypatch, compatible: bool
) -> None:
    change(engine, options={"version_compatible": compatible})
    runner = hosted(engine, cases.Context(source), monkeypatch, trusted=True)
    assert runner.holder.engine_host_code_allowed is compatible


def test_code_inside_of_an_engine_does_not_run_unless_it_is_trusted(engine: Path, source: Path, monkeypatch) -> None:
    change(engine, options={"version_compatible": True})
    with pytest.raises(RunnerError, match="--trust-engine") as caught:
        hosted(engine, cases.Context(source), monkeypatch)
    sentence(caught)


# --- on a GPU

KINDS = [
    pytest.param("tensorrt-rtx"),
    pytest.param(
        "tensorrt",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("tensorrt") is None, reason="tensorrt is an extra of its own"
        ),
    ),
]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("graph", "tolerance"), [(cases.classifier, 1e-5), (cases.halved, 1e-2)])
def test_an_engine_answers_as_onnx_runtime_does(tmp_path: Path, kind: Any, graph: Any, tolerance: float) -> None:
    source = graph(tmp_path / "net.onnx")
    engine, built = engine_of(source, kind=kind)
    assert built.runs_here, built.incompatibility
    reference = load(source, threads=1)
    with load(engine, runtime=kind) as runner:
        for size in (1, 5, 64):
            images = cases.noise(size, 3, *cases.SIZE)
            expected = reference(images)
            np.testing.assert_allclose(runner(images), expected, rtol=tolerance, atol=tolerance)
            np.testing.assert_array_equal(runner(torch.from_numpy(images).cuda()), runner(images))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_answers_with_labels_at_several_sizes(tmp_path: Path, kind: Any) -> None:
    source = cases.labeller(tmp_path / "labels.onnx")
    engine, built = engine_of(source, ShapeRanges((1, 2, 4), ((8, 8), (16, 16), (32, 48))), kind)
    assert built.runs_here, built.incompatibility
    reference = load(source, threads=1)
    with load(engine) as runner:
        for shape in ((1, 8, 9, 3), (4, 32, 47, 3)):
            images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            expected = reference.run(images)
            found = runner.run(images)
            np.testing.assert_allclose(found["greatest"], expected["greatest"], rtol=1e-5, atol=1e-2)
            assert (found["labels"] == expected["labels"]).mean() > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="tensorrt is an extra of its own")
def test_a_timing_cache_of_tensorrt_is_written_and_read(source: Path, tmp_path: Path) -> None:
    options = BuildOptions(timing_cache=tmp_path / "timing.cache")
    said = [
        build_engine(source, tmp_path / "net.engine", kind="tensorrt", shapes=SHAPES, options=options).timing_cache
        for _ in range(2)
    ]
    assert said == ["new", "read"]
