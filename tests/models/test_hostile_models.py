"""Model files as a hostile author would write them: nothing runs, nothing hangs, every refusal is a sentence."""

import contextlib
import copy
import functools
import io
import json
import os
import socket
import struct
import warnings
import zipfile

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from compress import api
from compress.errors import CompressError, UsageError
from compress.files import add_hash
from compress.models.card import ModelCard
from compress.models.checkpoints import read_checkpoint
from compress.models.inspection import inspect_model
from compress.models.loading import load_model
from compress.models.network import Network
from compress.models.operators import is_allowed_operator
from compress.models.overrides import ModelOverrides
from compress.models.registry import build_network
from compress.models.serialization import save_model
from compress.units import MAX_CLASSES, MAX_IMAGE_SIDE

DATA = {"unlabeled": "embedded/photos", "validation": "embedded/fashion"}
TRUSTED = ModelOverrides(trust_pickle=True, image_size=(8, 8))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@functools.cache
def program_bytes() -> bytes:
    buffer, shapes = io.BytesIO(), ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(small().eval(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


@functools.cache
def onnx_bytes() -> bytes:
    """Images -> their mean per channel times weights."""
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    weights = [
        numpy_helper.from_array(np.asarray([2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.full((3, 4), 0.5, np.float32), "w"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [images], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def save_script(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(path))


def model_directory(path):
    card = ModelCard("wrn16_1", 3, (8, 8))
    network = build_network(card)
    save_model(path, network, card)
    return path


def edit_card(directory, **changes):
    """Change a card and seal it again, as its author can."""
    path = directory / "config.json"
    content = json.loads(path.read_text())
    content.pop("card_sha256", None)
    path.write_text(json.dumps(add_hash({**content, **changes}, "card_sha256")))


def two_directories(seen_by_torch: bytes, seen_by_python: bytes) -> bytes:
    """An archive of which torch's reader and `zipfile` see different records.

    The end record names the offset of the first directory, which torch's reader uses. `zipfile` takes the directory
    that lies before the end record.
    """
    end, old = seen_by_torch.rfind(b"PK\5\6"), seen_by_python.rfind(b"PK\5\6")
    count, size, offset = struct.unpack("<H2L", seen_by_torch[end + 10 : end + 20])
    own_size, own_offset = struct.unpack("<2L", seen_by_python[old + 12 : old + 20])
    padding = max(0, size - own_size)
    shift = end - (end + own_offset + own_size + padding - (own_size + padding) - offset)
    directory, position = b"", own_offset
    while position < own_offset + own_size:
        entry = list(struct.unpack("<4s6H3L5H2L", seen_by_python[position : position + 46]))
        length = 46 + sum(entry[10:13])
        rest = seen_by_python[position + 46 : position + length]
        position += length
        entry[16] += shift
        if position >= own_offset + own_size:
            entry[12], rest = entry[12] + padding, rest + bytes(padding)
        directory += struct.pack("<4s6H3L5H2L", *entry) + rest
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, own_size + padding, offset, 0)
    return seen_by_torch[:end] + seen_by_python[:own_offset] + directory + tail


class Tripwire:
    """Creates a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_second_directory_of_program_is_not_read(tmp_path):
    def change(name, content):
        if not name.endswith("models/model.json"):
            return content
        return json.dumps({**json.loads(content), "schema_version": {"major": 99, "minor": 0}})

    evil = io.BytesIO()
    torch.save({"a": Tripwire(tmp_path / "executed")}, evil)
    old = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program_bytes())) as source, zipfile.ZipFile(old, "w") as archive:
        graph = next(name for name in source.namelist() if name.endswith("models/model.json"))
        archive.writestr("version", "8.20")
        archive.writestr("serialized_exported_program.json", source.read(graph))
        for part in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{part}.pt", evil.getvalue())
    path = tmp_path / "t.pt2"
    path.write_bytes(two_directories(rewrite(program_bytes(), change), old.getvalue()))
    assert "version" in zipfile.ZipFile(path).namelist()
    assert "version" not in torch._C.PyTorchFileReader(str(path)).get_all_records()
    with pytest.raises(CompressError):
        load_model(path)
    assert not (tmp_path / "executed").exists()


def rewrite(archive: bytes, change) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("operator", "is_allowed"),
    [
        ("torch.ops.aten.conv2d.default", True),
        ("torch.ops.aten.add_.Tensor", True),
        ("torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default", True),
        ("torch.ops.torchvision.deform_conv2d.default", True),
        ("_operator.getitem", True),
        ("torch.ops.aten.from_file.default", False),
        ("torch.ops.aten.save.default", False),
        ("torch.ops.aten._print.default", False),
        ("torch.ops.aten.warn.default", False),
        ("torch.ops.aten.set_.source_Storage", False),
        ("torch.ops.aten.resize_.default", False),
        ("torch.ops.aten._sparse_coo_tensor_unsafe.default", False),
        ("torch.ops.aten.fbgemm_linear_int8_weight.default", False),
        ("torch.ops.aten.quantized_lstm.data", False),
        ("torch.ops.aten.add", False),
        ("torch.ops.aten.__class__.__init__", False),
        ("torch.ops.prim.Print.default", False),
        ("torch.ops.image.read_file.default", False),
        ("torch.ops.image.write_file.default", False),
        ("torch.ops.torchvision.read_video_from_file.default", False),
        ("torch.ops.torchvision._cuda_version.default", False),
        ("torch.ops.profiler._record_function_enter.default", False),
        ("torch.ops.higher_order.triton_kernel_wrapper_functional", False),
        ("torch.ops.higher_order.aoti_call_delegate", False),
        ("torch.ops.higher_order.while_loop", False),
        ("torch.ops.load_library", False),
        ("torch.load", False),
        ("torch.sym_max", True),
        ("_operator.attrgetter", False),
        ("math.factorial", False),
        ("#aoti:evil", False),
        ("builtins.eval", False),
        ("", False),
    ],
)
def test_operators_of_programs(operator, is_allowed):
    assert is_allowed_operator(operator) == is_allowed


def set_text(graph, where, text):
    """Put `text` into one place of a serialized program that the loader evaluates or turns into code."""
    module = graph["graph_module"]
    node = module["graph"]["nodes"][0]
    if where == "placeholder":
        module["graph"]["inputs"][-1]["as_tensor"]["name"] = text
    elif where == "result":
        node["name"] = node["outputs"][0]["as_tensor"]["name"] = text
    elif where == "keyword":
        node["inputs"][0] |= {"name": text, "kind": 2}
    elif where == "buffer":
        module["signature"]["input_specs"][0]["parameter"]["parameter_name"] = text
    elif where == "tree":
        module["module_call_graph"][0]["signature"]["out_spec"] = text
    elif where == "key":
        module["graph"]["tensor_values"][text] = next(iter(module["graph"]["tensor_values"].values()))
    elif where == "range":
        graph["range_constraints"][text] = {"min_val": 0, "max_val": 1}
    elif where == "operator":
        node["inputs"].append({"name": "f", "arg": {"as_operator": text}, "kind": 1})
    elif where == "expression":
        sizes = list(module["graph"]["tensor_values"].values())[-1]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": text, "hint": None}}


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("placeholder", "x=print(1)"),
        ("result", "torch.ops.aten.add"),
        ("result", "a\nimport os"),
        ("keyword", "a=1,**b"),
        ("buffer", "__class__.__base__.forward"),
        ("tree", '[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'),
        ("tree", '[1, {"type": "builtins.tuple", "context": "{\\"__enum__\\": true}", "children_spec": []}]'),
        ("key", "a b"),
        ("range", "u" + "9" * 30),
        ("operator", "torch.load"),
        ("expression", "__import__('os').system('true')"),
        ("expression", "9**9**9**9"),
        ("expression", "Lambda(s0, s0)"),
        ("expression", "(" * 5000),
    ],
)
def test_texts_of_programs_are_refused(tmp_path, where, text):
    def change(name, content):
        if not name.endswith("models/model.json"):
            return content
        graph = json.loads(content)
        set_text(graph, where, text)
        return json.dumps(graph)

    path = tmp_path / "t.pt2"
    path.write_bytes(rewrite(program_bytes(), change))
    with pytest.raises(CompressError, match="refused"):
        load_model(path)


@pytest.mark.parametrize("record", ["data/aotinductor/model/a.so", "models/other.json", "data/weights/custom_obj_0"])
def test_other_records_of_programs_are_refused(tmp_path, record):
    path = tmp_path / "t.pt2"
    content = io.BytesIO(program_bytes())
    with zipfile.ZipFile(content, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/{record}", b"x")
    path.write_bytes(content.getvalue())
    with pytest.raises(CompressError, match="refused"):
        load_model(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pt2", ".bin", ".ckpt", ".onnx", ".safetensors", ""])
def test_torchscript_needs_trust_under_every_name(tmp_path, suffix):
    class Saving(nn.Module):
        def forward(self, x):
            torch.save(x, "leak.pt")
            return x.mean((2, 3))

    path = tmp_path / f"t{suffix}"
    save_script(Saving(), path)
    for use in (load_model, inspect_model):
        with pytest.raises(CompressError), contextlib.chdir(tmp_path):
            use(path, ModelOverrides(image_size=(8, 8)))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "use",
    [
        lambda path: api.distill(path, unlabeled="embedded/photos", steps=1, student="wrn16_1"),
        lambda path: api.distill("embedded/fashion_wrn16_2", unlabeled="embedded/photos", steps=1, student="wrn16_1",
                                 settings=[f"student.weights={path}"]),
        lambda path: api.estimate_training(path, unlabeled="embedded/photos", steps=1, student="wrn16_1"),
        lambda path: api.inspect(path, image_size=(8, 8)),
        lambda path: api.inspect("embedded/fashion_wrn16_2", unlabeled="embedded/photos", features=path,
                                 reference="embedded/fashion", samples=2),
        lambda path: api.evaluate(path, "embedded/fashion", image_size=(8, 8)),
        lambda path: api.profile(path, image_size=(8, 8)),
        lambda path: api.benchmark([path], image_size=(8, 8)),
        lambda path: api.export(path, path + ".onnx", image_size=(8, 8)),
        lambda path: api.synthesize(path, count=1),
        lambda path: api.plan_comparison(path, methods=["kd"], student="wrn16_1", steps=1, **DATA),
        lambda path: api.plan_sweep(teacher=path, methods=["kd"], students=["wrn16_1"], steps=1, **DATA),
    ],
)  # fmt: skip
def test_every_use_of_torchscript_needs_trust(tmp_path, monkeypatch, use):
    monkeypatch.chdir(tmp_path)
    save_script(small(), tmp_path / "t.pt")
    with pytest.raises(CompressError, match="trust"):
        use(str(tmp_path / "t.pt"))


class Forever(nn.Module):
    def forward(self, x):
        i = 0
        while True:
            i += 1
            if i < 0:
                break
        return x.mean((2, 3))


class Huge(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) + torch.ones(1000000000000).sum()


def loop_model(trips: int) -> bytes:
    """The model of `onnx_bytes` after a loop that copies its output."""
    model = onnx.load_model_from_string(onnx_bytes())
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (
        ("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, []), ("v", TensorProto.FLOAT, None))]  # fmt: skip
    results = [helper.make_tensor_value_info("d", TensorProto.BOOL, []),
               helper.make_tensor_value_info("u", TensorProto.FLOAT, None)]  # fmt: skip
    copies = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Neg", ["v"], ["u"])]
    body = helper.make_graph(copies, "body", values, results)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Loop", ["trips", "", "before"], ["y"], body=body))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(trips, np.int64), "trips"))
    return model.SerializeToString()


def test_onnx_loop_that_ends(tmp_path):
    (tmp_path / "t.onnx").write_bytes(loop_model(2))
    assert load_model(tmp_path / "t.onnx")[1].classes == 4


@pytest.mark.slow  # a process per case, which imports torch
@pytest.mark.parametrize("kind", ["torchscript", "onnx", "memory"])
def test_endless_program_is_ended(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("COMPRESS_PROBE_SECONDS", "5")
    path = tmp_path / ("t.onnx" if kind == "onnx" else "t.pt")
    path.write_bytes(loop_model(2**60)) if kind == "onnx" else save_script(
        Huge() if kind == "memory" else Forever(), path
    )
    with pytest.raises(CompressError, match=path.name):
        load_model(path, TRUSTED)


@pytest.mark.slow
def test_other_process_describes_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_PROBE_SECONDS", "300")
    (tmp_path / "t.pt2").write_bytes(program_bytes())
    model, card = load_model(tmp_path / "t.pt2")
    assert (card.classes, card.image_size) == (3, (8, 8))
    assert model(card.example_input()).shape == (1, 3)
    save_script(small(), tmp_path / "t.pt")
    with pytest.raises(UsageError, match="--image-size"):
        load_model(tmp_path / "t.pt", ModelOverrides(trust_pickle=True))


def test_limit_must_be_a_number(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_PROBE_SECONDS", "soon")
    (tmp_path / "t.pt2").write_bytes(program_bytes())
    with pytest.raises(UsageError, match="COMPRESS_PROBE_SECONDS"):
        load_model(tmp_path / "t.pt2")


def damage(module: nn.Module, name: str, value: float) -> nn.Module:
    module.state_dict()[name].view(-1)[0] = value
    return module


@pytest.mark.parametrize("kind", ["directory", "checkpoint", "module", "program", "torchscript"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_named(tmp_path, kind, value):
    overrides = ModelOverrides(image_size=(8, 8), trust_pickle=kind == "torchscript")
    module, spec, name = damage(small().eval(), "1.running_mean", value), tmp_path / "t.pt", "running_mean"
    if kind == "module":
        spec = module
    elif kind == "program":
        spec = tmp_path / "t.pt2"
        shapes = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(module, (torch.rand(2, 3, 8, 8),), dynamic_shapes=shapes), spec)
    elif kind == "torchscript":
        save_script(module, spec)
    else:
        card = ModelCard("wrn16_1", 3, (8, 8))
        network, name = build_network(card), "conv1.weight"
        name = next(iter(network.body.state_dict()))
        damage(network.body, name, value)
        spec = tmp_path / ("t.pt" if kind == "checkpoint" else "model")
        torch.save(network.body.state_dict(), spec) if kind == "checkpoint" else save_model(spec, network, card)
        overrides = ModelOverrides(architecture="wrn16_1") if kind == "checkpoint" else ModelOverrides()
    with pytest.raises(CompressError, match=name):
        load_model(spec, overrides)
    if kind in ("directory", "checkpoint"):
        assert inspect_model(spec, overrides).non_finite == [name]


def test_masks_may_be_infinite(tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0]))

        def forward(self, x):
            return (x.mean((2, 3)) + self.mask).softmax(1)

    assert load_model(Masked(), ModelOverrides(image_size=(8, 8)))[1].classes == 3


def test_onnx_weights_with_nan_are_named(tmp_path):
    model = onnx.load_model_from_string(onnx_bytes())
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full((3, 4), np.nan, np.float32), "w"))
    (tmp_path / "t.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CompressError, match=r"'w'.*NaN"):
        load_model(tmp_path / "t.onnx")


def test_outputs_with_nan_are_refused():
    class Dividing(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) * 0 / 0

    with pytest.raises(CompressError, match="NaN"):
        load_model(Dividing(), ModelOverrides(image_size=(8, 8)))


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "loop", "long"])
@pytest.mark.parametrize("name", ["t.pt", "t.pt2", "t.onnx", "t.safetensors", "t"])
def test_files_that_are_none(tmp_path, kind, name):
    path = tmp_path / name
    with contextlib.ExitStack() as stack:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "loop":
            path.symlink_to(path)
        else:
            path = tmp_path / (5000 * "a" + name)
        for use in (load_model, inspect_model):
            with pytest.raises(UsageError):
                use(str(path), ModelOverrides(image_size=(8, 8)))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_pipes_in_model_directories(tmp_path, file):
    directory = model_directory(tmp_path / "m")
    (directory / file).unlink()
    os.mkfifo(directory / file)
    with pytest.raises(UsageError):
        load_model(directory)


def nested(depth):
    content = []
    for _ in range(depth):
        content = [content]
    return content


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 2_000_000_000},
        {"classes": 0},
        {"classes": MAX_CLASSES + 1},
        {"image_size": [-1, 0]},
        {"image_size": [8, MAX_IMAGE_SIDE + 1]},
        {"image_size": 8},
        {"resize": -5},
        {"task": "poetry"},
        {"mean": [float("nan")] * 3},
        {"std": [0.0] * 3},
        {"mean": [0.5]},
        {"class_names": ["a"]},
        {"class_names": ["a", "b", "c" * 10**6]},
        {"architecture": ["wrn16_1"]},
        {"provenance": {"a": nested(100)}},
        {"metrics": {"accuracy": float("inf")}},
        {"format": 10**9},
        {"unknown": 1},
    ],
)
def test_absurd_cards_are_refused(tmp_path, changes):
    directory = model_directory(tmp_path / "m")
    edit_card(directory, **changes)
    with pytest.raises(CompressError, match=r"config\.json"):
        load_model(directory)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "\x00", "[]", "null", '{"classes": 1e400}', "\ud800"]
)
def test_cards_that_are_no_json(tmp_path, text):
    directory = model_directory(tmp_path / "m")
    (directory / "config.json").write_text(text, errors="surrogatepass")
    with pytest.raises(CompressError):
        load_model(directory)
    model = onnx.load_model_from_string(onnx_bytes())
    if text.isprintable():
        model.metadata_props.add(key="compress.card", value=text)
        (tmp_path / "t.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(CompressError):
            load_model(tmp_path / "t.onnx")


def header(content: dict, size: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        header({"a": TENSOR}, 2 << 40),
        header({"a": TENSOR, "b": TENSOR}) + bytes(8),
        header({"a": {**TENSOR, "shape": [2**62, 8]}}) + bytes(8),
        header({"a": {**TENSOR, "dtype": "Q9"}}) + bytes(8),
        header({"a": {**TENSOR, "data_offsets": [8, 0]}}) + bytes(8),
        header({"__metadata__": {"a": 1}, "a": TENSOR}) + bytes(8),
        struct.pack("<Q", 50_000) + b"[" * 50_000,
        header({"a": TENSOR, "A": TENSOR | {"data_offsets": [0, 8]}}).replace(b'"A"', b'"a"') + bytes(8),
        header({str(i): {**TENSOR, "shape": [0], "data_offsets": [0, 0]} for i in range(9)}),
    ],
)
def test_damaged_safetensors(tmp_path, content):
    (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(CompressError):
        read_checkpoint(tmp_path / "t.safetensors")


def flag_bits(archive: bytes, position: int, value: int) -> bytes:
    """Change two bytes of every entry of the directory, such as the flags (8) or the method of compression (10)."""
    changed, start = bytearray(archive), archive.find(b"PK\1\2")
    while start >= 0:
        changed[start + position : start + position + 2] = struct.pack("<H", value)
        start = archive.find(b"PK\1\2", start + 1)
    return bytes(changed)


@pytest.mark.parametrize(("position", "value"), [(6, 99), (8, 1), (8, 0x20), (8, 0x2000), (10, 99), (34, 3)])
@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_archives_with_unusual_features(tmp_path, position, value, suffix):
    path = tmp_path / f"t.{suffix}"
    if suffix == "pt2":
        content = program_bytes()
    else:
        buffer = io.BytesIO()
        torch.save(build_network(ModelCard("wrn16_1", 3, (8, 8))).body.state_dict(), buffer)
        content = buffer.getvalue()
    path.write_bytes(flag_bits(content, position, value))
    with contextlib.suppress(CompressError):  # torch's reader ignores some of them
        load_model(path)


def test_names_of_records_that_are_no_text(tmp_path):
    (tmp_path / "t.pt2").write_bytes(program_bytes().replace(b"byteorder", b"byteorde\x80"))
    with pytest.raises(CompressError):
        load_model(tmp_path / "t.pt2")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1),  # LONG4 of two gigabytes
        b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"a.",  # a text of four gigabytes
        b"\x80\x02cbuiltins\nbytearray\nM\xff\xff\x85R.",
        b"\x80\x02" + b"(" * 20_000 + b"l" * 20_000 + b".",
        b"\x80\x02K\x01.",
        b"\x80\x02].",
        b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s.",  # a dictionary that contains itself
    ],
)
def test_hostile_pickles(tmp_path, content):
    (tmp_path / "t.pth").write_bytes(content)
    with pytest.raises(CompressError):
        load_model(tmp_path / "t.pth")


@pytest.mark.parametrize(
    "extra",
    [
        {"class_to_idx": {"a": 0, 1: "b"}},
        {"class_to_idx": {"a": [0]}},
        {"epoch": 10**500},
        {"lr": float("nan")},
        {10**500: 1},
    ],
)
def test_absurd_values_beside_the_weights(tmp_path, extra):
    state = build_network(ModelCard("wrn16_1", 3, (8, 8))).body.state_dict()
    torch.save({"state_dict": state, **extra}, tmp_path / "t.pth")
    result = inspect_model(tmp_path / "t.pth", ModelOverrides())
    json.dumps(result.metadata, allow_nan=False)


#: deep state of torch and the caches of the tests make timing uneven, and tmp_path lasts for all examples
QUICK = settings(max_examples=15, deadline=None, derandomize=True, database=None,
                 suppress_health_check=list(HealthCheck))  # fmt: skip
THOROUGH = settings(QUICK, max_examples=int(os.environ.get("COMPRESS_FUZZ_EXAMPLES", "500")), derandomize=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
#: (where, what) of changed bytes, and where the file ends, as shares of its length
CHANGES = st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4)
ENDS = st.just(1.0) | st.floats(0, 1)


def load_or_refuse(path):
    with warnings.catch_warnings(), contextlib.suppress(CompressError):
        warnings.simplefilter("ignore")
        network, card = load_model(path, ModelOverrides(image_size=(8, 8) if path.suffix != ".d" else None))
        assert isinstance(network, Network)
        json.dumps(card.as_dict(), allow_nan=False)


@functools.cache
def weight_bytes(suffix: str) -> bytes:
    state, buffer = build_network(ModelCard("wrn16_1", 3, (8, 8))).body.state_dict(), io.BytesIO()
    if suffix == "safetensors":
        import tempfile

        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            save_file(dict(state), file.name)
            return file.read()
    torch.save({"state_dict": state, "epoch": 1}, buffer, _use_new_zipfile_serialization=suffix == "pt")
    return buffer.getvalue()


def check_changed_bytes(folder, suffix, changes, end):
    sources = {"pt2": program_bytes, "onnx": onnx_bytes}
    content = bytearray(sources[suffix]() if suffix in sources else weight_bytes(suffix))
    for share, what in changes:
        start = int(share * len(content))
        content[start : start + len(what)] = what
    path = folder / f"t.{suffix}"
    path.write_bytes(content[: int(end * len(content))])
    load_or_refuse(path)


def check_changed_card(folder, changes):
    directory = folder / "model.d"
    if not directory.exists():
        model_directory(directory)
    before = (directory / "config.json").read_text()
    try:
        edit_card(directory, **changes)
        load_or_refuse(directory)
    finally:
        (directory / "config.json").write_text(before)


def check_changed_graph(folder, changes):
    def change(name, content):
        if not name.endswith(".json"):
            return content
        graph = json.loads(content)
        for share, what in changes:
            places = list(iter_places(graph))
            holder, key = places[int(share * len(places))]
            holder[key] = copy.deepcopy(what)
        return json.dumps(graph)

    path = folder / "t.pt2"
    path.write_bytes(rewrite(program_bytes(), change))
    load_or_refuse(path)


def iter_places(content):
    """Yield (container, key) of all values of JSON."""
    stack = [content]
    while stack:
        value = stack.pop()
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            if isinstance(value[key], dict | list):
                stack.append(value[key])


CARD_CHANGES = st.dictionaries(
    st.sampled_from(list(ModelCard.__dataclass_fields__)) | st.text(max_size=5), JSON, min_size=1, max_size=3
)
GRAPH_CHANGES = st.lists(st.tuples(st.floats(0, 0.999), JSON), min_size=1, max_size=2)
SUFFIXES = st.sampled_from(["pt", "pth", "safetensors", "pt2", "onnx"])


@QUICK
@given(suffix=SUFFIXES, changes=CHANGES, end=ENDS)
def test_changed_bytes(tmp_path_factory, suffix, changes, end):
    check_changed_bytes(tmp_path_factory.getbasetemp(), suffix, changes, end)


@QUICK
@given(changes=CARD_CHANGES)
def test_changed_cards(tmp_path_factory, changes):
    check_changed_card(tmp_path_factory.getbasetemp(), changes)


@QUICK
@given(changes=GRAPH_CHANGES)
def test_changed_graphs(tmp_path_factory, changes):
    check_changed_graph(tmp_path_factory.getbasetemp(), changes)


@pytest.mark.slow
@THOROUGH
@given(suffix=SUFFIXES, changes=CHANGES, end=ENDS)
def test_many_changed_bytes(tmp_path_factory, suffix, changes, end):
    check_changed_bytes(tmp_path_factory.getbasetemp(), suffix, changes, end)


@pytest.mark.slow
@THOROUGH
@given(changes=CARD_CHANGES)
def test_many_changed_cards(tmp_path_factory, changes):
    check_changed_card(tmp_path_factory.getbasetemp(), changes)


@pytest.mark.slow
@THOROUGH
@given(changes=GRAPH_CHANGES)
def test_many_changed_graphs(tmp_path_factory, changes):
    check_changed_graph(tmp_path_factory.getbasetemp(), changes)
