"""`compress export` in several formats and precisions: what is written runs, what is refused is not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from invoking import TEACHER, answer, distill, refusal, run
from PIL import Image
from test_json import agree

from exporters.runtime import load

PHOTOS, CLOTHES = "embedded/photos", "embedded/fashion"
#: of a student of two steps nothing can be asked
ANYHOW = ["--min-agreement", 0, "--tolerance", 100]
SMALL = ["--calibration-images", 32, "--calibrator", "minmax", "--allow-slower"]


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("several") / "out"
    made = run(
        "export", TEACHER, "--format", "onnx,openvino", "--format", "tensorrt-rtx", "--precision", "fp32,int8",
        "--calibration", PHOTOS, *SMALL, "--batch", "1:2:8", "--out", out, "--json",
    )  # fmt: skip
    return out, answer(made)


def test_every_file_is_there_under_its_name_and_says_what_it_is(several) -> None:
    out, found = several
    agree("compress export", found)
    names = {"model.onnx", "model.xml", "model.tensorrt-rtx.engine"}
    names |= {"model.int8.onnx", "model.int8.xml", "model.int8.tensorrt-rtx.engine"}
    assert {Path(one["path"]).name for one in found["artefacts"]} == names
    assert names <= set(os.listdir(out))
    assert not [name for name in os.listdir(out) if name.startswith(".")]
    assert (found["calibration"], found["rejected"]) == (PHOTOS, [])
    for one in found["artefacts"]:
        assert one["parity"]["top1_agreement"] > 0.9
        assert one["parity"]["images"] == 64
    sizes = {Path(one["path"]).name: one["bytes"] for one in found["artefacts"]}
    assert sizes["model.int8.onnx"] < 0.35 * sizes["model.onnx"]


def test_int8_files_score_as_the_model_does_within_a_point(several) -> None:
    out, _ = several
    right = answer(run("eval", TEACHER, "--data", CLOTHES, "--json"))["metrics"]["accuracy"]
    for name in ("model.int8.onnx", "model.int8.xml"):
        found = answer(run("eval", out / name, "--data", CLOTHES, "--json"))
        assert found["precision"] == "int8"
        assert found["metrics"]["accuracy"] == pytest.approx(right, abs=0.01)


def test_an_engine_that_cannot_run_here_says_that_only_its_graph_was_compared(several) -> None:
    import torch

    _, found = several
    engines = [one for one in found["artefacts"] if one["format"] == "tensorrt-rtx"]
    if not torch.cuda.is_available():
        assert all("GPU" in one["unverified"] for one in engines)
        assert {one["verified_in"] for one in engines} == {"onnxruntime"}
    built = engines[0]["details"]["tensorrt-rtx"]["profile"]
    assert [shape[0] for shape in (built["least"], built["best"], built["most"])] == [1, 2, 8]


def test_pictures_as_bytes_go_in_and_the_best_labels_come_out(tmp_path: Path) -> None:
    path = tmp_path / "camera.onnx"
    found = answer(
        run("export", TEACHER, "--preprocess", "--postprocess", "topk", "--out", path, "--json", "--images", CLOTHES)
    )
    assert (found["preprocess"], found["postprocess"]) == (True, "topk")
    metadata = load(path).metadata
    assert "uint8" in metadata["input"]
    assert "best first" in metadata["output"]
    assert (metadata["colour_order"], len(metadata["source_sha256"])) == ("RGB", 64)
    names = json.loads(metadata["class_names"])
    from compress.data.embedded import fashion

    images = fashion("val")
    rights = 0
    session = onnxruntime.InferenceSession(str(path))
    for i in range(40):
        picture = images.read(i).resize((90, 90), Image.Resampling.BICUBIC)
        labels, best = session.run(["labels", "probabilities"], {"images": np.asarray(picture)[None]})
        assert best[0, 0] == best.max()
        rights += int(labels[0, 0]) == int(images.labels[i])
    assert len(names) == 10
    assert rights >= 30


def test_synthetic_images_come_from_the_models_own_run(tmp_path: Path) -> None:
    made = answer(distill("--json", ood=PHOTOS, out=tmp_path / "run"))
    found = answer(
        run("export", made["student"], "--precision", "int8", *SMALL, *ANYHOW, "--out",
            tmp_path / "a.onnx", "--json")
    )  # fmt: skip
    assert found["calibration"] == "synthetic: generator of run"
    assert found["artefacts"][0]["details"]["int8"]["images"] == 32
    other = answer(
        run("export", TEACHER, "--precision", "int8", *SMALL, *ANYHOW, "--calibration", tmp_path / "run", "--out",
            tmp_path / "b.onnx", "--json")
    )  # fmt: skip
    assert other["calibration"] == "synthetic: generator of run"
    alone = run("export", TEACHER, "--precision", "int8", "--out", tmp_path / "c.onnx")
    assert alone.exit_code == 2
    assert "--calibration" in alone.stderr
    assert not (tmp_path / "c.onnx").exists()


def test_what_is_rejected_alone_is_told_to_machines_too(tmp_path: Path) -> None:
    words = ["export", TEACHER, "--precision", "fp16", "--tolerance", "1e-6", "--out", tmp_path / "a.onnx"]
    found = run(*words, "--json")
    assert found.exit_code == 1, found.output
    result = json.loads(found.stdout)
    assert result["artefacts"] == []
    assert [(one["format"], one["precision"]) for one in result["rejected"]] == [("onnx", "fp16")]
    assert found.stderr.count("fp16 rejected: differs by") == 1
    assert os.listdir(tmp_path) == []
    assert run(*words).stdout == ""


def test_one_rejection_leaves_the_others_and_ends_with_one(tmp_path: Path) -> None:
    found = run(
        "export", TEACHER, "--precision", "fp32,fp16", "--tolerance", "1e-6", "--out", tmp_path / "out", "--json"
    )
    assert found.exit_code == 1, found.output
    result = json.loads(found.stdout)
    assert [one["precision"] for one in result["artefacts"]] == ["fp32"]
    assert [(one["format"], one["precision"]) for one in result["rejected"]] == [("onnx", "fp16")]
    assert "fp16 rejected: differs by" in found.stderr
    assert os.listdir(tmp_path / "out") == ["model.onnx"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "onxn"], "onnx"),
        (["--precision", "fp8"], "fp32, fp16, bf16, int8"),
        (["--batch", "8:1"], "least:usual:most"),
        (["--batch", "8:4:2"], "rise"),
        (["--max-drop", "1"], "below fp32"),
        (["--precision", "fp16", "--val", "embedded/fashion"], "--max-drop"),
        (["--workspace", "lots"], "2GiB"),
        (["--workspace", "2GiB"], "--format tensorrt"),
        (["--precision", "fp32,fp16", "--out", "a.onnx"], "folder"),
        (["--format", "openvino", "--out", "a.onnx"], ".xml"),
        (["--max-drop", "1", "--val", "nowhere", "--precision", "int8", "--calibration", PHOTOS], "nowhere"),
        (["--preprocess", "--input-size", "dynamic"], "choose one"),
        (["--precision", "int8", "--quantizer", "modelopt"], "--quantizer modelopt quantises for NVIDIA's runtimes"),
        (["--quantizer", "modelopt", "--target", "tensorrt", "--calibrator", "percentile"], "no calibrator percentile"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_sentence(tmp_path: Path, monkeypatch, words, said) -> None:
    monkeypatch.chdir(tmp_path)
    found = run("export", TEACHER, *words)
    assert found.exit_code in (1, 2), found.output
    assert said in refusal(found, found.exit_code)
    assert os.listdir(tmp_path) == []


def test_modelopt_makes_int8_where_it_is_asked_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run(
        "export", TEACHER, "--format", "tensorrt-rtx", "--precision", "int8", "--quantizer", "modelopt", *SMALL,
        "--calibration", PHOTOS, "--out", out, "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    (one,) = json.loads(found.stdout)["artefacts"]
    assert one["details"]["int8"]["quantizer"] == "modelopt"
    assert one["details"]["int8"]["images"] == 32
    assert one["parity"]["top1_agreement"] > 0.9
