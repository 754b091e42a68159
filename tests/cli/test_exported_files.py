"""`eval` and `bench` of exported files: runtime, precision and metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from invoking import TEACHER, read_error, read_result, run

from compress.errors import UsageError
from compress.models.card import ModelCard
from compress.models.loading import load_model
from compress.models.metadata import card_to_metadata
from compress.models.registry import build_network
from compress.predictor import load_predictor
from exporters.onnx_export import export_onnx
from exporters.openvino_export import convert_to_openvino
from exporters.pre_post import Preprocessing


def written(path: Path, net: torch.nn.Module, card: ModelCard, **options) -> Path:
    example = torch.zeros(options.pop("batch", 1), 3, *card.image_size)
    exporter = "dynamo" if "preprocessing" in options else "torchscript"
    export_onnx(net, example, path, metadata=card_to_metadata(card), exporter=exporter, **options)
    return path


@pytest.fixture(scope="module")
def teacher() -> tuple[torch.nn.Module, ModelCard]:
    return load_model(TEACHER)


@pytest.fixture(scope="module")
def plain(teacher, tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("onnx") / "teacher.onnx", *teacher)


@pytest.fixture(scope="module")
def xml(plain: Path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("openvino") / "teacher.xml"
    convert_to_openvino(plain, path)
    return path


def scored(*arguments: object, data: object) -> dict:
    return read_result(run("eval", *arguments, "--data", data, "--json"))


RUNS = [("plain", [], "onnxruntime"), ("plain", ["--runtime", "openvino"], "openvino"), ("xml", [], "openvino")]


@pytest.mark.parametrize("data", ["clothes", pytest.param("embedded/fashion", marks=pytest.mark.slow)])
def test_files_score_as_their_model(plain: Path, xml: Path, data: str, request) -> None:
    """Within 0.2 points on the 2000 shipped images."""
    images = data if "/" in data else request.getfixturevalue(data)
    right = scored(TEACHER, data=images)
    assert (right["runtime"], right["precision"]) == ("torch", "fp32")
    for name, options, runtime in RUNS:
        found = scored({"plain": plain, "xml": xml}[name], *options, data=images)
        assert (found["runtime"], found["precision"], found["images"]) == (runtime, "fp32", right["images"])
        assert found["metrics"]["accuracy"] == pytest.approx(right["metrics"]["accuracy"], abs=0.002)


def test_eval_prints_runtime(xml: Path, clothes: Path) -> None:
    text = run("eval", xml, "--data", clothes).stdout
    assert text.startswith(f"{xml} on 40 images of {clothes}, in openvino, fp32\n")


@pytest.mark.slow
@pytest.mark.parametrize("resize", [None, 40])
def test_file_with_preprocessing_scores_equally(teacher, clothes: Path, tmp_path: Path, resize) -> None:
    """If the card resizes to 40 and crops 32, the file must get images of 40."""
    net, card = teacher
    card = replace(card, resize=resize)
    floats = written(tmp_path / "floats.onnx", net, card)
    prepared = written(tmp_path / "bytes.onnx", net, card, preprocessing=Preprocessing(card.image_size, resize))
    convert_to_openvino(prepared, tmp_path / "bytes.xml")
    right = scored(floats, data=clothes)["metrics"]
    assert right["accuracy"] > 0.5
    assert scored(prepared, data=clothes)["metrics"] == right
    assert scored(tmp_path / "bytes.xml", data=clothes)["metrics"] == right
    rows = read_result(run("bench", prepared, tmp_path / "bytes.xml", "--duration", "0.05s", "--json"))["results"]
    assert [row["runtime"] for row in rows] == ["onnxruntime", "openvino"]
    with pytest.raises(UsageError, match="--mean"):
        load_predictor(str(prepared), mean=[0.5], std=[0.25])


@pytest.mark.parametrize("postprocess", ["argmax", "softmax", "topk"])
def test_file_with_postprocessing_scores_equally(
    plain: Path, teacher, clothes: Path, tmp_path: Path, postprocess: str
) -> None:
    path = written(tmp_path / "a.onnx", *teacher, postprocess=postprocess)
    convert_to_openvino(path, tmp_path / "a.xml")
    right = scored(plain, data=clothes)["metrics"]
    assert scored(path, data=clothes)["metrics"] == right
    assert scored(tmp_path / "a.xml", data=clothes)["metrics"] == right


def test_file_with_fixed_batch_size(plain: Path, teacher, clothes: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", *teacher, dynamic_batch=False, batch=3)
    convert_to_openvino(path, tmp_path / "a.xml")
    right = scored(plain, data=clothes)["metrics"]
    for one in (path, tmp_path / "a.xml"):
        assert scored(one, data=clothes)["metrics"] == right
        images = torch.rand(7, 3, 32, 32)
        torch.testing.assert_close(
            load_predictor(str(one)).predict(images), load_predictor(str(plain)).predict(images), rtol=1e-4, atol=1e-4
        )
        assert "found batch size 1, expected 3" in read_error(run("bench", one), 2)


def test_third_party_file_with_overrides(plain: Path, tmp_path: Path) -> None:
    bare = onnx.load(plain)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    convert_to_openvino(tmp_path / "bare.onnx", tmp_path / "bare.xml")
    opened = load_predictor(str(tmp_path / "bare.xml"), mean=[0.5], std=[0.25])
    assert (opened.card.classes, opened.card.image_size, opened.runtime) == (10, (32, 32), "openvino")
    x = torch.rand(2, 3, 32, 32)
    found, right = opened.predict(x), load_predictor(str(plain)).predict((x - 0.5) / 0.25)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_bench_reports_skipped_runtimes(plain: Path, xml: Path) -> None:
    arguments = [
        "--runtimes",
        "torch,onnxruntime,openvino,tensorrt-rtx",
        "--duration",
        "0.05s",
        "--threads",
        1,
        "--json",
    ]
    result = run("bench", "wrn16_1", plain, xml, *arguments)
    rows = [(Path(row["model"]).name, row["runtime"], row["precision"]) for row in read_result(result)["results"]]
    expected = [("wrn16_1", one) for one in ("torch", "onnxruntime", "openvino")]
    expected += [("teacher.onnx", "onnxruntime"), ("teacher.onnx", "openvino"), ("teacher.xml", "openvino")]
    assert rows == [(*one, "fp32") for one in expected]
    skipped = {"wrn16_1": "tensorrt-rtx", str(xml): "torch, onnxruntime, tensorrt-rtx"}
    for model, runtimes in skipped.items():
        assert any(model in line and runtimes in line for line in result.stderr.splitlines())


def test_bench_default_runtime_of_file(xml: Path) -> None:
    result = run("bench", xml, "--duration", "0.05s", "--threads", 1)
    assert result.exit_code == 0, result.stderr
    row = dict(zip(result.stdout.splitlines()[0].split(), result.stdout.splitlines()[2].split(), strict=False))
    assert (row["runtime"], row["device"], row["precision"]) == ("openvino", "cpu", "fp32")


def test_bench_without_possible_runtime(xml: Path) -> None:
    assert "torch" in read_error(run("bench", xml, "--runtimes", "torch"), 2)
    assert "tensorrt" in read_error(run("bench", "wrn16_1", "--runtimes", "tensorrt"), 2)


def test_unavailable_provider_or_runtime(xml: Path, plain: Path, clothes: Path) -> None:
    assert "cuda" in read_error(run("bench", xml, "--provider", "cuda"), 1)
    assert "TensorrtExecutionProvider" in read_error(run("bench", plain, "--provider", "tensorrt"), 1)
    assert "openvino" in read_error(run("bench", "wrn16_1", "--runtimes", "torch", "--device", "openvino"), 1)
    assert "expected openvino" in read_error(run("eval", xml, "--runtime", "onnxruntime", "--data", clothes), 1)
    assert "compress export" in read_error(run("eval", TEACHER, "--runtime", "openvino", "--data", clothes), 2)


@pytest.mark.parametrize("command", [["eval", "--data", "embedded/fashion"], ["bench"]])
def test_damaged_files(xml: Path, plain: Path, tmp_path: Path, command: list[str]) -> None:
    alone = tmp_path / "alone.xml"
    alone.write_bytes(xml.read_bytes())
    half = tmp_path / "half.onnx"
    half.write_bytes(plain.read_bytes()[:3000])
    outside = onnx.load(plain)
    weights = outside.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../../etc/hostname")
    onnx.save(outside, tmp_path / "outside.onnx")
    (tmp_path / "a.engine").write_bytes(bytes(100))
    for name, datum, code in (
        ("alone.xml", "alone.bin", 1),
        ("half.onnx", "half.onnx", 1),
        ("outside.onnx", "../../etc/hostname", 1),
        ("a.engine", "a.engine.json", 1),
        ("none.xml", "none.xml", 2),
        ("none.engine", "none.engine", 2),
    ):
        assert datum in read_error(run(command[0], tmp_path / name, *command[1:]), code)


def test_openvino_file_is_no_network(xml: Path) -> None:
    assert "give the model that it was exported from" in read_error(run("inspect", xml), 1)
    assert "expected a PyTorch model" in read_error(run("profile", xml), 2)


def test_segmentation_scores_in_openvino(tmp_path: Path) -> None:
    """The mIoU equals that of ONNX Runtime for images of several sizes."""
    from PIL import Image

    torch.manual_seed(0)
    noise = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i, (width, height) in enumerate([(40, 33), (33, 47), (64, 33)]):
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            tmp_path / f"data/images/{i}.png"
        )
        Image.fromarray(noise.integers(0, 3, (height, width), dtype=np.uint8)).save(tmp_path / f"data/masks/{i}.png")
    card = ModelCard(
        "torchvision/lraspp_mobilenet_v3_large", 3, (33, 33), "segmentation", mean=(0.5,) * 3, std=(0.2,) * 3
    )
    net = build_network(card).eval()
    path = written(tmp_path / "a.onnx", net, card, dynamic_size=True)
    convert_to_openvino(path, tmp_path / "a.xml")
    right = scored(path, data=tmp_path / "data")["metrics"]
    found = scored(tmp_path / "a.xml", data=tmp_path / "data")
    assert (found["runtime"], found["images"]) == ("openvino", 3)
    assert found["metrics"]["miou"] == pytest.approx(right["miou"], abs=1e-3)
