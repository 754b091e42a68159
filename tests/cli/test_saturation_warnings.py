"""`eval` and `bench` warn about int8 files that can be wrong on the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from invoking import TEACHER, read_result, run

from compress.benchmarking import warn_of_saturation
from compress.predictor import load_predictor
from exporters.quantization.static import quantize_static


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eight")
    read_result(run("export", TEACHER, "--out", folder / "fp32.onnx", "--json"))
    images = np.random.default_rng(0).random((8, 3, 32, 32), np.float32)
    path = folder / "int8.onnx"
    quantize_static(folder / "fp32.onnx", path, lambda: [images], target="ort-cpu-vnni", calibrator="minmax")
    return path


@pytest.mark.parametrize("has_vnni", [False, True])
def test_commands_warn_without_vnni(eight_bits: Path, clothes: Path, tmp_path: Path, monkeypatch, has_vnni) -> None:
    (tmp_path / "cpuinfo").write_text("flags : avx2 avx_vnni\n" if has_vnni else "flags : avx2\n")
    monkeypatch.setattr("exporters.cpu.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    bench = ("bench", eight_bits, "--duration", "0.05s", "--threads", 1)
    for words in (("eval", eight_bits, "--data", clothes), bench):
        found = run(*words, "--json")
        read_result(found)
        assert found.stderr.count("Warning: ") == (0 if has_vnni else 1)
        assert ("ort-cpu" in found.stderr) is not has_vnni


@pytest.mark.parametrize(
    ("system", "instructions", "warns"),
    [("Linux aarch64", ["asimd"], 0), ("Linux x86_64", ["avx2", "avx_vnni"], 0), ("Linux x86_64", ["avx2"], 1)],
)
def test_remote_bench_warns_by_processor(eight_bits: Path, system: str, instructions: list[str], warns: int) -> None:
    messages: list[str] = []
    predictors = [load_predictor(str(eight_bits))]
    warn_of_saturation(predictors, {"system": system, "instructions": instructions}, messages.append)
    assert sum(str(eight_bits) in message for message in messages) == warns
