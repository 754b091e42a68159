"""Generators of hostile ONNX files, recipes and records."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Case = tuple[str, str, Callable[[Path], Path]]


def list_hostile_onnx() -> list[Case]:
    """ONNX files with weights elsewhere, absurd sizes, cycles, unknown operators, and damaged text."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper
    from onnx_files import mean, small

    def conv(*names: str) -> Any:
        return helper.make_node("Conv", list(names), ["c"])

    outside = [
        "../secret.bin", "/etc/passwd", "/dev/zero", "/proc/self/mem", "link.bin", "pipe.bin", "..\\secret.bin",
        "*/_ORT_MEM_ADDR_/*", "", "a\0b", "file:///etc/passwd", "./../../secret.bin",
    ]  # fmt: skip
    models: list[tuple[str, str, Any]] = [
        ("external data", repr(where), partial(small, outside={"location": where, "offset": 0, "length": 48}))
        for where in outside
    ]
    for what, dims in {
        "2**40 weights": [1 << 20, 1 << 20, 1, 1],
        "negative": [4, -3, 1, 1],
        "2**63": [1 << 62, 2, 1, 1],
    }.items():
        models.append(("sizes", f"a weight of {what}", partial(with_dims, dims)))
    shapes: list[list[int | str]] = [["n", 3, 10**6, 10**6], ["n", 3, -4, 4], ["n", 3, 0, 0], ["n", 10**9, 4, 4], []]
    models += [("sizes", f"an input of {shape}", partial(small, shape=shape)) for shape in shapes]
    cycle = [conv("r", "w"), helper.make_node("Relu", ["c"], ["r"]), mean("c")]
    models.append(("graph", "a cycle", partial(small, cycle)))
    models.append(
        ("graph", "a node that reads itself", partial(small, [helper.make_node("Relu", ["c"], ["c"]), mean("c")]))
    )
    models.append(("graph", "no producer", partial(small, [conv("x", "nothing"), mean("c")])))
    models.append(("graph", "two producers", partial(small, [conv("x", "w"), conv("x", "w"), mean("c")])))
    models.append(("graph", "no nodes", partial(small, [])))
    models.append(("graph", "deep branches", partial(small, [deep_branch(200), conv("x", "w"), mean("c")])))
    models.append(("graph", "a function that calls itself", recursive_function))
    for domain, name in (
        ("com.evil", "Run"),
        ("ai.onnx.contrib", "PyOp"),
        ("com.microsoft", "Nope"),
        ("", "PythonOp"),
        ("", "Nope"),
    ):
        node = helper.make_node(name, ["x"], ["c"], domain=domain)
        models.append(
            ("operators", f"{domain}.{name}", partial(small, [node, mean("c")], domains=[domain] if domain else []))
        )
    for what, tensor in {
        "text": helper.make_tensor("z", TensorProto.STRING, [1], [b"\xff\xfe"]),
        "an unknown type": TensorProto(name="z", dims=[1], data_type=999, raw_data=b"\0"),
        "short data": TensorProto(name="z", dims=[99], data_type=1, raw_data=b"\0" * 4),
        "two kinds of data": TensorProto(name="z", dims=[1], data_type=1, raw_data=b"\0" * 4, float_data=[1.0]),
        "a name twice": numpy_helper.from_array(np.zeros(3, np.float32), "w"),
    }.items():
        models.append(
            (
                "weights",
                what,
                partial(
                    small,
                    [conv("x", "w"), helper.make_node("Add", ["c", "z"], ["d"]), mean("d")],
                    initializers=[tensor],
                ),
            )
        )
    cases: list[Case] = [(part, what, partial(write_onnx, f"{i}", make)) for i, (part, what, make) in enumerate(models)]
    for what, content in {
        "empty": b"", "zeros": bytes(4096), "a length of 2**62": b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x3f",
        "a thousand groups": b"\x3b" * 1000, "text": b"<html>", "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
        "deep messages": nested_messages(10_000),
    }.items():  # fmt: skip
        cases.append(("bytes", what, partial(write_bytes_as, f"bytes {what}", ".onnx", content)))
    return cases


def nested_messages(depth: int) -> bytes:
    """A ModelProto whose graph contains an attribute that contains a graph, and so on."""
    content = b""
    for _ in range(depth):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            content = tag + varint(len(content)) + content
    return b"\x08\x08" + b"\x3a" + varint(len(content)) + content


def varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def with_dims(dims: list[int]) -> Any:
    from onnx_files import small

    model = small()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    return model


def deep_branch(depth: int) -> Any:
    from onnx import helper

    out = [helper.make_tensor_value_info("b", 1, None)]
    node = helper.make_node("Identity", ["x"], ["b"])
    for _ in range(depth):
        graph = helper.make_graph([node], "g", [], out)
        node = helper.make_node("If", ["nothing"], ["b"], then_branch=graph, else_branch=graph)
        if node.ByteSize() > 1 << 20:
            break
    return node


def recursive_function() -> Any:
    from onnx import helper
    from onnx_files import mean, small

    call = helper.make_node("F", ["x"], ["c"], domain="own")
    model = small([call, mean("c")], domains=["own"])
    body = [helper.make_node("F", ["x"], ["c"], domain="own")]
    function = helper.make_function("own", "F", ["x"], ["c"], body, [helper.make_opsetid("own", 1)])
    model.functions.append(function)
    return model


def write_onnx(name: str, make: Callable[[], Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    secret = folder.parent / "secret.bin"
    secret.write_bytes(bytes(48))
    for link, target in (("link.bin", "../secret.bin"), ("zero.bin", "/dev/zero")):
        if not (folder / link).is_symlink():
            (folder / link).symlink_to(target)
    if not (folder / "pipe.bin").exists():
        os.mkfifo(folder / "pipe.bin")
    path = folder / f"{name}.onnx"
    path.write_bytes(make().SerializeToString())
    return path


def write_bytes_as(name: str, suffix: str, content: bytes, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{suffix}"
    path.write_bytes(content)
    return path


RECIPE = """\
teachers:
  - model: {teacher}
student:
  model: {student}
data:
  unlabeled: {images}
method:
  name: {method}
training:
  steps: 1
  device: cpu
"""
GOOD = {"teacher": "embedded/fashion_wrn16_2", "student": "wrn16_1", "images": "embedded/photos", "method": "kd"}


def list_hostile_recipes(tripwire: Path) -> list[Case]:
    """Recipes with YAML tags, bombs, code by name, values without bounds, and files that are no files."""
    path = str(tripwire)
    own = tripwire.with_name("hostile_code.py")
    own.write_text(f"open({path!r}, 'w').close()\nName = None\n")
    recipe = RECIPE.format(**GOOD)
    texts = {
        "python/object/apply": f"a: !!python/object/apply:os.system ['touch {path}']",
        "python/name": "a: !!python/name:os.system",
        "python/module": "a: !!python/module:hostile_code",
        "python/object/new": f"a: !!python/object/new:os.mkdir ['{path}']",
        "own tag": "a: !evil x",
        "merge bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
        "deep lists": "a: " + "[" * 50_000 + "]" * 50_000,
        "deep maps": "".join(" " * i + f"a{i}:\n" for i in range(3000)),
        "an anchor in itself": "a: &a [*a]",
        "a key twice": recipe + "method:\n  name: mosaic\n",
        "two documents": recipe + "---\n" + recipe,
        "no UTF-8": "\udcff\udcfe",
        "a null byte": recipe + "\0",
        "a list": "- 1\n- 2\n",
        "a number": "42",
        "empty": "",
        "a key of a list": "? [1, 2]\n: 3\n",
        "terminal escapes": recipe + '"\\x1b]0;owned\\x07": 1\n',
    }
    changes: dict[str, dict[str, str]] = {
        "code as method": {"method": "hostile_code:Name"},
        "code as student": {"student": "hostile_code:Name"},
        "code as teacher": {"teacher": "hostile_code:Name"},
        "trusted pickle": {"teacher": "embedded/fashion_wrn16_2\n    trust_pickle: true"},
        "a device as teacher": {"teacher": "/dev/zero"},
        "a pipe as teacher": {"teacher": str(tripwire.with_name("pipe"))},
        "a device as images": {"images": "/dev/zero"},
        "1e9 shards": {"images": "'/tmp/{0..999999999}.tar'"},
        "shards in 20 braces": {"images": "'" + "{a,b}" * 20 + ".tar'"},
        "a path with a null byte": {"images": '"a\\0b"'},
        "an endless name": {"student": "x" * 100_000},
    }
    pipe = tripwire.with_name("pipe")
    if not pipe.exists():
        os.mkfifo(pipe)
    texts |= {name: RECIPE.format(**GOOD | change) for name, change in changes.items()}
    texts |= {
        f"{key}: {value}": recipe + f"  {key}: {value}\n"
        for key, value in (
            ("seed", 2**70), ("seed", -1), ("batch_size", -1), ("batch_size", 10**30), ("batch_size", ".nan"),
            ("log_every", 0), ("save_every", 0), ("keep_checkpoints", 0), ("precision", "fp4"), ("ema_decay", 2),
        )
    } | {
        f"lr: {value}": RECIPE.format(**GOOD | {"method": f"kd\n  lr_S: {value}"})
        for value in (".inf", ".nan", -1, "1e400")
    }  # fmt: skip
    return [
        ("recipe", name, partial(write_bytes_as, f"{i}", ".yaml", text.encode(errors="surrogateescape")))
        for i, (name, text) in enumerate(texts.items())
    ]


def write_hostile_run(folder: Path, tripwire: Path) -> list[str]:
    """A run whose records have hostile texts, numbers and pictures; return the texts."""
    from profiles.latency.benchmark import Latency
    from profiles.records import Record, append_records

    payloads = [
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>",
        "javascript:alert(3)", "' onmouseover='alert(4)", '" onclick="alert(5)', "=cmd|'/C calc'!A0", "\r=1+1",
        " =1+1", "\t@SUM(1)", "+1+1", "-1+cmd", "\x1b]0;owned\x07", "{{ 7*7 }}", "<!--", "]]>", "\u202egnp.exe",
        "＝1+1", "</style><style>*{display:none}",
    ]  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "eps.png").write_bytes(
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({tripwire}) (w) file closefile\n%%EOF\n".encode()
    )
    os.mkfifo(folder / "pipe.png")
    (folder / "outside.png").symlink_to("/etc/passwd")
    latency = Latency(1.5, 2.0, 3.0, 1.6, 0.0, 600.0, 1, 10, 1, "torch", "cpu", "fp32", None, 0.5)
    pictures = ["eps.png", "pipe.png", "outside.png", "../../../etc/passwd", "/etc/passwd"] * 4
    records = [
        Record(
            text, role="student", method=text, architecture=text, image_size=(32, 32), metrics={"accuracy": 0.5},
            macs=10, params=20, latencies=[latency], run={"steps": 1, "note": text}, machine={"cpu": text},
            versions={text: text}, images={text: name},
        )
        for text, name in zip(payloads, pictures, strict=False)
    ]  # fmt: skip
    append_records(folder, records)
    return payloads
