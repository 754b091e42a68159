"""Hostile and broken ONNX files: each gets its one sentence, in every runtime, and nothing outside is opened."""

from __future__ import annotations

import builtins
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import WEIGHTS, expected, mean, small, written
from onnx import TensorProto, helper, numpy_helper

from exporters.errors import MissingFileError, RunnerError
from exporters.loading import load
from exporters.onnx_validation import read_model
from exporters.openvino_export import convert_to_openvino

SIZE = WEIGHTS.nbytes
CONV = helper.make_node("Conv", ["x", "w"], ["c"])


def load_in_openvino(path: Path) -> None:
    load(path, runtime="openvino")


def refusal(path: Path) -> str:
    """The one sentence, the same from all that read ONNX files; the first runtime is never reached."""
    with pytest.raises(RunnerError) as caught:
        read_model(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    for reader in (load, load_in_openvino, lambda file: convert_to_openvino(file, file.with_suffix(".xml"))):
        with pytest.raises(RunnerError) as again:
            reader(path)
        assert str(again.value) == said
    assert not path.with_suffix(".xml").exists()
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for the file; beside it what it must not read."""
    (tmp_path / "secret.bin").write_bytes(WEIGHTS.tobytes())
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "weights.bin").write_bytes(WEIGHTS.tobytes())
    return inside


def test_a_sound_file_is_read_without_weights_that_lie_beside_it(folder: Path) -> None:
    path = written(folder / "a.onnx", small(outside={"location": "weights.bin", "offset": 0, "length": SIZE}))
    (weights,) = read_model(path).graph.initializer
    assert weights.name == "w"
    assert not weights.raw_data
    x = np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)
    np.testing.assert_allclose(load(path, threads=1)(x), expected(x), rtol=1e-5)
    np.testing.assert_allclose(load(path, runtime="openvino", threads=1)(x), expected(x), rtol=1e-5)


def test_a_hub_s_links_to_a_folder_of_both_files_are_followed(folder: Path) -> None:
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
def test_weights_outside_the_folder_are_refused_before_anything_is_opened(
    folder: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    (folder / "up").symlink_to(folder.parent)
    path = written(folder / "a.onnx", small(outside={"location": location, "offset": 0, "length": SIZE}))
    opened: list[str] = []
    real = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda file, *rest, **more: opened.append(str(file)) or real(file, *rest, **more)
    )
    said = refusal(path)
    assert "outside the folder of the file" in said
    assert location in said
    assert not [file for file in opened if "secret" in file or file == "/etc/hostname"]


def test_an_absolute_path_is_refused_even_to_the_right_file(folder: Path) -> None:
    path = written(folder / "a.onnx", small(outside={"location": str(folder / "weights.bin")}))
    assert "outside the folder" in refusal(path)


def test_an_address_in_memory_is_no_place_for_weights(folder: Path) -> None:
    """A tag of ONNX Runtime's own; OpenVINO would read from that address and end the process."""
    outside = {"location": "*/_ORT_MEM_ADDR_/*", "offset": 4096, "length": SIZE}
    assert "weights are missing" in refusal(written(folder / "a.onnx", small(outside=outside)))


def test_hidden_weights_are_found_wherever_they_stand(folder: Path) -> None:
    """In a constant inside a branch inside an operator."""
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
    assert "outside the folder" in refusal(written(folder / "a.onnx", small(nodes, initializers=[true])))


@pytest.mark.parametrize(
    ("outside", "says"),
    [
        ({"location": "none.bin"}, "weights are missing: expected the file none.bin beside it"),
        ({"location": ""}, "does not say in which"),
        ({"location": "a\0b"}, "does not say in which"),
        ({"location": "weights.bin", "offset": 8}, "take 48 bytes, found 40"),
        ({"location": "weights.bin", "offset": -4, "length": SIZE}, "found 0"),
        ({"location": "weights.bin", "length": 10**15}, f"found {10**15}"),
        ({"location": "weights.bin", "offset": "many"}, "no number"),
    ],
)
def test_weights_that_are_not_where_the_file_says_are_refused(folder: Path, outside: dict, says: str) -> None:
    assert says in refusal(written(folder / "a.onnx", small(outside=outside)))


@pytest.mark.parametrize("length", [0, 1, 60, -1])
def test_a_truncated_file_is_refused_in_one_sentence(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(small().SerializeToString()[:length])
    assert "cannot be loaded as ONNX" in refusal(path)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n" + bytes(300), b"PK\x03\x04" + bytes(300), b"<net/>", b"\x08\x07"])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    assert "cannot be loaded as ONNX" in refusal(tmp_path / "a.onnx")


def test_a_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    for reader in (read_model, load, load_in_openvino):
        with pytest.raises(MissingFileError, match="no such file"):
            reader(tmp_path / "a.onnx")


def test_absurd_shapes_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    for dims, says in (([4, 3, 10**9, 10**9], "take 48000000000000000000 bytes"), ([4, -3, 1, 1], "-3")):
        model = small()
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)
        assert says in refusal(written(tmp_path / "a.onnx", model))
    for shape in ([1, 3, 10**6, 10**6], ["n", 3, -4, 4]):
        assert "the input 'x' is of size" in refusal(written(tmp_path / "a.onnx", small(shape=shape)))


def test_a_circular_graph_is_refused_naming_the_circle(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["r", "w"], ["c"]), helper.make_node("Relu", ["c"], ["r"]), mean("c")]
    said = refusal(written(tmp_path / "a.onnx", small(nodes)))
    assert "circular" in said
    assert "Conv" in said
    assert "Relu" in said


def test_operators_in_another_order_are_no_fault(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", small([mean("c"), CONV]))
    x = np.ones((1, 3, 4, 4), np.float32)
    np.testing.assert_allclose(load(path, threads=1)(x), expected(x), rtol=1e-5)


def test_an_operator_that_reads_nothing_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["nowhere", "w"], ["c"]), mean("c")]
    assert "reads 'nowhere', which nothing gives" in refusal(written(tmp_path / "a.onnx", small(nodes)))


def test_custom_operators_are_named_with_their_domain(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sharpen", ["x", "w"], ["c"], domain="acme.vision"), mean("c")]
    said = refusal(written(tmp_path / "a.onnx", small(nodes, domains=["acme.vision"])))
    assert "acme.vision.Sharpen" in said
    assert "custom" in said


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cnov", ["x", "w"], ["c"]), mean("c")]
    assert "uses Cnov, which ONNX (opset 17) does not know" in refusal(written(tmp_path / "a.onnx", small(nodes)))
    newer = [CONV, helper.make_node("Gelu", ["c"], ["d"]), mean("d")]  # of opset 20
    assert "Gelu" in refusal(written(tmp_path / "a.onnx", small(newer)))


def test_names_do_nothing_to_the_terminal(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sha\nrp\x1b[2J", ["x", "w"], ["c"], domain="acme"), mean("c")]
    assert "acme.Sha?rp?[2J" in refusal(written(tmp_path / "a.onnx", small(nodes, domains=["acme"])))


def test_an_operator_with_attributes_that_it_does_not_have_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], magic=3), mean("c")]
    assert "magic" in refusal(written(tmp_path / "a.onnx", small(nodes)))


def test_a_file_s_own_functions_are_no_custom_operators(tmp_path: Path) -> None:
    model = small([CONV, helper.make_node("Twice", ["c"], ["t"], domain="own"), mean("t")], domains=["own"])
    add = helper.make_node("Add", ["a", "a"], ["b"])
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], [add], [helper.make_opsetid("", 17)]))
    x = np.ones((1, 3, 4, 4), np.float32)
    runner = load(written(tmp_path / "a.onnx", model), threads=1)
    np.testing.assert_allclose(runner(x), 2 * expected(x), rtol=1e-5)


def test_an_operator_that_only_openvino_lacks_is_named_by_it(tmp_path: Path) -> None:
    nodes = [
        CONV,
        mean("c", "m"),
        helper.make_node("CDist", ["m", "m"], ["y"], domain="com.microsoft", metric="euclidean"),
    ]
    path = written(tmp_path / "a.onnx", small(nodes, domains=["com.microsoft"]))
    with pytest.raises(RunnerError, match=r"a\.onnx: cannot be loaded by OpenVINO .*com\.microsoft\.CDist"):
        load_in_openvino(path)


def test_names_that_are_no_text_and_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    whole = small(metadata={"note": "plain"}).SerializeToString()
    assert "no text" in refusal_of_bytes(tmp_path, whole.replace(b"plain", b"pl\xffin"))
    refusal_of_bytes(tmp_path, whole.replace(b"Conv", b"Co\xffv"))
    model = small()
    model.opset_import[0].version = 2**40
    refusal(written(tmp_path / "a.onnx", model))
    refusal(written(tmp_path / "a.onnx", small(outside={"location": "a" * 5000})))


def refusal_of_bytes(folder: Path, content: bytes) -> str:
    (folder / "a.onnx").write_bytes(content)
    return refusal(folder / "a.onnx")


def test_damage_anywhere_is_one_sentence_or_none(tmp_path: Path) -> None:
    """Files with a byte changed: they run, or are refused; nothing else comes out."""
    noise, whole = np.random.default_rng(0), small(metadata={"note": "plain"}).SerializeToString()
    path, said = tmp_path / "a.onnx", []
    for _ in range(400):
        content = bytearray(whole)
        content[noise.integers(0, len(whole))] = noise.integers(0, 256)
        path.write_bytes(content)
        try:
            load(path, threads=1)
        except RunnerError as error:
            said.append(str(error))
    assert 40 < len(said) < 400
    assert not [text for text in said if "\n" in text]


def test_an_unreadable_file_is_one_sentence(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", small())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    with pytest.raises(RunnerError, match="cannot be read"):
        read_model(path)


def test_what_the_file_holds_comes_back_whole(tmp_path: Path) -> None:
    model = small(metadata={"a": "b"})
    assert read_model(written(tmp_path / "a.onnx", model)) == onnx.load(tmp_path / "a.onnx")
