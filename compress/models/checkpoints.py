"""Read weights from safetensors and torch files, unwrap them, and execute nothing in them.

Torch files are only read with torch's restricted unpickler. What it refuses (a pickled module, classes of a training
script) raises an error with the way to convert the file. Only `trust_pickle=True` overrides this.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from compress.errors import CompressError, first_line
from compress.files import require_regular_file
from compress.models.file_safety import check_unpacked_size, is_archive, open_archive, unpacked_size_limit

#: keys under which training scripts store the weights, in order of preference
PLAIN_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "module")
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "shadow")
#: prefixes that wrapper modules add to every key
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "student.", "body.")
CLASS_NAME_KEYS = ("class_names", "classes", "labels", "categories")
#: types without behavior that training scripts store beside the weights (options, NumPy numbers, paths)
SAFE_TYPES = [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, np.dtype]
#: a larger number in a file is damaged or hostile
MAX_INTEGER = 2**63
CONVERT_HINT = (
    "In the environment that created it, and only if you trust it, run: "
    'python -c "import torch; m = torch.load({name!r}, weights_only=False); '
    "torch.save(m.state_dict(), 'weights.pt')\" and use weights.pt "
    "(or load the file with --trust-pickle, which runs the code in it)."
)


@dataclass(frozen=True)
class CheckpointWeights:
    """The tensors of one network, and the other values in the file."""

    state: dict[str, Tensor]
    container: str  #: "safetensors", "torch", or "pickled module"
    wrapping: tuple[str, ...] = ()  #: removed keys and prefixes, outermost first
    metadata: dict[str, Any] = field(default_factory=dict)  #: numbers and short texts: epoch, arch, …
    class_names: list[str] | None = None
    has_ema: bool = False  #: the file also contains averaged weights
    module: nn.Module | None = None  #: only from a trusted pickle


def read_checkpoint(path: Path, *, trust_pickle: bool = False, ema: bool = False) -> CheckpointWeights:
    """Read the weights in a .safetensors, .pt, .pth, .bin or .ckpt file, without their usual wrapping.

    Args:
        path: The file.
        trust_pickle: Run pickles, which can run any code.
        ema: Prefer averaged weights if the file contains both; if there is only one kind, it is used.

    Raises:
        UsageError: There is no such regular file.
        CompressError: It is damaged, unsafe, or contains no weights.
    """
    path = require_regular_file(Path(path))
    if path.stat().st_size == 0:
        raise CompressError(f"{path}: the file is empty; copy it again.")
    if is_safetensors(path):
        content, container = read_safetensors(path), "safetensors"
    else:
        content, container = read_torch_file(path, trust_pickle=trust_pickle), "torch"
    return unwrap_checkpoint(content, path, container, ema=ema)


def is_safetensors(path: Path) -> bool:
    """From the suffix or the content: eight bytes of header length, then a JSON object."""
    if path.suffix == ".safetensors":
        return True
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CompressError(f"{path}: cannot be read ({error.strerror}).") from error
    return len(head) == 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:  # the library raises errors of several kinds for damaged headers
        reason = first_line(error)
        raise CompressError(f"{path}: truncated or not a safetensors file ({reason}); copy it again.") from error
    return {"state_dict": state, **{key: value for key, value in notes.items() if key != "format"}}


def read_torch_file(path: Path, *, trust_pickle: bool) -> Any:
    if is_archive(path):
        check_unpacked_size(path, *open_archive(path))
    try:
        with torch.serialization.safe_globals(list_safe_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - tensors only
    except pickle.UnpicklingError as error:
        blocked = parse_blocked_global(str(error))
        if blocked is None:
            raise unreadable_error(path, error) from error
        if trust_pickle:
            return load_trusted_pickle(path)
        raise CompressError(
            f"{path}: refused: found a pickle that runs {blocked}; loading it would execute code. "
            + CONVERT_HINT.format(name=path.name)
        ) from error
    except MemoryError as error:
        raise CompressError(f"{path}: needs more memory than there is, so it is damaged or hostile.") from error
    except Exception as error:  # the restricted unpickler raises errors of every kind for damaged input
        raise unreadable_error(path, error) from error


def list_safe_globals() -> list[Any]:
    """Types without behavior that the restricted unpickler may build besides tensors."""
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "bool")]
    return [*SAFE_TYPES, *numbers, (scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]


def parse_blocked_global(message: str) -> str | None:
    """The name that torch's restricted unpickler refused, from its error."""
    found = re.search(
        r"GLOBAL (\S+) (?:was not|whose module)|for unrecognized function (.+)|but got (<class .+>)", message
    )
    return next((group for group in found.groups() if group), None) if found else None


def load_trusted_pickle(path: Path) -> Any:
    """Load a pickle that the user trusts. The only place in this package that executes code in a file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=False)  # noqa: TID251 - --trust-pickle
    except (ImportError, AttributeError) as error:
        raise CompressError(f"{path}: its code is not on the Python path ({error}); install it first.") from error
    except Exception as error:  # as above
        raise unreadable_error(path, error) from error


def unreadable_error(path: Path, error: Exception) -> CompressError:
    found = re.search(r"WeightsUnpickler error:\s*(\S.*)", str(error))
    reason = found[1][:160] if found else first_line(error, 160)
    return CompressError(f"{path}: truncated, damaged or not a torch file ({reason}); copy it again.")


def unwrap_checkpoint(content: Any, path: Path, container: str, *, ema: bool) -> CheckpointWeights:
    """Remove the wrapping of a checkpoint: keys first, then prefixes common to all names."""
    wrapping: list[str] = []
    facts: dict[str, Any] = {}
    names: list[str] | None = None
    has_ema = False
    while isinstance(content, Mapping) and not is_state_dict(content):
        facts.update({str(key): value for key, value in content.items() if is_metadata_value(value)})
        names = names or read_class_names(content)
        plain, averaged = first_key(content, PLAIN_KEYS), first_key(content, EMA_KEYS)
        has_ema = has_ema or (plain is not None and averaged is not None)
        key = (averaged or plain) if ema else (plain or averaged)
        if key is None or len(wrapping) > 4:
            raise CompressError(
                f"{path}: no weights in it; found {describe_content(content)}, expected a state dict of tensors."
            )
        if not (container == "safetensors" and key == "state_dict"):
            wrapping.append(key)
        content = content[key]
    if isinstance(content, nn.Module):
        return CheckpointWeights(
            dict(content.state_dict()), "pickled module", tuple(wrapping), facts, names, has_ema, content.eval()
        )
    if not isinstance(content, Mapping):
        raise CompressError(
            f"{path}: no weights in it; found {describe_content(content)}, expected a state dict of tensors."
        )
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    state.pop("n_averaged", None)  # torch's AveragedModel counts its updates
    check_tensors(state, path)
    state, prefixes = strip_prefixes(state)
    return CheckpointWeights(state, container, (*wrapping, *prefixes), facts, names, has_ema)


def is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Whether the top level contains tensors and no further mappings."""
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    return tensors > 0 and not any(
        isinstance(value, Mapping | nn.Module) and len(getattr(value, "keys", list)()) for value in content.values()
    )


def first_key(content: Mapping[Any, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if isinstance(content.get(key), Mapping | nn.Module)), None)


def is_metadata_value(value: Any) -> bool:
    if isinstance(value, bool | int):
        return abs(value) < MAX_INTEGER
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, str) and len(value) <= 200


def read_class_names(content: Mapping[Any, Any]) -> list[str] | None:
    """Class names under one of the usual keys: a list, or a mapping name -> index."""
    for key in CLASS_NAME_KEYS:
        value = content.get(key)
        if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
            return list(value)
    table = content.get("class_to_idx")
    if isinstance(table, Mapping) and table and set(map(repr, table.values())) == set(map(str, range(len(table)))):
        return [str(name) for name in sorted(table, key=lambda name: table[name])]
    return None


def describe_content(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(repr(key)[:80] for key in list(content)[:6]) or "nothing"
        return f"a dictionary with {keys}"
    return f"a {type(content).__name__}"


def check_tensors(state: Mapping[str, Tensor], path: Path, *, allow_empty: bool = False) -> None:
    """Refuse an empty state dict, quantized or sparse tensors, and shapes larger than the file."""
    if not state and not allow_empty:
        raise CompressError(f"{path}: the state dict is empty; expected the tensors of a network.")
    room = unpacked_size_limit(path)
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CompressError(f"{path}: {key} is a quantized, sparse or meta tensor; save the float network instead.")
        if value.numel() * value.element_size() > room:
            raise CompressError(
                f"{path}: refused: {key} has shape {list(value.shape)}, more than the file can contain."
            )


def strip_prefixes(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """`state` without the prefixes that all names have, and these prefixes."""
    taken: list[str] = []
    while True:
        prefix = next((p for p in WRAPPER_PREFIXES if all(key.startswith(p) and key != p for key in state)), None)
        if prefix is None:
            return state, taken
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        taken.append(prefix)
