"""Stand-ins for the types that training scripts store beside the weights, so that a file is read without its code.

The restricted unpickler builds a stand-in wherever a file names one of these types. A stand-in holds what the file
gives it and does nothing. NumPy's own functions are not called, because a crafted data type could read any memory.
"""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

#: data types of NumPy whose bytes are read as they are
PLAIN_NUMPY_TYPE = re.compile(r"[biufcSU]\d{1,6}")
#: limits of what is read beside the weights
MAX_DEPTH, MAX_PARTS, MAX_TENSOR = 6, 100_000, 16
#: keys under which training scripts store their options
OPTION_KEYS = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt", "opts", "params", "meta")
PATH_NAMES = ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
#: classes that are dictionaries with attributes
MAPPING_NAMES = (
    "addict.addict.Dict",
    "easydict.EasyDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "ml_collections.config_dict.config_dict.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "munch.Munch",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "yacs.config.CfgNode",
)
#: classes that only hold values
VALUE_NAMES = (
    *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "range",
                                      "slice", "str", "tuple")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"numpy.{name}" for name in ("bool", "bool_", "complex128", "complex64", "float16", "float32", "float64", "int16",
                                   "int32", "int64", "int8", "ndarray", "str_", "uint16", "uint32", "uint64", "uint8")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata", "SCMode")),
    *(f"omegaconf.nodes.{name}Node" for name in ("Any", "Boolean", "Bytes", "Float", "Integer", "Path", "String")),
    "decimal.Decimal",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "types.SimpleNamespace",
    "typing.Any",
    "uuid.UUID",
    "zoneinfo.ZoneInfo._unpickle",
)  # fmt: skip


class InertValue:
    """A value of a class that is not loaded: its arguments and its state."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> InertValue:
        value = object.__new__(cls)
        value.arguments, value.state = arguments, None
        return value

    def __setstate__(self, state: Any) -> None:
        self.state = state


class InertMapping:
    """Creates a plain dictionary in place of one with attributes."""

    def __new__(cls, *arguments: Any) -> OrderedDict[Any, Any]:  # pyright: ignore[reportInconsistentConstructor]
        return OrderedDict(arguments[0]) if arguments and isinstance(arguments[0], Mapping) else OrderedDict()


class InertList:
    """Creates a plain list in place of a `deque`."""

    def __new__(cls, values: Any = (), *_: Any) -> list[Any]:  # pyright: ignore[reportInconsistentConstructor]
        return list(values) if isinstance(values, list | tuple) else []


class InertPath:
    """Creates a text in place of a path of any system."""

    def __new__(cls, *parts: Any) -> str:  # pyright: ignore[reportInconsistentConstructor]
        return "/".join(part for part in parts if isinstance(part, str))


class NumpyType(InertValue):
    """A data type of NumPy; `code` is None for objects and records."""

    @property
    def code(self) -> str | None:
        name = self.arguments[0] if self.arguments and isinstance(self.arguments[0], str) else ""
        state = self.state if isinstance(self.state, tuple) else ()
        if PLAIN_NUMPY_TYPE.fullmatch(name) is None or any(part is not None for part in state[2:5]):
            return None
        order = state[1] if len(state) > 1 and state[1] in ("<", ">") else "|" if name[1:] == "1" else "<"
        return order + name


class NumpyArray(InertValue):
    """An array of NumPy."""

    def read(self) -> np.ndarray | None:
        """The values; None if they are no plain numbers or texts."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return None
        _, shape, kind, is_fortran, content = self.state
        values = read_numpy(kind, content)
        try:
            return None if values is None else values.reshape(shape, order="F" if is_fortran else "C")
        except (TypeError, ValueError):
            return None


def read_numpy(kind: Any, content: Any) -> np.ndarray | None:
    code = kind.code if isinstance(kind, NumpyType) else None
    if code is None or not isinstance(content, bytes):
        return None
    try:
        return np.frombuffer(content, np.dtype(code))
    except (TypeError, ValueError):
        return None


class NumpyScalar:
    """Creates a Python number or text in place of a scalar of NumPy."""

    def __new__(cls, *arguments: Any) -> Any:
        values = read_numpy(*arguments) if len(arguments) == 2 else None
        return values[0].item() if values is not None and len(values) == 1 else InertValue(*arguments)


def list_stand_ins() -> list[Any]:
    """(stand-in, name in the file) of each type, for `torch.serialization.safe_globals`."""
    pairs: list[Any] = [argparse.Namespace]
    pairs += [(InertValue, name) for name in VALUE_NAMES]
    pairs += [(InertMapping, name) for name in MAPPING_NAMES]
    pairs += [(InertMapping, "collections.defaultdict"), (InertList, "collections.deque")]
    pairs += [(InertPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in PATH_NAMES]
    pairs += [(NumpyType, "numpy.dtype")]
    for core in ("numpy.core", "numpy._core"):
        pairs += [(NumpyArray, f"{core}.multiarray._reconstruct"), (NumpyScalar, f"{core}.multiarray.scalar")]
    # the unpickler accepts a state only for types that it knows by a name
    return [*pairs, *((kind, f"{kind.__module__}.{kind.__name__}") for kind in (InertValue, NumpyArray, NumpyType))]


def to_plain(value: Any) -> Any:
    """`value` as Python types: options of argparse, OmegaConf and Lightning become dictionaries.

    What has no such form, and what is nested too deeply or too long, is left out or becomes None.
    """
    return PlainCopy().copy(value, MAX_DEPTH)


class PlainCopy:
    """Copies values up to a number of parts, because a small file can contain one list many times."""

    def __init__(self) -> None:
        self.left = MAX_PARTS

    def copy(self, value: Any, depth: int) -> Any:
        self.left -= 1
        value = unwrap_value(value)
        if isinstance(value, Mapping | list | tuple):
            return self.copy_parts(value, depth - 1) if depth > 0 else None
        return value if isinstance(value, str | bool | int | float) else None

    def copy_parts(self, value: Mapping[Any, Any] | list[Any] | tuple[Any, ...], depth: int) -> Any:
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        parts: dict[Any, Any] = {}
        for key, part in pairs:
            if self.left <= 0:
                break
            if isinstance(key, str | int):
                parts[key] = self.copy(part, depth)
        return parts if isinstance(value, Mapping) else list(parts.values())


def unwrap_value(value: Any) -> Any:
    """The dictionary, list, number or text that `value` stands for."""
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.numel() <= MAX_TENSOR and value.layout == torch.strided else None
    if isinstance(value, NumpyArray):
        array = value.read()
        return array.tolist() if array is not None and array.size <= MAX_PARTS else None
    if isinstance(value, InertValue):
        state = value.state if isinstance(value.state, Mapping) else {}
        return state.get("_content", state.get("_val", state))
    return value


def iter_options(content: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
    """Yield the options of the training script in a checkpoint, as dictionaries, and the values beside them."""
    for key in OPTION_KEYS:
        options = to_plain(content[key]) if key in content else None
        if isinstance(options, Mapping):
            yield options
    yield to_plain({key: value for key, value in content.items() if not isinstance(value, Mapping)})
