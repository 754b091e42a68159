"""profile, export, bench and doctor, as their users see them: one JSON object, one sentence, one exit code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from compress.cli import main
from compress.cli.opening import open_model
from compress.models import network
from compress.models.card import Card
from compress.models.folder import save_model
from compress.models.metadata import from_metadata

NAMES = ["T-shirt", "Trouser", "Pullover", "Dress"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    card = Card(
        "wrn16_1", 4, (16, 16), mean=(0.3,), std=(0.4,), grey=True, class_names=NAMES, metrics={"accuracy": 0.5}
    )
    net = network(card)
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, net, card)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def exported(model: Path, pictures: Path) -> tuple[Path, dict[str, Any]]:
    path = model.parent / "net.onnx"
    arguments = ["export", model, "--out", path, "--images", pictures, "--exporter", "torchscript", "--json"]
    return path, answer(run(*arguments))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in arguments])


def answer(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(result: Result, code: int) -> str:
    """The one sentence of a command that failed."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    return result.stderr


# profile


def test_profile_counts_an_architecture_by_name() -> None:
    found = answer(run("profile", "wrn40_2", "--classes", 100, "--json"))
    assert found["macs"] == pytest.approx(0.329e9, rel=0.01)
    assert found["flops"] == 2 * found["macs"]
    assert (found["params"], found["unsupported"], found["trained"]) == (2_255_156, {}, False)
    assert {"macs_torch", "by_operator", "weight_bytes", "activation_peak_bytes", "peak_bytes"} <= set(found)


def test_profile_takes_a_model_folder_and_its_own_card(model: Path) -> None:
    found = answer(run("profile", model, "--json"))
    assert (found["classes"], found["input_size"], found["trained"]) == (4, [16, 16], True)


def test_profile_says_gmac_and_gflop_by_name() -> None:
    text = run("profile", "torchvision/squeezenet1_1", "--input-size", "64x64").stdout
    assert "GMAC" in text
    assert "GFLOP" in text
    assert "one image of 64x64" in text
    assert "No operator left out" in text


def test_profile_of_a_misspelt_name_offers_the_nearest_one() -> None:
    assert "wrn40_2" in refused(run("profile", "wrn402"), 2)
    assert "resnet50" in refused(run("profile", "torchvision/resnet5O"), 2)


# export


def test_export_compares_on_the_images_given_and_reports_it(exported, pictures: Path) -> None:
    path, found = exported
    (made,) = found["artefacts"]
    assert made["parity"]["top1_agreement"] == 1.0
    assert made["parity"]["max_rel"] < 1e-5
    assert (made["real_images"], found["images"], found["opset"]) == (True, str(pictures), 18)
    assert made["batch_sizes"][:3] == [1, 2, 5]
    assert made["bytes"] == path.stat().st_size


def test_the_exported_file_normalises_and_carries_the_whole_card(exported, model: Path) -> None:
    path, _ = exported
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(metadata["class_names"]) == NAMES
    assert "[0, 1]" in metadata["input"]
    card = from_metadata(metadata, path)
    assert card is not None
    assert (card.classes, card.image_size, card.grey, card.metrics) == (4, (16, 16), True, {"accuracy": 0.5})
    x = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(open_model(str(path)).answer(x), open_model(str(model)).answer(x), rtol=1e-4, atol=1e-5)


def test_an_export_that_cannot_be_compared_leaves_no_file(model: Path, tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out.onnx"
    text = refused(
        run("export", model, "--out", out, "--images", pictures, "--exporter", "torchscript", "--tolerance", 0), 1
    )
    assert "not written" in text
    assert os.listdir(tmp_path) == []


def test_export_refuses_what_is_not_there(model: Path, tmp_path: Path) -> None:
    assert "no such" in refused(run("export", tmp_path / "nothing"), 2)
    assert "no such" in refused(run("export", model, "--images", tmp_path / "nothing"), 2)


def test_export_into_a_place_that_cannot_be_written_is_one_sentence(
    model: Path, tmp_path: Path, pictures: Path
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "a.onnx"
    text = refused(run("export", model, "--out", out, "--images", pictures, "--exporter", "torchscript"), 1)
    assert "cannot be written" in text


def test_a_strangers_onnx_is_opened_by_what_its_user_says(exported, tmp_path: Path) -> None:
    bare = onnx.load(exported[0])
    del bare.metadata_props[:]
    path = tmp_path / "bare.onnx"
    onnx.save(bare, path)
    opened = open_model(str(path), mean=[0.5], std=[0.25])
    assert (opened.card.classes, opened.card.image_size) == (4, (16, 16))
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(opened.answer(x), open_model(str(exported[0])).answer((x - 0.5) / 0.25))


def test_a_truncated_onnx_is_one_sentence(exported, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported[0].read_bytes()[:5000])
    assert "broken.onnx" in refused(run("bench", broken), 1)


# bench


def test_bench_gives_a_row_for_every_model_runtime_and_batch(exported, model: Path) -> None:
    arguments = ["bench", model, exported[0], "--batch-size", "1,2", "--duration", "0.05s", "--threads", 1, "--json"]
    found = answer(run(*arguments))
    rows = [(Path(row["model"]).name, row["runtime"], row["batch_size"]) for row in found["results"]]
    pairs = [("model", "torch"), ("model", "onnxruntime"), ("net.onnx", "onnxruntime")]
    assert sorted(rows) == sorted((*pair, size) for pair in pairs for size in (1, 2))
    for row in found["results"]:
        assert 0 < row["latency_ms_p50"] <= row["latency_ms_p90"] <= row["latency_ms_p99"]
        assert row["throughput_ips"] > 0
        assert row["runs"] >= 10
        assert (row["device"], row["precision"], row["threads"]) == ("cpu", "fp32", 1)
    assert found["machine"]["versions"]["torch"]


def test_bench_prints_a_table_and_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    result = run("bench", "wrn16_1", "--runtimes", "torch", "--duration", "0.05s", "--threads", before + 1)
    assert result.stdout.splitlines()[0].split()[:2] == ["model", "runtime"]
    assert torch.get_num_threads() == before


def test_bench_refuses_unknown_runtimes_bad_batches_and_onnx_in_torch(exported) -> None:
    assert "did you mean 'onnxruntime'" in refused(run("bench", "wrn16_1", "--runtimes", "onnxruntme"), 2)
    assert "batch sizes" in refused(run("bench", "wrn16_1", "--batch-size", "0"), 2)
    assert "does not run in torch" in refused(run("bench", exported[0], "--runtimes", "torch"), 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_bench_never_falls_back_to_the_cpu(exported) -> None:
    assert "CUDA" in refused(run("bench", exported[0], "--device", "cuda"), 1)


# doctor


def test_doctor_names_versions_devices_and_parts() -> None:
    found = answer(run("doctor", "--json"))
    assert found["ok"] is True
    assert {"torch", "torchvision", "onnx", "onnxruntime", "click"} <= set(found["core"])
    assert found["optional"]["timm"]["get"].startswith("pip install")
    assert found["bf16"] in ("fast", "native", "emulated")


def test_doctor_fails_and_says_how_to_get_a_core_part_that_is_missing(monkeypatch) -> None:
    from compress.cli import doctor as module

    there = module.version
    monkeypatch.setattr(module, "version", lambda name: None if name == "onnx" else there(name))
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["ok"] is False
    assert "onnx: not installed; pip install 'onnx>=1.17'" in result.stderr


def test_doctor_knows_the_build_of_torch_beside_which_torchvision_does_not_import(monkeypatch) -> None:
    from compress.cli import doctor as module

    there = module.version
    monkeypatch.setattr(module, "version", lambda name: "2.15.0+cpu" if name == "torch" else there(name))
    result = run("doctor")
    assert result.exit_code == 1
    assert "CPU-only build" in result.stderr


@pytest.mark.slow
def test_a_thorough_doctor_imports_every_core_part() -> None:
    assert answer(run("doctor", "--thorough", "--json"))["ok"] is True
