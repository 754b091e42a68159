"""`compress profile`: layers, sizes, exported files and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from invoking import read_error, read_result, run
from unsealed import load_unsealed

from compress.models.card import ModelCard
from compress.models.metadata import card_to_metadata
from compress.models.network import Network
from compress.models.registry import build_network
from compress.models.serialization import save_model
from exporters.onnx_export import export_onnx
from profiles.flops.counter import count_flops, count_products


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return ModelCard("wrn16_1", 4, (16, 16), mean=(0.3,), std=(0.4,), grayscale=True)


@pytest.fixture(scope="module")
def net(card: ModelCard) -> Network:
    torch.manual_seed(0)
    return build_network(card).eval()


@pytest.fixture(scope="module")
def directory(card: ModelCard, net: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiled") / "model"
    save_model(path, net, card)
    return path


@pytest.fixture(scope="module")
def onnx_file(card: ModelCard, net: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiled") / "net.onnx"
    example, metadata = torch.rand(1, 3, 16, 16), card_to_metadata(card)
    export_onnx(net, example, path, exporter="torchscript", metadata=metadata, dynamic_size=True)
    return path


def test_profile_counts_architecture_by_name() -> None:
    result = read_result(run("profile", "wrn40_2", "--classes", 100, "--json"))
    assert result["macs"] == pytest.approx(0.329e9, rel=0.01)
    assert result["flops"] == 2 * result["macs"]
    assert (result["params"], result["unsupported"], result["is_trained"]) == (2_255_156, {}, False)


def test_profile_layers_add_up(directory: Path, net: Network) -> None:
    result = read_result(run("profile", directory, "--depth", 9, "--json"))
    assert (result["classes"], result["input_size"], result["is_trained"]) == (4, [16, 16], True)
    layers = {row["path"]: row for row in result["layers"]}
    assert {path.rpartition(".")[0] for path in net.get_submodule("body").state_dict()} <= set(layers)
    for row in result["layers"]:
        below = [other for path, other in layers.items() if path and path.rpartition(".")[0] == row["path"]]
        for key in ("macs", "params", "activations"):
            assert row[key] == row[f"own_{key}"] + sum(other[key] for other in below)
    assert (layers[""]["macs"], layers[""]["params"]) == (result["macs"], result["params"])
    assert result["products"] == result["macs_torch"]
    assert not result["has_deeper_layers"]


def test_profile_depth_limits_layers(directory: Path) -> None:
    root = read_result(run("profile", directory, "--depth", 0, "--json"))
    assert [row["path"] for row in root["layers"]] == [""]
    result = read_result(run("profile", directory, "--json"))
    paths = [row["path"] for row in result["layers"]]
    assert {"", "conv1", "block1", "fc"} <= set(paths)
    assert not any("." in path for path in paths)
    assert result["has_deeper_layers"]


def test_profile_sizes_have_exponents(directory: Path, net: Network) -> None:
    result = read_result(run("profile", directory, "--sizes", "16,32x32,64x16,32x32", "--json"))
    assert [row["size"] for row in result["sizes"]] == [[16, 16], [32, 32], [64, 16]]
    for row in result["sizes"]:
        assert row["macs"] == count_flops(net, (torch.zeros(1, 3, *row["size"]),)).macs
        assert row["refused"] is None
    assert result["sizes"][0]["exponent"] is None
    assert result["sizes"][1]["exponent"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("sizes", ["32x", "a", "", ",", "0x32", "32;64"])
def test_profile_rejects_invalid_sizes(directory: Path, sizes: str) -> None:
    read_error(run("profile", directory, "--sizes", sizes), 2)


def test_profile_reports_refused_sizes() -> None:
    result = read_result(run("profile", "timm/vit_tiny_patch16_224", "--sizes", "64,224", "--json"))
    assert "224" in result["sizes"][0]["refused"]
    assert (result["sizes"][0]["macs"], result["sizes"][1]["macs"]) == (None, result["macs"])
    assert "--input-size" in read_error(run("profile", "timm/vit_tiny_patch16_224", "--input-size", "64"), 2)


def test_profile_names_operators_that_outgrow_pixels() -> None:
    command = ["profile", "smp/segformer:mit_b0", "--input-size", "64", "--sizes", "128", "--json"]
    assert any("matmul" in line for line in read_result(run(*command))["growth"])


def test_profile_table_prints_every_layer(directory: Path) -> None:
    text = run("profile", directory, "--sizes", 32).stdout
    for word in ("GMAC", "GFLOP", "block1", "fc", "16x16", "32x32"):
        assert word in text


def test_profile_appends_record(directory: Path, tmp_path: Path) -> None:
    result = read_result(run("profile", directory, "--record", tmp_path / "run", "--json"))
    (line,) = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    for key in ("macs", "flops", "params", "activations", "macs_torch", "unsupported"):
        assert json.loads(line)[key] == result[key]


def test_profile_suggests_nearest_architecture() -> None:
    assert "wrn40_2" in read_error(run("profile", "wrn402"), 2)
    assert "resnet50" in read_error(run("profile", "torchvision/resnet5O"), 2)


# Exported files.


def test_onnx_profile_equals_network(onnx_file: Path, net: Network) -> None:
    result = read_result(run("profile", onnx_file, "--sizes", "32,8x16", "--json"))
    assert result["input_size"] == [16, 16]
    assert result["macs"] == count_products(net, (torch.zeros(1, 3, 16, 16),))
    assert result["file_bytes"] == onnx_file.stat().st_size
    assert [row["macs"] for row in result["sizes"]] == [
        count_products(net, (torch.zeros(1, 3, *size),)) for size in ((32, 32), (8, 16))
    ]
    assert "GFLOP" in run("profile", onnx_file).stdout


def test_onnx_profile_refuses_other_sizes(card: ModelCard, net: Network, tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    export_onnx(net, torch.rand(1, 3, 16, 16), path, exporter="torchscript", metadata=card_to_metadata(card))
    (row,) = read_result(run("profile", path, "--sizes", "32", "--json"))["sizes"]
    assert "16x16" in row["refused"]
    assert "16x16" in read_error(run("profile", path, "--input-size", "32"), 2)


def test_onnx_profile_counts_external_weights(onnx_file: Path, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "net.onnx"
    onnx.save(load_unsealed(onnx_file), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    one, two = (read_result(run("profile", file, "--json")) for file in (onnx_file, path))
    assert two["file_bytes"] == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert (one["macs"], one["weight_bytes"]) == (two["macs"], two["weight_bytes"])


@pytest.mark.parametrize("option", [["--depth", 2], ["--classes", 4], ["--record", "dir"]])
def test_onnx_profile_rejects_checkpoint_options(onnx_file: Path, option: list) -> None:
    assert option[0] in read_error(run("profile", onnx_file, *option), 2)


def test_profile_rejects_unusable_files(tmp_path: Path) -> None:
    assert "none.onnx" in read_error(run("profile", tmp_path / "none.onnx"), 2)
    for name, code in (("broken.onnx", 1), ("net.engine", 2)):
        (tmp_path / name).write_bytes(b"nothing")
        assert name in read_error(run("profile", tmp_path / name), code)
