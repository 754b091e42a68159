"""Read a `torch.export` program of unknown origin, and write it anew with nothing but what was checked.

torch's loader trusts a program: it runs pickles, evaluates guards and expressions, imports the modules of Python types,
and opens the file a second time with another reader if the first one fails. So it never sees the file. It gets an
archive that is built here from the graph, the tensors and the names.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.errors import CompressError
from compress.models.file_safety import check_unpacked_size, open_archive, unsafe_file_error
from compress.models.operators import is_allowed_operator

GRAPH = "models/model.json"
#: payload -> prefix of its files
PAYLOADS = {"data/weights/model_weights_config.json": "weight", "data/constants/model_constants_config.json": "tensor"}
IGNORED_RECORDS = re.compile(r"\.data/.*|extra/.*|archive_format|archive_version|byteorder|data/sample_inputs/.*")
PAYLOAD_FILE = re.compile(r"(weight|tensor)_\d{1,7}")
#: parts of the graph and of the program that computing needs; the loader evaluates some of the others
PROGRAM_KEYS = ("graph_module", "opset_version", "range_constraints", "schema_version", "verifiers", "torch_version")
MODULE_KEYS = ("graph", "signature", "module_call_graph")
PAYLOAD_KEYS = ("path_name", "is_param", "use_pickle", "tensor_meta")
#: names become names of variables and attributes in generated Python code
VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
DOTTED_NAME = re.compile(r"(?:(?!__)\w+(?:\.(?!__)\w+)*)?", re.ASCII)
#: texts of operators: "bilinear", "bhqk,bhkd->bhqd", messages of assertions
TEXT = re.compile(r"[\w .,:;<>=!()\[\]'\"/*+-]{0,500}", re.ASCII)
VERSION = re.compile(r"[\w.+-]{0,100}", re.ASCII)
SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}")
#: how sympy prints an integer expression over symbols: no attribute, no text but symbols
SYMBOLIC_EXPRESSION = re.compile(
    r"(?:\b(?:Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|Abs|Equality|Eq|Unequality|Ne|GreaterThan|LessThan"
    r"|StrictGreaterThan|StrictLessThan|And|Or|Not|true|false|floor|ceiling|FloorDiv|ModularIndexing|Where|PythonMod"
    r"|CleanDiv|CeilToInt|FloorToInt|CeilDiv|PowByNatural|IntTrueDiv|FloatTrueDiv|TruncToInt|RoundToInt|ToFloat"
    r"|Identity)\b|'[a-z]{1,4}\d{1,6}'|\b[a-z]{1,4}\d{1,6}\b|\b(?:positive|nonnegative|negative|integer|real)=True"
    r"|\d{1,19}(?:\.\d{1,19})?|\*(?!\*)|[\s()+/,<>=!&|-])*"
)
MAX_EXPRESSION = 2000
#: nodes of an input or output structure in Python
TREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
MAX_TREE_DEPTH = 8


def read_program(path: Path) -> io.BytesIO:
    """Return a program that only computes, as an archive for `torch.export.load`.

    Raises:
        CompressError: It is damaged, of an old format, or unsafe.
    """
    reader, names = open_archive(path)
    check_unpacked_size(path, reader, names)
    if "archive_format" not in names or GRAPH not in names or not names_of_payloads(names):
        raise CompressError(f"{path}: not a program of torch 2.9 or newer; load and save it again with a newer torch.")
    if len(set(names)) != len(names):
        raise unsafe_file_error(path, "two records with one name")
    records: dict[str, bytes] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if name == GRAPH:
            records[name] = to_json(clean_program(path, read_json(path, reader, name)))
        elif name in PAYLOADS:
            records |= clean_payload(path, reader, name, read_json(path, reader, name))
        elif not (folder in ("data/weights", "data/constants") and PAYLOAD_FILE.fullmatch(file)) and (
            not IGNORED_RECORDS.fullmatch(name)
        ):
            raise unsafe_file_error(path, f"the record {name[:80]!r}")
    fixed = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", ".data/version": b"6\n"}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, record in {**fixed, "data/sample_inputs/model.pt": b"", **records}.items():
            archive.writestr(f"program/{name}", record)
    content.seek(0)
    return content


def names_of_payloads(names: list[str]) -> bool:
    return all(name in names for name in PAYLOADS)


def to_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def read_json(path: Path, reader: Any, name: str) -> dict[str, Any]:
    try:
        content = json.loads(reader.get_record(name))
    except (RuntimeError, ValueError, RecursionError, MemoryError) as error:
        reason = type(error).__name__
        raise CompressError(f"{path}: {name} is damaged ({reason}); export the program again.") from error
    if not isinstance(content, dict):
        raise damaged_program_error(path, name)
    return content


def damaged_program_error(path: Path, where: str) -> CompressError:
    return CompressError(f"{path}: {where} is damaged; export the program again.")


def clean_program(path: Path, program: Mapping[str, Any]) -> dict[str, Any]:
    """The graph of a program, without guards, metadata and the structure of its submodules."""
    module = program.get("graph_module")
    calls = module.get("module_call_graph") if isinstance(module, dict) else None
    if not isinstance(module, dict) or not isinstance(calls, list) or not calls or not isinstance(calls[0], dict):
        raise damaged_program_error(path, GRAPH)
    clean = {key: program[key] for key in PROGRAM_KEYS if key in program}
    clean["graph_module"] = {key: module[key] for key in MODULE_KEYS if key in module}
    clean["graph_module"] |= {"metadata": {}, "treespec_namedtuple_fields": {}, "module_call_graph": calls[:1]}
    for constraint in clean.get("range_constraints") or {}:
        if not SYMBOL.fullmatch(constraint):
            raise unsafe_file_error(path, f"the symbol {constraint[:80]!r}")
    for key, value in iter_strings(clean):
        check_string(path, key, value)
    return {**drop_metadata(clean), "guards_code": []}


def drop_metadata(content: dict[str, Any]) -> dict[str, Any]:
    """Empty the metadata of all operators: the loader looks up names in it."""
    stack: list[Any] = [content]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if "metadata" in value:
                value["metadata"] = {}
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
    return content


def iter_strings(content: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, value) for every string outside metadata, and ("", key) for every key.

    Strings in a list have the key of the list.
    """
    stack: list[tuple[str, Any]] = [("", content)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            yield from (("", name) for name in value)
            stack.extend((name, part) for name, part in value.items() if name != "metadata")
        elif isinstance(value, list):
            stack.extend((key, part) for part in value)


def check_string(path: Path, key: str, value: str) -> None:
    """Refuse a text of the graph that is not a plain name, or an operator or expression that is not allowed."""
    if key in ("target", "as_operator"):
        if not is_allowed_operator(value):
            raise unsafe_file_error(path, f"the operator {value[:80]!r}")
    elif key == "expr_str":
        if len(value) > MAX_EXPRESSION or not SYMBOLIC_EXPRESSION.fullmatch(value):
            raise unsafe_file_error(path, f"the expression {value[:80]!r}")
    elif key in ("in_spec", "out_spec"):
        check_tree(path, value)
    elif key in ("name", "as_name"):
        if value and not VARIABLE.fullmatch(value):
            raise unsafe_file_error(path, f"the name {value[:80]!r}")
    elif key in ("as_string", "as_strings", "as_string_to_argument"):
        if not TEXT.fullmatch(value):
            raise unsafe_file_error(path, f"the text {value[:80]!r}")
    elif key == "torch_version":
        if not VERSION.fullmatch(value):
            raise unsafe_file_error(path, f"the version {value[:80]!r}")
    elif not (VARIABLE if key == "" else DOTTED_NAME).fullmatch(value):
        raise unsafe_file_error(path, f"the name {value[:80]!r}")


def check_tree(path: Path, text: str) -> None:
    """Refuse a structure of inputs or outputs other than nested tuples, lists and dictionaries."""
    try:
        version, tree = json.loads(text)
        is_allowed = version == 1 and is_plain_tree(tree, MAX_TREE_DEPTH)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        is_allowed = False
    if not is_allowed:
        raise unsafe_file_error(path, f"the structure {text[:80]!r}")


def is_plain_tree(tree: Mapping[str, Any], depth: int) -> bool:
    context = json.loads(tree["context"] or "null")
    keys = context if isinstance(context, list) else [] if context is None else [context]
    return (
        depth > 0
        and set(tree) == {"type", "context", "children_spec"}
        and tree["type"] in TREE_TYPES
        and all(isinstance(key, int) or (isinstance(key, str) and TEXT.fullmatch(key)) for key in keys)
        and all(is_plain_tree(child, depth - 1) for child in tree["children_spec"])
    )


def clean_payload(path: Path, reader: Any, config_name: str, config: Mapping[str, Any]) -> dict[str, bytes]:
    """The tensors of a payload: bytes as they are, and pickles written anew.

    Raises:
        CompressError: A pickle contains something else than a tensor, or a name is not plain.
    """
    folder = config_name.rpartition("/")[0]
    entries = config.get("config")
    if not isinstance(entries, dict):
        raise damaged_program_error(path, config_name)
    clean: dict[str, Any] = {}
    records: dict[str, bytes] = {}
    for name, entry in entries.items():
        file = str(entry.get("path_name")) if isinstance(entry, dict) else ""
        if not PAYLOAD_FILE.fullmatch(file) or not file.startswith(PAYLOADS[config_name]):
            raise unsafe_file_error(path, f"the custom object {file[:80]!r}")
        if not DOTTED_NAME.fullmatch(name):
            raise unsafe_file_error(path, f"the name {name[:80]!r}")
        clean[name] = {key: entry[key] for key in PAYLOAD_KEYS if key in entry}
        if f"{folder}/{file}" in records:
            continue
        try:
            content = reader.get_record(f"{folder}/{file}")
        except RuntimeError as error:
            raise damaged_program_error(path, f"{folder}/{file}") from error
        if entry.get("use_pickle"):
            content = rewrite_pickle(path, file, content)
        elif not content:
            check_empty_tensor(path, file, entry)
        records[f"{folder}/{file}"] = content
    return {**records, config_name: to_json({"config": clean})}


def check_empty_tensor(path: Path, file: str, entry: Mapping[str, Any]) -> None:
    """Refuse a tensor without bytes that claims a size: the loader would allocate it."""
    try:
        sizes = [int(side["as_int"]) for side in entry["tensor_meta"]["sizes"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise damaged_program_error(path, file) from error
    if math.prod(sizes) != 0:
        raise damaged_program_error(path, file)


def rewrite_pickle(path: Path, name: str, content: bytes) -> bytes:
    """Read one tensor without running anything, and pickle it again."""
    try:
        tensor = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251 - tensors only
    except Exception as error:  # the restricted unpickler raises errors of every kind for damaged input
        raise unsafe_file_error(path, f"a pickle in {name} that is more than a tensor") from error
    if not isinstance(tensor, Tensor):
        raise unsafe_file_error(path, f"a pickle in {name} that is more than a tensor")
    buffer = io.BytesIO()
    torch.save(tensor.detach().clone(), buffer)
    return buffer.getvalue()
