"""Detect the kind of a model file, and refuse programs that could run code.

The loaders of torch trust a program file: `torch.export.load` falls back to pickles, evaluates expressions and calls
any `torch.…` name. So the records are read first, with the reader that the loaders use. They are refused unless they
contain only tensors, arithmetic and tensor operators. TorchScript is not validated: the user must trust it.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from compress.errors import CompressError

FileKind = Literal["weights", "program", "script", "onnx"]

ALLOWED_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|prim|torchvision|quantized_decomposed|higher_order)\.\w+(\.\w+)?"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|getitem|and_|or_)"
    r"|torch\.sym_(max|min|not|int|float|ite|sqrt|sum)|torch\._sym_sqrt"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
#: operators that access the file system
FILE_OPERATORS = re.compile(r"\b(from_file|save|load)\b")
#: how sympy prints an integer expression over symbols: its own names, no attribute, no other string
SYMBOLIC_EXPRESSION = re.compile(
    r"(?:[A-Z][A-Za-z_]*|'[a-z]{1,4}\d+'|[a-z]{1,4}\d+|\b(?:positive|nonnegative|integer|real)=True"
    r"|floor|ceiling|\d+(?:\.\d+)?|[\s()+*/,<>=!&|-])*"
)
IDENTIFIER = re.compile(r"[\w.]*")
ALLOWED_RECORDS = {"archive_format", "archive_version", "byteorder"}


def detect_file_kind(path: Path) -> FileKind:
    """The kind of a model file: ONNX from its suffix, all else from its content."""
    if path.suffix.lower() == ".onnx":
        return "onnx"
    if path.suffix.lower() in (".xml", ".engine"):
        raise CompressError(
            f"{path}: a file for OpenVINO or TensorRT, which contains no network; give the model that it was exported "
            "from, or measure it with `compress eval` or `compress bench`."
        )
    if not zipfile.is_zipfile(path):
        if path.suffix == ".pt2":
            raise CompressError(f"{path}: truncated or not a torch.export program; export it again.")
        return "weights"
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise CompressError(f"{path}: truncated or damaged ({error}); copy it again.") from error
    if path.suffix == ".pt2" or "archive_format" in names:
        return "program"
    return "script" if "constants.pkl" in names and any(name.startswith("code/") for name in names) else "weights"


def validate_program(path: Path) -> None:
    """Refuse a `torch.export` program that could do anything but compute.

    Raises:
        CompressError: It is damaged, of an old format, or unsafe.
    """
    reader = open_reader(path)
    names: list[str] = reader.get_all_records()
    if "archive_format" not in names:
        raise CompressError(f"{path}: not a program of torch 2.8 or newer; load and save it again with a newer torch.")
    if len(set(names)) != len(names):
        raise unsafe_file_error(path, "two records with one name")
    for name in names:
        if name.startswith("models/"):
            validate_graph(path, read_json(path, reader, name))
        elif name.endswith("_config.json"):
            validate_payload(path, reader, read_json(path, reader, name), name.rpartition("/")[0])
        elif name.startswith("data/sample_inputs/") or name.endswith(".pt"):
            validate_pickle(path, name, reader.get_record(name))
        elif (
            not name.startswith(("data/weights/", "data/constants/", ".data/", "extra/"))
            and name not in ALLOWED_RECORDS
        ):
            raise unsafe_file_error(path, f"the record {name}")


def open_reader(path: Path):
    try:
        return torch._C.PyTorchFileReader(str(path))
    except RuntimeError as error:
        raise CompressError(f"{path}: truncated or damaged; copy or export it again.") from error


def read_json(path: Path, reader: Any, name: str) -> Any:
    try:
        return json.loads(reader.get_record(name))
    except (RuntimeError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CompressError(f"{path}: {name} is damaged ({error}); export the program again.") from error


def validate_graph(path: Path, graph: Any) -> None:
    """Validate all operators, expressions and names of a serialized graph."""
    for key, value in iter_strings(graph):
        if key == "target" and not (
            ALLOWED_OPERATORS.fullmatch(value) and not FILE_OPERATORS.search(value) and "__" not in value
        ):
            if not IDENTIFIER.fullmatch(value) or value.startswith(("torch", "_operator", "math", "#")):
                raise unsafe_file_error(path, f"the operator {value[:80]}")
        elif key == "expr_str" and not SYMBOLIC_EXPRESSION.fullmatch(value):
            raise unsafe_file_error(path, f"the expression {value[:80]!r}")
        elif key in ("name", "class_fqn") and not IDENTIFIER.fullmatch(value):
            raise unsafe_file_error(path, f"the name {value[:80]!r}")
        elif "default_factory" in value or "__enum__" in value:
            raise unsafe_file_error(path, "an argument type that imports code")


def iter_strings(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, value) for every string in JSON; strings in a list have the key of the list."""
    stack = [(key, content)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            stack.extend(value.items())
        elif isinstance(value, list):
            stack.extend((key, item) for item in value)


def validate_payload(path: Path, reader: Any, payload: Any, folder: str) -> None:
    """Validate weights and constants: plain tensors, or pickles that contain nothing else."""
    entries = payload.get("config", {}) if isinstance(payload, dict) else {}
    for entry in entries.values():
        name = str(entry.get("path_name"))
        if not name.startswith(("weight_", "tensor_")):
            raise unsafe_file_error(path, f"the custom object {name}")
        if entry.get("use_pickle"):
            validate_pickle(path, name, reader.get_record(f"{folder}/{name}"))


def validate_pickle(path: Path, name: str, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251 - tensors only
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise unsafe_file_error(path, f"a pickle in {name} that is more than tensors") from error


def unsafe_file_error(path: Path, what: str) -> CompressError:
    return CompressError(f"{path}: refused: found {what}, which could run code; export it again from the network.")
