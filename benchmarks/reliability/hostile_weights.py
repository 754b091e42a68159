"""A generator of hostile weight files. What they would run creates the tripwire, a file."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

#: (part of the row, what it is, function that writes it into a folder and returns its path, or None)
Case = tuple[str, str, Callable[[Path], Path | None]]


class Payload:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class StatePayload:
    """An object whose pickle runs code when its state is restored."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload

    def __reduce__(self) -> Any:
        return (dict, (), {"state": self.payload}, None, iter([("key", self.payload)]))


def list_payloads(tripwire: Path) -> dict[str, Any]:
    """Objects that create the tripwire when they are unpickled without restrictions."""
    import builtins
    import importlib
    import runpy
    import subprocess

    path = str(tripwire)
    source = f"open({path!r}, 'w').close()"
    script = tripwire.with_name("script.py")
    script.write_text(source)
    return {
        "os.mkdir": Payload(os.mkdir, path),
        "os.system": Payload(os.system, f"touch '{path}'"),
        "subprocess": Payload(subprocess.check_call, ["touch", path]),
        "eval": Payload(builtins.eval, source),
        "exec": Payload(builtins.exec, source),
        "open": Payload(builtins.open, path, "w"),
        "getattr": Payload(getattr, Payload(importlib.import_module, "os"), "system"),
        "runpy": Payload(runpy.run_path, str(script)),
        "shutil": Payload(shutil.copy, str(script), path),
        "state": StatePayload(Payload(os.mkdir, path)),
    }


def list_assembled(tripwire: Path) -> dict[str, bytes]:
    """Pickles written by hand, with opcodes that `pickle.dumps` does not use."""
    path = str(tripwire).encode()
    source = b"open('%s','w').close()" % path
    return {
        "INST": b"(S'touch %s'\nios\nsystem\n." % path,
        "OBJ": b"(cos\nsystem\nS'touch %s'\no." % path,
        "GLOBAL by a dotted name": b'cbuiltins\nexec\n(S"%s"\ntR.' % source,
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c%c%s\x85R." % (6 + len(path), b"touch " + path),
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(](S'touch'\nS'%s'\nete\x81." % path,
        "EXT": b"\x80\x02\x82\x01.",
        "torch.load inside": b"ctorch\nload\n(S'%s'\ntR." % path,
        "torch.jit.load inside": b"ctorch.jit\nload\n(S'%s'\ntR." % path,
        "__main__ attribute": b"c__main__\n__builtins__\n.",
        "numpy memmap": b"cnumpy\nmemmap\n(S'%s'\nS'uint8'\nS'w+'\nI0\n(I9\nttR." % path,
        "torch.from_file": b"ctorch\nfrom_file\n(S'%s'\nI01\nI9\ntR." % path,
        "truncated": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
        "4 GB string": b"\x80\x04\x8e\xff\xff\xff\xff\x00\x00\x00\x00.",
        "memo of 2**31": b"\x80\x02]r\xff\xff\xff\x7f.",
        "deep list": b"\x80\x02" + b"(" * 200_000 + b"l" * 200_000 + b".",
    }


def write_zip(folder: Path, name: str, pickled: bytes) -> Path:
    """A file as torch.save writes it, with another pickle."""
    import torch

    path = folder / f"{name}.pt"
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(4)}}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for one in old.namelist():
            new.writestr(one, pickled if one.endswith("data.pkl") else old.read(one))
    return path


def write_legacy(folder: Path, name: str, pickled: bytes) -> Path:
    """PyTorch's format before 1.6: magic number, version, system, object, keys."""
    path = folder / f"{name}.pth"
    head = [pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(head) + pickled + pickle.dumps([], 2))
    return path


def write_tar(folder: Path, name: str, pickled: bytes) -> Path:
    """PyTorch's format before 0.1.10."""
    path = folder / f"{name}.bin"
    with tarfile.open(path, "w") as archive:
        for member, content in (("pickle", pickled), ("storages", pickled), ("tensors", pickled)):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_plain(folder: Path, name: str, pickled: bytes) -> Path:
    path = folder / f"{name}.pkl"
    path.write_bytes(pickled)
    return path


CONTAINERS = {"zip": write_zip, "legacy": write_legacy, "tar": write_tar, "plain": write_plain}


def list_pickles(tripwire: Path) -> list[Case]:
    cases: list[Case] = []
    for container, write in CONTAINERS.items():
        for name, payload in list_payloads(tripwire).items():
            protocols = range(pickle.HIGHEST_PROTOCOL + 1) if name in ("os.mkdir", "state") else (2,)
            for protocol in protocols:
                what = f"{name}, protocol {protocol}, {container}"
                pickled = pickle.dumps({"state_dict": payload}, protocol)
                cases.append(("pickle", what, partial(write_in, write, what, pickled)))
        for name, pickled in list_assembled(tripwire).items():
            cases.append(("pickle", f"{name}, {container}", partial(write_in, write, f"{name}, {container}", pickled)))
    return cases


def write_in(write: Callable[[Path, str, bytes], Path], what: str, content: bytes, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write(folder, what.replace("/", "_"), content)


def raw(suffix: str, folder: Path, name: str, content: bytes) -> Path:
    path = folder / f"{name}{suffix}"
    path.write_bytes(content)
    return path


def list_archives() -> list[Case]:
    """Bombs, false sizes and overlapping data."""
    cases: list[Case] = []

    def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return buffer.getvalue()

    bomb = zip_of({"archive/data.pkl": b"\x80\x02}.", "archive/data/0": bytes(300 << 20), "archive/version": b"3\n"})
    nested = zip_of(
        {f"archive/{i}.zip": bomb for i in range(20)} | {"archive/data.pkl": b"\x80\x02}.", "archive/version": b"3\n"}
    )
    for name, content in {
        "zip bomb": bomb,
        "zip bombs in a zip": nested,
        "zip with 50,000 members": zip_of({f"archive/data/{i}": b"" for i in range(50_000)}, zipfile.ZIP_STORED),
        "zip whose names leave it": zip_of(
            {"../../TRIPWIRE": b"x", "/TRIPWIRE": b"x", "archive/data.pkl": b"\x80\x02}."}
        ),
        "zip of 65,535 members in its end": b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0",
        "zip64 of 2 TB": zip64_header(2 << 40),
    }.items():
        cases.append(("archive", name, partial(write_in, partial(raw, ".pt"), name, content)))
    for name, header, body in list_safetensors():
        content = (
            struct.pack("<Q", header if isinstance(header, int) else len(header))
            + (b"" if isinstance(header, int) else header)
            + body
        )
        cases.append(("safetensors", name, partial(write_in, partial(raw, ".safetensors"), name, content)))
    return cases


def zip64_header(size: int) -> bytes:
    """A zip whose directory announces a stored member of `size` bytes."""
    name = b"archive/data.pkl"
    extra = struct.pack("<HHQQ", 1, 16, size, size)
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 45, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra))
    central = struct.pack(
        "<IHHHHHHIIIHHHHHII", 0x02014B50, 45, 45, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra),
        0, 0, 0, 0, 0,
    )  # fmt: skip
    body = local + name + extra + b"\x80\x02}."
    directory = central + name + extra
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(directory), len(body), 0)
    return body + directory + end


def list_safetensors() -> list[tuple[str, bytes | int, bytes]]:
    def header(**tensors: Any) -> bytes:
        return json.dumps(tensors).encode()

    def tensor(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
        return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}

    return [
        ("header of 2 TB", 2 << 40, b"{"),
        ("header of 2**64 - 1 bytes", (1 << 64) - 1, b"{"),
        ("offsets that overlap", header(a=tensor([4], 0, 16), b=tensor([4], 8, 24)), bytes(24)),
        ("offsets beyond the end", header(a=tensor([4], 0, 16)), bytes(8)),
        ("offsets that go back", header(a=tensor([4], 16, 0)), bytes(16)),
        ("negative offsets", header(a=tensor([4], -16, 0)), bytes(16)),
        ("tensor of 2 TB", header(a=tensor([1 << 39], 0, 2 << 40)), bytes(16)),
        ("product that overflows", header(a=tensor([1 << 32, 1 << 32, 4], 0, 16)), bytes(16)),
        ("negative size", header(a=tensor([-4], 0, 16)), bytes(16)),
        ("unknown type", header(a=tensor([4], 0, 16, "OBJ")), bytes(16)),
        ("gap", header(a=tensor([4], 8, 24)), bytes(24)),
        ("data after the end", header(a=tensor([4], 0, 16)), bytes(64)),
        ("deep JSON", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b""),
        ("two keys of one name", b"{%s,%s}" % ((header(a=tensor([4], 0, 16))[1:-1],) * 2), bytes(16)),
        ("no JSON", b"\xff" * 64, b""),
        ("empty header", b"{}", b""),
        ("100,000 empty tensors", header(**{str(i): tensor([0], 0, 0) for i in range(100_000)}), b""),
    ]  # fmt: skip


#: how the source of a TorchScript function can name torch.save, or reach a file, a shell or the terminal otherwise
SCRIPTS = {
    "torch.save": "torch.save(x, '{path}')",
    "torch . save": "torch . save(x, '{path}')",
    "spread over lines": "torch.save(\n        x,\n        '{path}')",
    "save with a comment": "torch.save(  # save\n        x, '{path}')",
    "ops.aten.save": "torch.ops.aten.save(x, '{path}')",
    "ops.aten.save.default": "torch.ops.aten.save.default(x, '{path}')",
    "aten::save by schema": "ops.aten.save(x, '{path}')",
    "from_file": "y = torch.from_file('{path}', True, 4)",
    "ops.aten.from_file": "y = torch.ops.aten.from_file('{path}', True, 4)",
    "import as": "from torch import save as plus\n    plus(x, '{path}')",
    "getattr": "getattr(torch, 'sa' + 've')(x, '{path}')",
    "path in parts": "torch.save(x, '{head}' + '{tail}')",
    "path by join": "torch.save(x, ''.join(['{head}', '{tail}']))",
    "path by format": "torch.save(x, '{{}}{{}}'.format('{head}', '{tail}'))",
    "list of tensors": "torch.save([x], '{path}')",
    "tuple": "torch.save((x, 1), '{path}')",
    "in a condition": "if bool(x.sum() < 1e30):\n        torch.save(x, '{path}')",
    "in a loop": "for i in range(3):\n        torch.save(x, '{path}')",
    "in a list": "z = [torch.save(x, '{path}') for i in range(1)]",
    "alias in a loop": "for f in [1]:\n        torch.save(x, '{path}')",
    "print": "print('\\x1b]0;owned\\x07')",
    "warn": "torch.ops.aten.warn('x', 1)",
    "image write": "torch.ops.image.write_file('{path}', x.to(torch.uint8))",
    "endless loop": "while True:\n        x = x + 1",
    "loop of 2**60": "for i in range(2 ** 60):\n        x = x + 1",
    "64 GB tensor": "z = torch.zeros([1000000, 16000])",
    "assert": "assert False, 'x'",
    "fork": "f = torch.jit.fork(torch.relu, x)",
}


def list_scripts(tripwire: Path) -> list[Case]:
    """TorchScript whose forward, setstate or constants do more than compute."""
    path = str(tripwire)
    fill = {"path": path, "head": path[:5], "tail": path[5:]}
    cases: list[Case] = []
    for name, line in SCRIPTS.items():
        body = line.format(**fill)
        cases.append(("TorchScript", f"{name} in forward", partial(write_script, name, body, "forward")))
    for name in ("torch.save", "from_file", "ops.aten.save", "endless loop"):
        body = SCRIPTS[name].format(**fill)
        cases.append(("TorchScript", f"{name} in __setstate__", partial(write_script, f"{name} set", body, "setstate")))
    return cases


def write_script(name: str, body: str, where: str, folder: Path) -> Path | None:
    """Script a classifier with these lines in it; None if PyTorch's compiler does not accept them."""
    import linecache

    import torch

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name.replace('/', '_').replace(' ', '-')}-{where}.pt"
    lines = "\n        ".join(one.strip(" ") if not one.startswith("    ") else one[4:] for one in body.split("\n"))
    state = f"""
    @torch.jit.export
    def __getstate__(self):
        return (self.training, self.w)

    @torch.jit.export
    def __setstate__(self, state: tuple[bool, torch.Tensor]):
        self.training = state[0]
        self.w = state[1]
        x = self.w
        {lines}
"""
    forward = f"        {lines}\n" if where == "forward" else ""
    source = f"""
class Hostile(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.zeros(3, 4))

    def forward(self, x):
{forward}        return x.mean((2, 3)) @ self.w
{state if where == "setstate" else ""}"""
    file = f"<hostile {target.name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {"torch": torch, "__name__": "hostile"}
    try:
        exec(compile(source, file, "exec"), names)  # the benchmark's own text
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(names["Hostile"]()), str(target))
    except Exception:
        return write_script_archive(target, body)
    return target


def write_script_archive(target: Path, body: str) -> Path | None:
    """What the compiler refuses is written into the code of a harmless archive."""
    import torch

    class Harmless(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.zeros(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) @ self.w

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Harmless(), torch.zeros(1, 3, 8, 8)), buffer)
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for one in old.namelist():
            content = old.read(one)
            if one.endswith(".py") and b"-> Tensor:\n" in content:
                head, _, rest = content.partition(b"-> Tensor:\n")
                content = head + b"-> Tensor:\n" + lines.encode() + rest
            new.writestr(one, content)
    return target


#: (name, key of the graph's JSON, value) put into a torch.export program
PROGRAM_CHANGES: list[tuple[str, str, str]] = [
    *((f"operator {name}", "target", name) for name in (
        "torch.ops.aten.save.default", "torch.ops.aten.from_file.default", "torch.ops.image.write_file.default",
        "torch.ops.prim.Print.default", "torch.save", "torch.load", "os.system", "builtins.eval", "_operator.call",
        "torch.hub.load", "torch.utils.cpp_extension.load", "torch.ops.load_library", "torch._dynamo.eval_frame",
        "torch.ops.higher_order.print", "torch.ops.aten._print.default", "subprocess.run", "#os.system",
        "torch.ops.aten.__class__", "torch.ops.profiler._record_function_enter.default",
    )),
    ("expression with __import__", "expr_str", "__import__('os').mkdir('{path}')"),
    ("expression 9**9**9**9", "expr_str", "9**9**9**9"),
    ("expression with a lambda", "expr_str", "(lambda: open('{path}', 'w'))()"),
]  # fmt: skip


def list_programs(tripwire: Path) -> list[Case]:
    cases: list[Case] = [
        ("torch.export", what, partial(write_program, what, key, value.replace("{path}", str(tripwire))))
        for what, key, value in PROGRAM_CHANGES
    ]
    for name, payload in list_payloads(tripwire).items():
        pickled = pickle.dumps(payload, 2)
        cases += [
            ("torch.export", f"{name} in {record}", partial(write_program_record, name, record, pickled))
            for record in ("sample_inputs", "constants", "weights", "extra")
        ]
    return cases


def read_program() -> bytes:
    """A small program of torch.export, written once."""
    import torch

    if not hasattr(read_program, "content"):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
        buffer = io.BytesIO()
        shapes = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(net, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes), buffer)
        read_program.content = buffer.getvalue()  # pyright: ignore
    return read_program.content  # pyright: ignore


def write_program(what: str, key: str, value: str, folder: Path) -> Path:
    """A program in which the first value of this key is another one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{what.replace('/', '_').replace(' ', '-')[:80]}.pt2"

    def change(content: Any) -> bool:
        if isinstance(content, dict):
            if key in content and isinstance(content[key], str):
                content[key] = value
                return True
            return any(change(one) for one in content.values())
        return isinstance(content, list) and any(change(one) for one in content)

    with zipfile.ZipFile(io.BytesIO(read_program())) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            if "/models/" in name and name.endswith(".json"):
                graph = json.loads(content)
                change(graph)
                content = json.dumps(graph).encode()
            new.writestr(name, content)
    return path


def write_program_record(what: str, record: str, pickled: bytes, folder: Path) -> Path:
    """A program with a pickle in one of its records."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{what}-{record}.pt2"
    with zipfile.ZipFile(io.BytesIO(read_program())) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        used = False
        for name in old.namelist():
            content = old.read(name)
            if f"data/{record}" in name and not name.endswith(".json"):
                content, used = pickled, True
            if name.endswith("_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            new.writestr(name, content)
        if not used:
            new.writestr(f"{old.namelist()[0].partition('/')[0]}/data/{record}/model.pt", pickled)
    return path


def list_cards(tripwire: Path) -> list[Case]:
    """Model directories whose card names code, or numbers without bounds."""
    changes: dict[str, dict[str, Any]] = {
        "code of the user": {"architecture": "script:main"},
        "os:system": {"architecture": "os:system"},
        "a path": {"architecture": f"{tripwire.with_name('script')}:main"},
        "2e9 classes": {"classes": 2_000_000_000},
        "1e30 classes": {"classes": 10**30},
        "negative classes": {"classes": -1},
        "size of 1e6": {"image_size": [1_000_000, 1_000_000]},
        "size [-1, 0]": {"image_size": [-1, 0]},
        "size of text": {"image_size": "big"},
        "std of 0": {"std": [0, 0, 0]},
        "mean of 1e308": {"mean": [1e308, 1e308, 1e308]},
        "unknown architecture": {"architecture": "../../etc/passwd"},
        "architecture as list": {"architecture": ["wrn16_1"]},
        "task as object": {"task": {"a": 1}},
        "provenance as text": {"provenance": "x" * 1000, "metrics": "y"},
    }
    cases: list[Case] = [("card", name, partial(write_card, name, change, None)) for name, change in changes.items()]
    texts = {
        "deep JSON": "[" * 100_000 + "]" * 100_000,
        "deep JSON objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "NaN": '{"classes": NaN}',
        "number of 10,000 digits": '{"classes": ' + "9" * 10_000 + "}",
        "no UTF-8": "\udcff",
        "a list": "[1, 2]",
        "null": "null",
        "empty": "",
    }
    return cases + [("card", name, partial(write_card, name, {}, text)) for name, text in texts.items()]


def write_card(name: str, change: dict[str, Any], text: str | None, folder: Path) -> Path:
    """The embedded teacher with another card, sealed anew, because an attacker can do that too."""
    from compress.files import add_hash
    from compress.models import serialization
    from compress.models.loading import embedded_dir

    path = folder / f"card {name}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(embedded_dir() / "fashion_wrn16_2", path)
    card = path / serialization.CARD_FILE
    if text is None:
        content = json.loads(card.read_text()) | change
        text = json.dumps(add_hash(content, serialization.CARD_HASH))
    card.write_text(text, errors="surrogateescape")
    return path


def list_hostile_weights(tripwire: Path) -> list[Case]:
    """All cases."""
    return [
        *list_pickles(tripwire), *list_archives(), *list_scripts(tripwire), *list_programs(tripwire),
        *list_cards(tripwire),
    ]  # fmt: skip
