"""Hostile and damaged ONNX files: the same error from every reader, and no file outside is opened."""

from __future__ import annotations

import builtins
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import WEIGHTS, expected, mean, small, written

from exporters.errors import MissingFileError, RunnerError
from exporters.loading import load
from exporters.onnx_validation import read_model
from exporters.openvino_export import convert_to_openvino

SIZE = WEIGHTS.nbytes
CONV = helper.make_node("Conv", ["x", "w"], ["c"])


def load_in_openvino(path: Path) -> None:
    load(path, runtime="openvino")


def refusal(path: Path) -> str:
    """Return the error message, which is the same from all readers of ONNX files."""
    with pytest.raises(RunnerError) as caught:
        read_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for reader in (load, load_in_openvino, lambda file: convert_to_openvino(file, file.with_suffix(".xml"))):
        with pytest.raises(RunnerError) as again:
            reader(path)
        assert str(again.value) == message
    assert not path.with_suffix(".xml").exists()
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory for the file; beside it lies a file that must not be read."""
    (tmp_path / "secret.bin").write_bytes(WEIGHTS.tobytes())
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "weights.bin").write_bytes(WEIGHTS.tobytes())
    return inside


def test_read_model_skips_external_weights(folder: Path) -> None:
    path = written(folder / "a.onnx", small(outside={"location": "weights.bin", "offset": 0, "length": SIZE}))
    (weights,) = read_model(path).graph.initializer
    assert weights.name == "w"
    assert not weights.raw_data
    x = np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)
    np.testing.assert_allclose(load(path, threads=1)(x), expected(x), rtol=1e-5)
    np.testing.assert_allclose(load(path, runtime="openvino", threads=1)(x), expected(x), rtol=1e-5)


def test_links_of_hub_cache_are_followed(folder: Path) -> None:
    written(folder / "blob", small(outside={"location": "weights.bin"}))
    snapshot = folder.parent / "snapshot"
    snapshot.mkdir()
    (snapshot / "a.onnx").symlink_to(folder / "blob")
    (snapshot / "weights.bin").symlink_to(folder / "weights.bin")
    assert read_model(snapshot / "a.onnx").graph.node


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "link.bin",
        "up/secret.bin",
        "/etc/hostname",
        "..\\secret.bin",
        "C:\\secret.bin",
        "./../secret.bin",
    ],
)
def test_weights_outside_directory(folder: Path, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    (folder / "up").symlink_to(folder.parent)
    path = written(folder / "a.onnx", small(outside={"location": location, "offset": 0, "length": SIZE}))
    opened: list[str] = []
    real = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda file, *rest, **more: opened.append(str(file)) or real(file, *rest, **more)
    )
    message = refusal(path)
    assert "outside the directory of the file" in message
    assert location in message
    assert not [file for file in opened if "secret" in file or file == "/etc/hostname"]


def test_weights_with_absolute_path(folder: Path) -> None:
    path = written(folder / "a.onnx", small(outside={"location": str(folder / "weights.bin")}))
    assert "outside the directory" in refusal(path)


def test_weights_at_memory_address(folder: Path) -> None:
    """A tag of ONNX Runtime; OpenVINO would read from that address and crash."""
    outside = {"location": "*/_ORT_MEM_ADDR_/*", "offset": 4096, "length": SIZE}
    assert "weights are missing" in refusal(written(folder / "a.onnx", small(outside=outside)))


def test_hidden_weights_are_validated(folder: Path) -> None:
    """The weights are a constant inside a branch of an operator."""
    hidden = numpy_helper.from_array(WEIGHTS, "hidden")
    hidden.ClearField("raw_data")
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="../secret.bin")
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    constant = helper.make_node("Constant", [], ["b"], value=hidden)
    branch = helper.make_graph([constant], "branch", [], [out])
    true = numpy_helper.from_array(np.array(True), "true")
    nodes = [
        helper.make_node("If", ["true"], ["v"], then_branch=branch, else_branch=branch),
        helper.make_node("Conv", ["x", "v"], ["c"]),
        mean("c"),
    ]
    assert "outside the directory" in refusal(written(folder / "a.onnx", small(nodes, initializers=[true])))


@pytest.mark.parametrize(
    ("outside", "says"),
    [
        ({"location": "none.bin"}, "none.bin"),
        ({"location": ""}, "has no name"),
        ({"location": "a\0b"}, "has no name"),
        ({"location": "weights.bin", "offset": 8}, "take 48 bytes, found 40"),
        ({"location": "weights.bin", "offset": -4, "length": SIZE}, "found 0"),
        ({"location": "weights.bin", "length": 10**15}, f"found {10**15}"),
        ({"location": "weights.bin", "offset": "many"}, "is not a number"),
    ],
)
def test_weights_missing_or_short(folder: Path, outside: dict, says: str) -> None:
    assert says in refusal(written(folder / "a.onnx", small(outside=outside)))


@pytest.mark.parametrize("length", [0, 1, 60, -1])
def test_truncated_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(small().SerializeToString()[:length])
    assert "cannot be loaded as ONNX" in refusal(path)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n" + bytes(300), b"PK\x03\x04" + bytes(300), b"<net/>", b"\x08\x07"])
def test_other_kind_of_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    assert "cannot be loaded as ONNX" in refusal(tmp_path / "a.onnx")


def test_missing_file(tmp_path: Path) -> None:
    for reader in (read_model, load, load_in_openvino):
        with pytest.raises(MissingFileError, match="no such file"):
            reader(tmp_path / "a.onnx")


def test_absurd_shapes(tmp_path: Path) -> None:
    for dims, says in (([4, 3, 10**9, 10**9], "take 48000000000000000000 bytes"), ([4, -3, 1, 1], "-3")):
        model = small()
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)
        assert says in refusal(written(tmp_path / "a.onnx", model))
    for shape in ([1, 3, 10**6, 10**6], ["n", 3, -4, 4]):
        assert "the input 'x' is of size" in refusal(written(tmp_path / "a.onnx", small(shape=shape)))


def test_cyclic_graph_names_nodes(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["r", "w"], ["c"]), helper.make_node("Relu", ["c"], ["r"]), mean("c")]
    message = refusal(written(tmp_path / "a.onnx", small(nodes)))
    assert "cyclic" in message
    assert "Conv" in message
    assert "Relu" in message


def test_unsorted_operators_are_valid(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", small([mean("c"), CONV]))
    x = np.ones((1, 3, 4, 4), np.float32)
    np.testing.assert_allclose(load(path, threads=1)(x), expected(x), rtol=1e-5)


def test_input_without_producer(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["nowhere", "w"], ["c"]), mean("c")]
    assert "reads 'nowhere', which has no producer" in refusal(written(tmp_path / "a.onnx", small(nodes)))


def test_custom_operators_are_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sharpen", ["x", "w"], ["c"], domain="acme.vision"), mean("c")]
    message = refusal(written(tmp_path / "a.onnx", small(nodes, domains=["acme.vision"])))
    assert "acme.vision.Sharpen" in message
    assert "custom" in message


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cnov", ["x", "w"], ["c"]), mean("c")]
    assert "found operators Cnov, which opset 17" in refusal(written(tmp_path / "a.onnx", small(nodes)))
    newer = [CONV, helper.make_node("Gelu", ["c"], ["d"]), mean("d")]  # of opset 20
    assert "Gelu" in refusal(written(tmp_path / "a.onnx", small(newer)))


def test_unprintable_names_are_replaced(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sha\nrp\x1b[2J", ["x", "w"], ["c"], domain="acme"), mean("c")]
    assert "acme.Sha?rp?[2J" in refusal(written(tmp_path / "a.onnx", small(nodes, domains=["acme"])))


def test_unknown_attribute(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], magic=3), mean("c")]
    assert "magic" in refusal(written(tmp_path / "a.onnx", small(nodes)))


def test_model_functions_are_valid(tmp_path: Path) -> None:
    model = small([CONV, helper.make_node("Twice", ["c"], ["t"], domain="own"), mean("t")], domains=["own"])
    add = helper.make_node("Add", ["a", "a"], ["b"])
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], [add], [helper.make_opsetid("", 17)]))
    x = np.ones((1, 3, 4, 4), np.float32)
    runner = load(written(tmp_path / "a.onnx", model), threads=1)
    np.testing.assert_allclose(runner(x), 2 * expected(x), rtol=1e-5)


def test_operator_missing_in_openvino(tmp_path: Path) -> None:
    nodes = [
        CONV,
        mean("c", "m"),
        helper.make_node("CDist", ["m", "m"], ["y"], domain="com.microsoft", metric="euclidean"),
    ]
    path = written(tmp_path / "a.onnx", small(nodes, domains=["com.microsoft"]))
    with pytest.raises(RunnerError, match=r"a\.onnx: cannot be loaded by OpenVINO .*com\.microsoft\.CDist"):
        load_in_openvino(path)


def test_invalid_text_and_numbers(tmp_path: Path) -> None:
    whole = small(metadata={"note": "plain"}).SerializeToString()
    assert "not text" in refusal_of_bytes(tmp_path, whole.replace(b"plain", b"pl\xffin"))
    refusal_of_bytes(tmp_path, whole.replace(b"Conv", b"Co\xffv"))
    model = small()
    model.opset_import[0].version = 2**40
    refusal(written(tmp_path / "a.onnx", model))
    refusal(written(tmp_path / "a.onnx", small(outside={"location": "a" * 5000})))


def refusal_of_bytes(folder: Path, content: bytes) -> str:
    (folder / "a.onnx").write_bytes(content)
    return refusal(folder / "a.onnx")


def test_random_damage_raises_runner_error(tmp_path: Path) -> None:
    """Files with one changed byte run or raise RunnerError."""
    noise, whole = np.random.default_rng(0), small(metadata={"note": "plain"}).SerializeToString()
    path, message = tmp_path / "a.onnx", []
    for _ in range(400):
        content = bytearray(whole)
        content[noise.integers(0, len(whole))] = noise.integers(0, 256)
        path.write_bytes(content)
        try:
            load(path, threads=1)
        except RunnerError as error:
            message.append(str(error))
    assert 40 < len(message) < 400
    assert not [text for text in message if "\n" in text]


def test_unreadable_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", small())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    with pytest.raises(RunnerError, match="cannot be read"):
        read_model(path)


def test_model_content_is_unchanged(tmp_path: Path) -> None:
    model = small(metadata={"a": "b"})
    assert read_model(written(tmp_path / "a.onnx", model)) == onnx.load(tmp_path / "a.onnx")
