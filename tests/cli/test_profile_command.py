"""`compress profile` as its users see it: layers, sizes, exported files, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from invoking import answer, refusal, run
from test_json import agree

from compress.models import network
from compress.models.card import Card
from compress.models.folder import save_model
from compress.models.metadata import to_metadata
from compress.models.network import Network
from exporters.onnx import export
from profiles.flops import count, products


@pytest.fixture(scope="module")
def card() -> Card:
    return Card("wrn16_1", 4, (16, 16), mean=(0.3,), std=(0.4,), grey=True)


@pytest.fixture(scope="module")
def net(card: Card) -> Network:
    torch.manual_seed(0)
    return network(card).eval()


@pytest.fixture(scope="module")
def folder(card: Card, net: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiled") / "model"
    save_model(path, net, card)
    return path


@pytest.fixture(scope="module")
def onnx_file(card: Card, net: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiled") / "net.onnx"
    export(net, torch.rand(1, 3, 16, 16), path, exporter="torchscript", metadata=to_metadata(card), dynamic_size=True)
    return path


def rows(text: str, header: str) -> list[list[str]]:
    """The cells of the table whose first column has this header."""
    table = next(part for part in text.split("\n\n") if part.split()[0] == header)
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()[2:]]


def test_layers_bear_the_names_of_the_weights_and_add_up(folder: Path, net: Network) -> None:
    found = answer(run("profile", folder, "--depth", 9, "--json"))
    agree("compress profile", found)
    layers = {row["path"]: row for row in found["layers"]}
    assert {path.rpartition(".")[0] for path in net.get_submodule("body").state_dict()} <= set(layers)
    for row in found["layers"]:
        below = [other for path, other in layers.items() if path and path.rpartition(".")[0] == row["path"]]
        for key in ("macs", "params", "activations"):
            assert row[key] == row[f"own_{key}"] + sum(other[key] for other in below)
    assert (layers[""]["macs"], layers[""]["params"]) == (found["macs"], found["params"])
    assert found["products"] == found["macs_torch"]


def test_the_printed_parts_add_up_to_the_whole() -> None:
    text = run("profile", "timm/vit_tiny_patch16_224", "--depth", 2).stdout
    table = rows(text, "layer")
    shares = {row[0]: int(row[-2].replace(",", "")) for row in table}
    assert shares["(itself)"] == 197 * 192 + 192  # the class token and the positions
    inner = [name for name in shares if "." in name or name.endswith("itself)")]
    lone = [
        name for name in shares if name.count(".") == 0 and name not in ("(all)", "(itself)", "blocks", "patch_embed")
    ]
    assert shares["(all)"] == sum(shares[name] for name in [*inner, *lone])
    assert "--depth 3 shows more" in text
    assert "equal" in text


def test_depth_cuts_the_table(folder: Path) -> None:
    assert [row[0] for row in rows(run("profile", folder, "--depth", 0).stdout, "layer")] == ["(all)"]
    shown = [row["path"] for row in answer(run("profile", folder, "--json"))["layers"]]
    assert {"", "conv1", "block1", "fc"} <= set(shown)
    assert not any("." in path for path in shown)
    assert "shows more" not in run("profile", folder, "--depth", 9).stdout
    assert "x>=0" in run("profile", folder, "--depth", -1).stderr


def test_sizes_have_a_row_each_with_their_exponent(folder: Path, net: Network) -> None:
    found = answer(run("profile", folder, "--sizes", "16,32x32,64x16,32x32", "--json"))
    agree("compress profile", found)
    assert [row["size"] for row in found["sizes"]] == [[16, 16], [32, 32], [64, 16]]
    for row in found["sizes"]:
        assert row["macs"] == count(net, (torch.zeros(1, 3, *row["size"]),)).macs
        assert row["refused"] is None
    assert found["sizes"][0]["exponent"] is None
    assert found["sizes"][1]["exponent"] == pytest.approx(1, abs=1e-3)
    text = run("profile", folder, "--sizes", "32").stdout
    assert "All of it is in proportion to pixels" in text
    (row,) = rows(text, "size")
    assert row[0] == "32x32"
    assert row[4:6] == ["4", "4"]


@pytest.mark.parametrize("wrong", ["32x", "a", "", ",", "0x32", "32;64"])
def test_sizes_that_are_none_are_one_sentence(folder: Path, wrong: str) -> None:
    assert "expected" in refusal(run("profile", folder, "--sizes", wrong), 2)


def test_a_size_that_the_network_refuses_has_its_sentence_in_its_row(folder: Path) -> None:
    found = answer(run("profile", "timm/vit_tiny_patch16_224", "--sizes", "64,224", "--json"))
    assert "224" in found["sizes"][0]["refused"]
    assert (found["sizes"][0]["macs"], found["sizes"][1]["macs"]) == (None, found["macs"])
    assert "in proportion" not in run("profile", folder, "--sizes", "16,1x256").stdout  # nothing to compare with
    text = run("profile", "timm/vit_tiny_patch16_224", "--input-size", "64").stderr
    assert "refuses images of 64x64" in text
    assert "--input-size" in text


def test_attention_is_named_where_the_cost_outgrows_the_pixels() -> None:
    found = run("profile", "smp/segformer:mit_b0", "--input-size", "64", "--sizes", "128").stdout
    assert "matmul grows as pixels to the power of 2.00: 0.2% of the cost at 64x64, 0.9% at 128x128" in found


def test_a_count_is_recorded(folder: Path, tmp_path: Path) -> None:
    found = answer(run("profile", folder, "--record", tmp_path / "run", "--json"))
    (line,) = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    for key in ("macs", "flops", "params", "activations", "macs_torch", "unsupported"):
        assert json.loads(line)[key] == found[key]


# exported files


def test_an_onnx_file_costs_what_its_network_does_at_its_own_size(onnx_file: Path, net: Network) -> None:
    found = answer(run("profile", onnx_file, "--sizes", "32,8x16", "--json"))
    agree("compress profile FILE.onnx", found)
    assert found["input_size"] == [16, 16]
    assert found["macs"] == products(net, (torch.zeros(1, 3, 16, 16),))
    assert found["file_bytes"] == onnx_file.stat().st_size
    assert [row["macs"] for row in found["sizes"]] == [
        products(net, (torch.zeros(1, 3, *size),)) for size in ((32, 32), (8, 16))
    ]
    text = run("profile", onnx_file).stdout
    assert "GMAC" in text
    assert "GFLOP" in text
    assert "No product left out" in text


def test_an_onnx_file_of_one_size_refuses_the_others_in_their_rows(card: Card, net: Network, tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    export(net, torch.rand(1, 3, 16, 16), path, exporter="torchscript", metadata=to_metadata(card))
    (row,) = answer(run("profile", path, "--sizes", "32", "--json"))["sizes"]
    assert row["refused"] == "the file takes images of 16x16 only, found 32x32 asked for"
    assert "images of 16x16 only" in refusal(run("profile", path, "--input-size", "32"), 2)


def test_weights_beside_an_onnx_file_are_part_of_it(onnx_file: Path, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "net.onnx"
    onnx.save(onnx.load(onnx_file), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    one, two = (answer(run("profile", file, "--json")) for file in (onnx_file, path))
    assert two["file_bytes"] == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert (one["macs"], one["weight_bytes"]) == (two["macs"], two["weight_bytes"])


def test_what_an_onnx_file_does_not_have_is_said(onnx_file: Path, tmp_path: Path) -> None:
    for options in (["--depth", 2], ["--classes", 4], ["--record", tmp_path]):
        assert f"leave out {options[0]}" in refusal(run("profile", onnx_file, *options), 2)
    assert "no such file" in refusal(run("profile", tmp_path / "none.onnx"), 2)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    assert "cannot be loaded as ONNX" in refusal(run("profile", broken), 1)


def test_a_compiled_file_names_what_to_profile_instead(tmp_path: Path) -> None:
    engine = tmp_path / "net.engine"
    engine.write_bytes(b"")
    assert "the ONNX file that it was made from" in refusal(run("profile", engine), 2)
