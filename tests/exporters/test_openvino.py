"""OpenVINO: files match their ONNX source, and the precision is read back from the compiled network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import WEIGHTS, expected, mean, properties, qdq_pair, small, written
from torch import nn

from exporters.errors import ExportError, MissingFileError, RunnerError, RuntimeUnavailableError
from exporters.loading import load
from exporters.onnx_export import export_onnx
from exporters.openvino_export import convert_to_openvino
from exporters.runtimes.openvino import OpenVINORunner

METADATA = {"classes": "6", "compress.card": '{"a": [1.0, "ü\\n"]}', "1.5": "1.50", "a b": ' <&"> ', "empty": ""}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6)
    )


def images(n: int, height: int = 8, width: int = 10) -> np.ndarray:
    return np.random.default_rng(n).random((n, 3, height, width), dtype=np.float32)


def onnx_answer(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "net.onnx"
    export_onnx(net(), torch.zeros(1, 3, 8, 10), path, metadata=METADATA, exporter="torchscript")
    return path


@pytest.fixture(scope="module")
def file(source: Path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("openvino") / "net.xml"
    convert_to_openvino(source, path)
    return path


def test_converted_file_matches_source(source: Path, file: Path) -> None:
    runner = load(file, threads=1)
    assert runner.runtime == "openvino"
    for n in (1, 2, 5, 1):
        np.testing.assert_allclose(runner(images(n)), onnx_answer(source, images(n)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(runner(images(2)), runner(torch.from_numpy(images(2))))


def test_onnx_file_runs_in_openvino(source: Path) -> None:
    runner = load(source, runtime="openvino", threads=1)
    assert (runner.runtime, runner.precision) == ("openvino", "fp32")
    np.testing.assert_allclose(runner(images(3)), onnx_answer(source, images(3)), rtol=1e-5, atol=1e-6)


def test_conversion_result(source: Path, tmp_path: Path) -> None:
    result = convert_to_openvino(source, tmp_path / "a.xml")
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.xml"]
    assert result.precision == "fp32"
    assert openvino.__version__.startswith(result.version)


def test_metadata_survive_conversion(source: Path, file: Path) -> None:
    assert METADATA.items() <= properties(source).items()
    assert load(file, threads=1).metadata == properties(source)
    assert load(source, runtime="openvino", threads=1).metadata == properties(source)


def test_file_contains_no_paths(source: Path, file: Path) -> None:
    text = file.read_text()
    assert str(source.parent) not in text
    assert "site-packages" not in text


def test_files_can_be_moved(file: Path, tmp_path: Path) -> None:
    for part in (file, file.with_suffix(".bin")):
        (tmp_path / f"other{part.suffix}").write_bytes(part.read_bytes())
    np.testing.assert_array_equal(load(tmp_path / "other.xml", threads=1)(images(2)), load(file, threads=1)(images(2)))


def test_runner_attributes(file: Path) -> None:
    runner = load(file, threads=1)
    assert (runner.input_size, runner.classes, runner.batch_size, runner.channels) == ((8, 10), 6, None, 3)
    assert (runner.provider, runner.threads, runner.expects_uint8) == ("cpu", 1, False)
    assert (runner.returns_labels, runner.predicts_maps, runner.batch_range) == (False, False, (1, None))
    assert (runner.inputs, runner.outputs) == ({"images": ["?", 3, 8, 10]}, {"logits": ["?", 6]})


def test_fixed_batch_size_rejects_others(tmp_path: Path) -> None:
    written(tmp_path / "a.onnx", small(shape=(2, 3, 4, 4)))
    convert_to_openvino(tmp_path / "a.onnx", tmp_path / "a.xml")
    runner = load(tmp_path / "a.xml", threads=1)
    assert (runner.batch_size, runner.batch_range) == (2, (2, 2))
    np.testing.assert_allclose(runner(images(2, 4, 4)), expected(images(2, 4, 4)), rtol=1e-5)
    with pytest.raises(RunnerError, match=r"\[1, 3, 4, 4\], expected \[2, 3, 4, 4\]"):
        runner(images(1, 4, 4))


def test_images_of_other_shape(file: Path) -> None:
    with pytest.raises(RunnerError, match=r"\[1, 3, 9, 9\].*expected \[\"any\", 3, 8, 10\]") as caught:
        load(file, threads=1)(images(1, 9, 9))
    assert "\n" not in str(caught.value)


def test_maps_and_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1))
    for postprocess in ("none", "argmax"):
        path = tmp_path / f"{postprocess}.onnx"
        export_onnx(
            dense, torch.zeros(1, 3, 16, 16), path, exporter="torchscript", dynamic_size=True, postprocess=postprocess
        )
        convert_to_openvino(path, path.with_suffix(".xml"))
        runner = load(path.with_suffix(".xml"), threads=1)
        assert (runner.predicts_maps, runner.returns_labels, runner.input_size) == (True, postprocess == "argmax", None)
        for height, width in ((16, 16), (17, 23)):
            result, right = runner(images(2, height, width)), onnx_answer(path, images(2, height, width))
            assert result.dtype == right.dtype
            np.testing.assert_allclose(result, right, rtol=1e-4, atol=1e-5)


def test_uint8_input(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["f", "most"], ["s"]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["c"]),
        mean("c"),
    ]
    most = numpy_helper.from_array(np.float32(255), "most")
    model = small(nodes, shape=("n", "h", "w", 3), initializers=[most], kind=TensorProto.UINT8)
    convert_to_openvino(written(tmp_path / "a.onnx", model), tmp_path / "a.xml")
    runner = load(tmp_path / "a.xml", threads=1)
    assert (runner.expects_uint8, runner.input_size, runner.channels) == (True, None, 3)
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    np.testing.assert_allclose(runner(x), expected(x.transpose(0, 3, 1, 2) / 255), rtol=1e-5)
    with pytest.raises(RunnerError, match="expected uint8"):
        runner(images(1))


def test_outputs_in_file_order(tmp_path: Path) -> None:
    model = small([helper.make_node("Conv", ["x", "w"], ["c"]), mean("c"), helper.make_node("Relu", ["c"], ["a"])])
    model.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 4, 4, 4]))
    convert_to_openvino(written(tmp_path / "a.onnx", model), tmp_path / "a.xml")
    runner = load(tmp_path / "a.xml", threads=1)
    answers = runner.run(images(1, 4, 4))
    assert list(answers) == ["y", "a"]
    np.testing.assert_allclose(answers["y"], expected(images(1, 4, 4)), rtol=1e-5)


# precision


def claiming(path: Path, precision: str) -> Path:
    """A float32 graph with metadata of another precision."""
    torch.manual_seed(0)
    export_onnx(net(), torch.zeros(1, 3, 8, 10), path, metadata={"precision": precision}, exporter="torchscript")
    return path


def test_float32_is_not_bfloat16(file: Path, source: Path) -> None:
    runner = load(file, threads=1)
    assert isinstance(runner, OpenVINORunner)
    assert runner.precision == "fp32"
    assert set(runner.layer_precisions) == {"fp32"}
    exact = net().double().eval()(torch.from_numpy(images(5)).double()).detach().numpy()
    assert np.abs(runner(images(5)) - exact).max() < 1e-6


@pytest.mark.parametrize(("precision", "capability"), [("bf16", "BF16"), ("fp16", "FP16")])
def test_half_precision_if_cpu_supports_it(tmp_path: Path, precision: str, capability: str) -> None:
    runner = OpenVINORunner(claiming(tmp_path / "a.onnx", precision), threads=1)
    has = capability in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert runner.precision == (precision if has else "fp32")
    exact = net().double().eval()(torch.from_numpy(images(5)).double()).detach().numpy()
    assert (np.abs(runner(images(5)) - exact).max() > 1e-6) == has


def test_fp16_weights_take_two_bytes(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(WEIGHTS.astype(np.float16), "h")
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["f", "h"], ["c"]),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        mean("d"),
    ]
    model = small(nodes, initializers=[weights], metadata={"precision": "fp16"})
    result = convert_to_openvino(written(tmp_path / "a.onnx", model), tmp_path / "a.xml")
    assert result.precision == "fp16"
    assert (tmp_path / "a.bin").stat().st_size < WEIGHTS.nbytes
    np.testing.assert_allclose(
        load(tmp_path / "a.xml", threads=1)(images(2, 4, 4)), expected(images(2, 4, 4)), rtol=1e-2
    )


def test_int8_in_compiled_layers(source: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"images": images(4)}])

        def get_next(self):
            return next(self.left, None)

    path = tmp_path / "int8.onnx"
    quantize_static(
        source, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8
    )
    model = onnx.load(path)
    helper.set_model_props(model, {"precision": "int8"})
    onnx.save(model, path)
    convert_to_openvino(path, tmp_path / "int8.xml")
    runner = load(tmp_path / "int8.xml", threads=1)
    assert isinstance(runner, OpenVINORunner)
    assert runner.precision == "int8"
    assert runner.layer_precisions["int8"] == 3  # two convolutions and a product
    assert np.abs(runner(images(5)) - onnx_answer(path, images(5))).max() < 0.02


def test_unused_int8_is_reported_as_fp32(tmp_path: Path) -> None:
    """Rounded activations before a convolution with float weights: no int8 product is possible."""
    rounding, scales = qdq_pair("x")
    nodes = [*rounding, helper.make_node("Conv", ["x_low", "w"], ["c"]), mean("c")]
    path = written(tmp_path / "a.onnx", small(nodes, initializers=scales, metadata={"precision": "int8"}))
    convert_to_openvino(path, tmp_path / "a.xml")
    for result in (path, tmp_path / "a.xml"):
        runner = load(result, runtime="openvino", threads=1)
        assert (runner.precision, runner.metadata["precision"]) == ("fp32", "int8")


# broken files


def damaged(file: Path, folder: Path, *, xml: bytes | None = None, weights: bytes | None = b"") -> Path:
    """Copy the file with other content; None: without weights."""
    copy = folder / "broken.xml"
    copy.write_bytes(file.read_bytes() if xml is None else xml)
    if weights is not None:
        copy.with_suffix(".bin").write_bytes(weights or file.with_suffix(".bin").read_bytes())
    return copy


def refused(path: Path) -> str:
    with pytest.raises(RunnerError) as caught:
        load(path, threads=1)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "src/" not in message
    return message


def test_missing_files(file: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file") as caught:
        load(tmp_path / "nothing.xml")
    assert caught.value.exit_code == 2
    assert "expected broken.bin beside it" in refused(damaged(file, tmp_path, weights=None))


def test_truncated_weights(file: Path, tmp_path: Path) -> None:
    content = file.with_suffix(".bin").read_bytes()
    for length in (1, len(content) // 2, len(content) - 1):
        assert "weights" in refused(damaged(file, tmp_path, weights=content[:length]))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_xml(file: Path, tmp_path: Path, share: float) -> None:
    content = file.read_bytes()
    refused(damaged(file, tmp_path, xml=content[: int(len(content) * share)]))


def test_other_kinds_of_files(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for content in (b"\x89PNG" + bytes(100), b"<html></html>", small().SerializeToString()):
        assert "broken.xml" in refused(damaged(file, tmp_path, xml=content))
    assert capfd.readouterr() == ("", "")


def test_unknown_layer_is_named(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes().replace(b'type="Convolution"', b'type="Sharpen"')
    assert "Sharpen" in refused(damaged(file, tmp_path, xml=content))


def test_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    answer = helper.make_node("CDist", ["m", "m"], ["y"], domain="com.microsoft", metric="euclidean")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), mean("c", "m"), answer]
    path = written(tmp_path / "a.onnx", small(nodes, domains=["com.microsoft"]))
    with pytest.raises(ExportError, match=r"a\.onnx: .*com\.microsoft\.CDist"):
        convert_to_openvino(path, tmp_path / "a.xml")
    assert os.listdir(tmp_path) == ["a.onnx"]


def test_graph_without_images(tmp_path: Path) -> None:
    vector = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [vector], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    convert_to_openvino(written(tmp_path / "a.onnx", model), tmp_path / "a.xml")
    assert "found inputs" in refused(tmp_path / "a.xml")


def test_package_missing(file: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for call in (lambda: load(file), lambda: convert_to_openvino(source, file)):
        with pytest.raises(RuntimeUnavailableError, match="pip install openvino"):
            call()


def test_other_provider_raises(file: Path, source: Path) -> None:
    for path in (file, source):
        with pytest.raises(RunnerError, match="found provider cuda, expected cpu"):
            load(path, runtime="openvino", provider="cuda")
    assert load(file, provider="cpu", threads=1).provider == "cpu"


def test_closed_runner_releases_model(file: Path) -> None:
    with load(file, threads=1) as runner:
        runner(images(1))
    assert not {"compiled", "request"} & vars(runner).keys()


def test_signals_arrive_after_runners_are_closed(file: Path) -> None:
    """OpenVINO's plugins leave a freed signal stack behind if they are destroyed in this order."""
    code = f"""
import gc, signal
from pathlib import Path
from exporters.runtimes.openvino import OpenVINORunner
path = Path({str(file)!r})
first, second = OpenVINORunner(path), OpenVINORunner(path)
for runner in (first, second):
    runner.close()
del first, second, runner
gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("arrived"))
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "arrived\n"), done.stderr
