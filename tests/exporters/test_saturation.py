"""int8 files that compute the same with and without VNNI, and warnings about those that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from fashion_teacher import batch_function, export_fashion, fashion_images, teacher
from int8_saturation import count_saturated_sums, dot_in_pairs

from exporters import artifacts
from exporters.artifacts import ExportSettings, Int8Options, export_artifact
from exporters.cpu import SAFE_WEIGHT, has_exact_int8
from exporters.errors import ExportError
from exporters.loading import load
from exporters.onnx_export import create_reference
from exporters.openvino_export import convert_to_openvino
from exporters.quantization.saturation import list_unsafe_weights
from exporters.quantization.static import Target, quantize_static

PORTABLE: tuple[Target, ...] = ("ort-cpu", "openvino")
EIGHT_BITS: tuple[Target, ...] = ("ort-cpu-vnni", "openvino-vnni", "tensorrt")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The teacher in fp32, and in int8 for each kind of target."""
    folder = tmp_path_factory.mktemp("saturation")
    made = {"fp32": export_fashion(teacher(), folder / "fp32.onnx")}
    batches = batch_function(fashion_images("train", 32)[0])
    for target in (*PORTABLE, *EIGHT_BITS):
        made[target] = folder / f"{target}.onnx"
        quantize_static(made["fp32"], made[target], batches, target=target, calibrator="minmax")
    return made


@pytest.fixture
def processor(tmp_path: Path, monkeypatch):
    """Simulate an x86 CPU with these instruction sets."""

    def pretend(flags: str) -> None:
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor : 0\nflags : {flags}\n")
        monkeypatch.setattr("exporters.cpu.CPUINFO", path)
        monkeypatch.setattr("platform.machine", lambda: "x86_64")

    return pretend


@pytest.mark.parametrize("sign", [1, -1])
def test_safe_weight_is_the_largest(sign: int) -> None:
    bright = np.full((1, 2), 255, np.uint8)
    for weight, is_exact in ((SAFE_WEIGHT, True), (SAFE_WEIGHT + 1, False)):
        weights = np.full((1, 2), sign * weight, np.int8)
        assert (dot_in_pairs(bright, weights).item() == 2 * 255 * sign * weight) is is_exact


@pytest.mark.slow
def test_only_eight_bit_files_saturate(files) -> None:
    images = fashion_images("val", 4)[0]
    assert count_saturated_sums(files["ort-cpu-vnni"], images) > 1000
    for target in PORTABLE:
        assert count_saturated_sums(files[target], images) == 0


def test_unsafe_weights_are_listed(files) -> None:
    for target in (*PORTABLE, "fp32"):
        assert not list_unsafe_weights(onnx.load(files[target]), files[target].parent)
    for target in EIGHT_BITS:
        assert len(list_unsafe_weights(onnx.load(files[target]), files[target].parent)) == 17


@pytest.mark.parametrize(
    ("flags", "is_exact"),
    [
        ("avx2", False), ("avx2 avx512f avx512bw", False), ("avx2 avx_vnni", True),
        ("avx2 avx512f avx512_vnni", True), ("avx2 avx_vnni_int8", False),
    ],
)  # fmt: skip
def test_vnni_is_recognized(processor, monkeypatch, flags, is_exact) -> None:
    processor(flags)
    assert has_exact_int8() is is_exact
    monkeypatch.setattr("exporters.cpu.CPUINFO", Path("/nowhere"))
    assert not has_exact_int8()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert has_exact_int8()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runner_warns_without_vnni(files, tmp_path: Path, processor, runtime) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    for flags, has_vnni in (("avx2", False), ("avx2 avx512_vnni", True)):
        processor(flags)
        for name, file in files.items():
            with load(file, runtime=runtime) as runner:
                assert (runner.warning is not None) is (name in EIGHT_BITS and not has_vnni)


def test_openvino_file_warns_too(files, tmp_path: Path, processor) -> None:
    pytest.importorskip("openvino")
    processor("avx2")
    for target in ("openvino", "openvino-vnni"):
        convert_to_openvino(files[target], tmp_path / f"{target}.xml")
        with load(tmp_path / f"{target}.xml") as runner:
            assert (runner.warning is not None) is (target == "openvino-vnni")


def settings(target: Target) -> ExportSettings:
    return ExportSettings(int8=Int8Options(batch_function(fashion_images("train", 16)[0]), target, "minmax"))


@pytest.mark.parametrize("flags", ["avx2", "avx2 avx512_vnni"])
def test_vnni_target_needs_vnni(files, tmp_path: Path, processor, flags) -> None:
    import torch

    processor(flags)
    images = torch.from_numpy(fashion_images("val", 16)[0])
    reference, path = create_reference(teacher(), images[:1], images=images), tmp_path / "a.onnx"
    if flags == "avx2":
        with pytest.raises(ExportError, match="ort-cpu"):
            export_artifact(reference, files["fp32"], path, "onnx", "int8", settings("ort-cpu-vnni"))
        assert not path.exists()
        return
    made = export_artifact(reference, files["fp32"], path, "onnx", "int8", settings("ort-cpu-vnni"))
    assert made.details["int8"]["target"] == "ort-cpu-vnni"
    assert load(path).metadata["int8.weight_bits"] == "8"


def test_gate_refuses_unsafe_weights(files, tmp_path: Path, monkeypatch) -> None:
    import torch

    monkeypatch.setattr(artifacts, "PORTABLE_TARGETS", ("ort-cpu-vnni",))
    monkeypatch.setattr(artifacts, "VNNI_TARGETS", {})
    images = torch.from_numpy(fashion_images("val", 16)[0])
    reference = create_reference(teacher(), images[:1], images=images)
    with pytest.raises(ExportError, match=f"17 .* {SAFE_WEIGHT} "):
        export_artifact(reference, files["fp32"], tmp_path / "a.onnx", "onnx", "int8", settings("ort-cpu-vnni"))
    assert not (tmp_path / "a.onnx").exists()
