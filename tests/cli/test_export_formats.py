"""`compress export` in several formats and precisions: saved files run, rejected files do not exist."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from invoking import TEACHER, distill, read_error, read_result, run
from PIL import Image

from exporters.loading import load

PHOTOS, CLOTHES = "embedded/photos", "embedded/fashion"
#: a student of two steps meets no tolerance
ANYHOW = ["--min-agreement", 0, "--tolerance", 100]
SMALL = ["--calibration-images", 32, "--calibrator", "minmax", "--allow-slower"]


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("several") / "out"
    made = run(
        "export", TEACHER, "--format", "onnx,openvino", "--format", "tensorrt-rtx", "--precision", "fp32,int8",
        "--calibration", PHOTOS, *SMALL, "--batch", "1:2:8", "--out", out, "--json",
    )  # fmt: skip
    return out, read_result(made)


def test_export_saves_every_combination(several) -> None:
    out, found = several
    names = {"model.onnx", "model.xml", "model.tensorrt-rtx.engine"}
    names |= {"model.int8.onnx", "model.int8.xml", "model.int8.tensorrt-rtx.engine"}
    assert {Path(one["path"]).name for one in found["artifacts"]} == names
    assert names <= set(os.listdir(out))
    assert not [name for name in os.listdir(out) if name.startswith(".")]
    assert (found["calibration"], found["rejected"]) == (PHOTOS, [])
    for one in found["artifacts"]:
        assert one["parity"]["top1_agreement"] > 0.9
        assert one["parity"]["images"] == 64
    sizes = {Path(one["path"]).name: one["bytes"] for one in found["artifacts"]}
    assert sizes["model.int8.onnx"] < 0.35 * sizes["model.onnx"]


@pytest.mark.slow
def test_int8_files_lose_under_one_point(several) -> None:
    out, _ = several
    right = read_result(run("eval", TEACHER, "--data", CLOTHES, "--json"))["metrics"]["accuracy"]
    for name in ("model.int8.onnx", "model.int8.xml"):
        found = read_result(run("eval", out / name, "--data", CLOTHES, "--json"))
        assert found["precision"] == "int8"
        assert found["metrics"]["accuracy"] == pytest.approx(right, abs=0.01)


def test_unrun_engine_is_marked_unverified(several) -> None:
    import torch

    _, found = several
    engines = [one for one in found["artifacts"] if one["format"] == "tensorrt-rtx"]
    if not torch.cuda.is_available():
        assert all("GPU" in one["unverified"] for one in engines)
        assert {one["verified_in"] for one in engines} == {"onnxruntime"}
    built = engines[0]["details"]["tensorrt-rtx"]["profile"]
    assert [shape[0] for shape in (built["min"], built["opt"], built["max"])] == [1, 2, 8]


@pytest.mark.slow
def test_preprocess_and_topk_in_graph(tmp_path: Path) -> None:
    path = tmp_path / "camera.onnx"
    found = read_result(
        run("export", TEACHER, "--preprocess", "--postprocess", "topk", "--out", path, "--json", "--images", CLOTHES)
    )
    assert (found["preprocess"], found["postprocess"]) == (True, "topk")
    metadata = load(path).metadata
    assert "uint8" in metadata["input"]
    assert (metadata["color_order"], len(metadata["source_sha256"])) == ("RGB", 64)
    names = json.loads(metadata["class_names"])
    from compress.data.embedded import fashion_images

    images = fashion_images("val")
    rights = 0
    session = onnxruntime.InferenceSession(str(path))
    for i in range(40):
        image = images.read_image(i).resize((90, 90), Image.Resampling.BICUBIC)
        labels, best = session.run(["labels", "probabilities"], {"images": np.asarray(image)[None]})
        assert best[0, 0] == best.max()
        rights += int(labels[0, 0]) == int(images.labels[i])
    assert len(names) == 10
    assert rights >= 30


@pytest.mark.slow
def test_synthetic_calibration_uses_the_run(tmp_path: Path) -> None:
    made = read_result(distill("--json", ood=PHOTOS, out=tmp_path / "run"))
    found = read_result(
        run("export", made["best"], "--precision", "int8", *SMALL, *ANYHOW, "--out",
            tmp_path / "a.onnx", "--json")
    )  # fmt: skip
    assert found["calibration"] == "synthetic: generator of run"
    assert found["artifacts"][0]["details"]["int8"]["images"] == 32
    other = read_result(
        run("export", TEACHER, "--precision", "int8", *SMALL, *ANYHOW, "--calibration", tmp_path / "run", "--out",
            tmp_path / "b.onnx", "--json")
    )  # fmt: skip
    assert other["calibration"] == "synthetic: generator of run"
    alone = run("export", TEACHER, "--precision", "int8", "--out", tmp_path / "c.onnx")
    assert alone.exit_code == 2
    assert "--calibration" in alone.stderr
    assert not (tmp_path / "c.onnx").exists()


@pytest.mark.slow
def test_rejected_file_is_reported_as_json(tmp_path: Path) -> None:
    words = ["export", TEACHER, "--precision", "fp16", "--tolerance", "1e-6", "--out", tmp_path / "a.onnx"]
    found = run(*words, "--json")
    assert found.exit_code == 1, found.output
    result = json.loads(found.stdout)
    assert result["artifacts"] == []
    assert [(one["format"], one["precision"]) for one in result["rejected"]] == [("onnx", "fp16")]
    assert os.listdir(tmp_path) == []
    assert run(*words).stdout == ""


@pytest.mark.slow
def test_rejection_keeps_other_files(tmp_path: Path) -> None:
    found = run(
        "export", TEACHER, "--precision", "fp32,fp16", "--tolerance", "1e-6", "--out", tmp_path / "out", "--json"
    )
    assert found.exit_code == 1, found.output
    result = json.loads(found.stdout)
    assert [one["precision"] for one in result["artifacts"]] == ["fp32"]
    assert [(one["format"], one["precision"]) for one in result["rejected"]] == [("onnx", "fp16")]
    assert os.listdir(tmp_path / "out") == ["model.onnx"]


@pytest.mark.parametrize(
    ("words", "datum"),
    [
        (["--format", "onxn"], "onnx"),
        (["--precision", "fp8"], "fp8"),
        (["--batch", "8:1"], "8:1"),
        (["--batch", "8:4:2"], "8:4:2"),
        (["--max-drop", "1"], "--max-drop"),
        (["--precision", "fp16", "--val", "embedded/fashion"], "--max-drop"),
        (["--workspace", "lots"], "lots"),
        (["--workspace", "2GiB"], "--workspace"),
        (["--precision", "fp32,fp16", "--out", "a.onnx"], "a.onnx"),
        (["--format", "openvino", "--out", "a.onnx"], ".xml"),
        (["--max-drop", "1", "--val", "nowhere", "--precision", "int8", "--calibration", PHOTOS], "nowhere"),
        (["--preprocess", "--input-size", "dynamic"], "dynamic"),
        (["--precision", "int8", "--quantizer", "modelopt"], "modelopt"),
        (["--quantizer", "modelopt", "--target", "tensorrt", "--calibrator", "percentile"], "percentile"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_export_option_is_named(tmp_path: Path, monkeypatch, words, datum) -> None:
    monkeypatch.chdir(tmp_path)
    found = run("export", TEACHER, *words)
    assert found.exit_code in (1, 2), found.output
    assert datum in read_error(found, found.exit_code)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_modelopt_quantizes_when_requested(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run(
        "export", TEACHER, "--format", "tensorrt-rtx", "--precision", "int8", "--quantizer", "modelopt", *SMALL,
        "--calibration", PHOTOS, "--out", out, "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    (one,) = json.loads(found.stdout)["artifacts"]
    assert one["details"]["int8"]["quantizer"] == "modelopt"
    assert one["details"]["int8"]["images"] == 32
    assert one["parity"]["top1_agreement"] > 0.9
