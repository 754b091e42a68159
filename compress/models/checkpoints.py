"""Read weights from safetensors and torch files, unwrap them, and execute nothing in them.

Torch files are only read with torch's restricted unpickler. What it refuses (a pickled module, classes of a training
script) raises an error with the way to convert the file. Only `trust_pickle=True` overrides this.
"""

from __future__ import annotations

import json
import math
import pathlib
import pickle
import re
import shlex
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from compress.errors import CompressError, UsageError, first_line
from compress.files import require_regular_file
from compress.models.file_safety import check_unpacked_size, is_archive, open_archive, unpacked_size_limit
from compress.models.inert_types import iter_options, list_stand_ins, to_plain
from compress.models.outputs import detector_message, is_detector_class

#: keys under which training scripts store the weights, in order of preference
PLAIN_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "module")
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "shadow")
#: prefixes that wrapper modules add to every key
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "student.", "body.")
#: names that DataParallel, torch.compile, FSDP and activation checkpointing put anywhere into a key
WRAPPER_NAMES = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
#: prefixes of averaged weights beside the plain ones in one state dict
EMA_PREFIXES = ("ema_model.", "model_ema.", "ema.", "module_ema.", "ema_net.")
#: states of a training that are no networks
OTHER_STATES = frozenset({"optimizer", "optimizer_state_dict", "scheduler", "lr_scheduler", "scaler", "criterion"})
CLASS_NAME_KEYS = ("class_names", "classes", "labels", "categories", "names", "CLASSES", "id2label", "idx_to_class")
#: keys of entries that contain the class names
CLASS_NAME_GROUPS = ("meta", "dataset_meta", "args", "hyper_parameters", "hparams", "config")
#: names of parameters that no network stores as integers
FLOAT_NAMES = ("weight", "bias", "running_mean", "running_var")
#: a larger number in a file is damaged or hostile
MAX_INTEGER = 2**63
#: separates a file from the name of one of its networks
PART_MARK = "#"
#: converts a pickle of modules, and dictionaries of them, to tensors, numbers and texts
CONVERT_CODE = (
    "import torch; "
    'f = lambda v: f(v.state_dict()) if hasattr(v, "state_dict") else {{str(k): f(x) for k, x in v.items()}} '
    "if isinstance(v, dict) else [f(x) for x in v] if isinstance(v, (list, tuple)) "
    "else v if isinstance(v, (torch.Tensor, str, int, float)) else str(type(v)); "
    'torch.save(f(torch.load({path!r}, map_location="cpu", weights_only=False)), "weights.pt")'
)
CONVERT_HINT = (
    "In the environment that created it, and only if you trust it, run: python -c {code} and use weights.pt (or load "
    "the file with --trust-pickle, which runs the code in it)."
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
    stored: dict[str, Tensor] = field(default_factory=dict)  #: `state` with the names in the file
    options: tuple[Mapping[Any, Any], ...] = ()  #: options of the training script
    others: tuple[str, ...] = ()  #: names of other networks in the file
    part: str | None = None  #: name of the network that was chosen


def split_part(spec: str | Path) -> tuple[Path, str | None]:
    """Split `FILE#NAME` into the file and the name of one of its networks."""
    path, mark, part = str(spec).rpartition(PART_MARK)
    if mark and part and not Path(spec).exists() and Path(path).is_file():
        return Path(path), part
    return Path(spec), None


def read_checkpoint(path: Path, *, trust_pickle: bool = False, ema: bool = False) -> CheckpointWeights:
    """Read the weights in a .safetensors, .pt, .pth, .bin or .ckpt file, without their usual wrapping.

    Args:
        path: The file, or `FILE#NAME` for one of several networks in it.
        trust_pickle: Run pickles, which can run any code.
        ema: Load the averaged weights.

    Raises:
        UsageError: There is no such regular file, no averaged weights, or several networks.
        CompressError: It is damaged, unsafe, or contains no weights.
    """
    path, part = split_part(path)
    path = require_regular_file(path)
    if path.stat().st_size == 0:
        raise CompressError(f"{path}: the file is empty; copy it again.")
    if is_safetensors(path):
        content, container = read_safetensors(path), "safetensors"
    else:
        content, container = read_torch_file(path, trust_pickle=trust_pickle), "torch"
    return unwrap_checkpoint(content, path, container, ema=ema, part=part)


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
        require_unique_names(path)
    except Exception as error:  # the library raises errors of several kinds for damaged headers
        reason = first_line(error)
        raise CompressError(f"{path}: truncated or not a safetensors file ({reason}); copy it again.") from error
    return {"state_dict": state, **{key: value for key, value in notes.items() if key != "format"}}


def require_unique_names(path: Path) -> None:
    """Refuse a safetensors file that names a tensor twice; the library takes the last one. Raises ValueError."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError("a name occurs twice")

    with open(path, "rb") as file:
        json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=check)


def read_torch_file(path: Path, *, trust_pickle: bool) -> Any:
    if is_archive(path):
        check_unpacked_size(path, *open_archive(path))
    try:
        with torch.serialization.safe_globals(list_stand_ins()):
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - tensors only
    except pickle.UnpicklingError as error:
        blocked = parse_blocked_global(str(error))
        if blocked is None:
            raise unreadable_error(path, error) from error
        if is_detector_class(blocked):
            raise CompressError(detector_message(str(path))) from error
        if trust_pickle:
            return load_trusted_pickle(path)
        raise CompressError(
            f"{path}: refused: found a pickle that runs {blocked}; loading it would execute code. " + convert_hint(path)
        ) from error
    except MemoryError as error:
        raise CompressError(f"{path}: needs more memory than there is, so it is damaged or hostile.") from error
    except Exception as error:  # the restricted unpickler raises errors of every kind for damaged input
        raise unreadable_error(path, error) from error


def convert_hint(path: Path) -> str:
    """The command that converts a pickle of modules to a file of tensors."""
    return CONVERT_HINT.format(code=shlex.quote(CONVERT_CODE.format(path=str(path))))


def parse_blocked_global(message: str) -> str | None:
    """The name that torch's restricted unpickler refused, from its error."""
    found = re.search(
        r"GLOBAL (\S+) (?:was not|whose module)|for unrecognized function (.+)|but got (<class .+>)", message
    )
    if found is None and re.search(r"Unsupported operand \d+", message):
        return "operations of a newer pickle protocol"
    return next((group for group in found.groups() if group), None) if found else None


class TrustedUnpickler(pickle.Unpickler):
    """Python's unpickler, with paths of Windows as paths of this system."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name.partition(".")[0] == "pathlib" and global_name in ("WindowsPath", "PosixPath", "Path"):
            return pathlib.PureWindowsPath if global_name == "WindowsPath" else pathlib.PurePosixPath
        return super().find_class(module_name, global_name)


#: what `torch.load` uses of the module `pickle`
TRUSTED_PICKLE = types.SimpleNamespace(
    __name__="trusted_pickle", Unpickler=TrustedUnpickler, load=lambda file, **options: TrustedUnpickler(
        file, **options
    ).load(), UnpicklingError=pickle.UnpicklingError,
)  # fmt: skip


def load_trusted_pickle(path: Path) -> Any:
    """Load a pickle that the user trusts. The only place in this package that executes code in a file."""
    try:
        return torch.load(  # noqa: TID251 - --trust-pickle
            path, map_location="cpu", weights_only=False, pickle_module=TRUSTED_PICKLE
        )
    except (ImportError, AttributeError) as error:
        raise CompressError(f"{path}: its code is not on the Python path ({error}); install it first.") from error
    except Exception as error:  # as above
        raise unreadable_error(path, error) from error


def unreadable_error(path: Path, error: Exception) -> CompressError:
    found = re.search(r"WeightsUnpickler error:\s*(\S.*)", str(error))
    reason = found[1][:160] if found else first_line(error, 160)
    return CompressError(f"{path}: truncated, damaged or not a torch file ({reason}); copy it again.")


def unwrap_checkpoint(
    content: Any, path: Path, container: str, *, ema: bool, part: str | None = None
) -> CheckpointWeights:
    """Remove the wrapping of a checkpoint: keys first, then prefixes common to all names."""
    wrapping: list[str] = []
    facts: dict[str, Any] = {}
    options: list[Mapping[Any, Any]] = []
    others: list[str] = []
    names: list[str] | None = None
    has_ema, wanted = False, part
    while isinstance(content, Mapping) and not is_state_dict(content):
        facts.update({str(key): value for key, value in content.items() if is_metadata_value(value)})
        options += iter_options(content)
        names = names or read_class_names(content)
        averaged = first_key(content, EMA_KEYS)
        plain = first_key(content, PLAIN_KEYS) or only_network(content, path, wanted)
        has_ema = has_ema or averaged is not None
        if wanted is not None and wanted in content:
            key, wanted = wanted, None
        else:
            key = averaged if ema and averaged else plain or averaged
        if key is None or len(wrapping) > 4:
            raise CompressError(
                f"{path}: no weights in it; found {describe_content(content)}, expected a state dict of tensors."
            )
        if part is None and key not in EMA_KEYS:
            others += [name for name in iter_networks(content) if name != key and name not in EMA_KEYS]
        if not (container == "safetensors" and key == "state_dict"):
            wrapping.append(key)
        content = content[key]
    common: dict[str, Any] = {
        "metadata": facts, "class_names": names, "has_ema": has_ema and any(key in PLAIN_KEYS for key in wrapping),
        "options": tuple(options), "others": tuple(others), "part": part,
    }  # fmt: skip
    if isinstance(content, nn.Module):
        require_average(path, ema=ema, found=has_ema)
        module = unwrap_module(content)
        state = dict(module.state_dict())
        return CheckpointWeights(state, "pickled module", tuple(wrapping), module=module, stored=state, **common)
    if not isinstance(content, Mapping):
        raise CompressError(
            f"{path}: no weights in it; found {describe_content(content)}, expected a state dict of tensors."
        )
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if wanted is not None:
        state = select_prefix(state, wanted, path)
        wrapping.append(f"{wanted}.")
    elif ema or any(name.startswith(EMA_PREFIXES) for name in state):
        averages = {key for key in state if key.startswith(EMA_PREFIXES)}
        has_plain = len(averages) < len(state)
        common["has_ema"] = common["has_ema"] or (bool(averages) and has_plain)
        if averages and (ema or has_plain):
            has_ema = True
            state = {key: value for key, value in state.items() if (key in averages) == ema}
    require_average(path, ema=ema, found=has_ema)
    state.pop("n_averaged", None)  # torch's AveragedModel counts its updates
    check_tensors(state, path)
    stored, (state, prefixes) = state, strip_prefixes(state)
    return CheckpointWeights(state, container, (*wrapping, *prefixes), stored=stored, **common)


def require_average(path: Path, *, ema: bool, found: bool) -> None:
    if ema and not found:
        raise UsageError(f"{path}: found no averaged weights ({', '.join(EMA_KEYS)}); leave out --ema.")


def unwrap_module(module: nn.Module) -> nn.Module:
    """The network in a wrapper for several devices, as float32 and in eval mode."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
    while isinstance(module, wrappers):
        module = module.get_submodule("module")
    return module.float().eval()


def iter_networks(content: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the keys whose values are state dicts or modules, bare or wrapped once."""
    for key, value in content.items():
        inner = [value, *value.values()] if isinstance(value, Mapping) else [value]
        if isinstance(key, str) and key not in OTHER_STATES and any(map(is_network, inner)):
            yield key


def is_network(value: object) -> bool:
    """Whether a value is a module, or a mapping of names to tensors."""
    return isinstance(value, nn.Module) or (
        isinstance(value, Mapping)
        and len(value) > 1
        and all(isinstance(key, str) for key in value)
        and sum(isinstance(part, Tensor) and part.dim() > 0 for part in value.values()) > len(value) / 2
    )


def only_network(content: Mapping[Any, Any], path: Path, part: str | None) -> str | None:
    """The only network that lies under another key than the usual ones. Raises UsageError if there are several."""
    found = [key for key in iter_networks(content) if key not in EMA_KEYS]
    if len(found) > 1 and part not in found:
        raise UsageError(
            f"{path}: found {len(found)} networks: {', '.join(found[:8])}; choose one with {path}{PART_MARK}{found[0]}."
        )
    return found[0] if found else None


def select_prefix(state: dict[str, Tensor], name: str, path: Path) -> dict[str, Tensor]:
    """The tensors below `name`. Raises UsageError if there are none."""
    prefix = f"{name}."
    selected = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not selected:
        found = sorted({key.partition(".")[0] for key in state})
        raise UsageError(f"{path}: found no network {name!r}; expected one of {', '.join(found[:8])}.")
    return selected


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
    """Class names under one of the usual keys: a list, or a mapping between names and indices."""
    groups = [content, *(to_plain(content[key]) for key in CLASS_NAME_GROUPS if key in content)]
    groups += [group["dataset_meta"] for group in groups if isinstance(group, Mapping) and "dataset_meta" in group]
    for group in groups:
        names = names_in(group) if isinstance(group, Mapping) else None
        if names is not None:
            return names
    return None


def names_in(group: Mapping[Any, Any]) -> list[str] | None:
    for key in CLASS_NAME_KEYS:
        value = to_plain(group.get(key))
        if isinstance(value, Mapping):
            value = names_by_index({name: index for index, name in value.items()})
        if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
            return value
    for key in ("class_to_idx", "label2id"):
        table = to_plain(group.get(key))
        if isinstance(table, Mapping) and table:
            return names_by_index(table)
    return None


def names_by_index(table: Mapping[Any, Any]) -> list[str] | None:
    """Names in the order of their indices, which must be 0, 1, 2 and so on."""
    by_index = {str(index): str(name) for name, index in table.items()}
    names = [by_index.get(str(index)) for index in range(len(table))]
    return [name for name in names if name is not None] if None not in names and len(names) == len(table) else None


def describe_content(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(repr(key)[:80] for key in list(content)[:6] if isinstance(key, str | int)) or "nothing"
        return f"a dictionary with {keys}"
    return f"a {type(content).__name__}"


def check_tensors(state: Mapping[str, Tensor], path: Path, *, allow_empty: bool = False) -> None:
    """Refuse an empty state dict, quantized or sparse tensors, and shapes larger than the file."""
    if not allow_empty and not any(value.numel() for value in state.values()):
        raise CompressError(f"{path}: the state dict is empty; expected the tensors of a network.")
    room = unpacked_size_limit(path)
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CompressError(f"{path}: {key} is a quantized, sparse or meta tensor; save the float network instead.")
        if not value.is_floating_point() and key.rpartition(".")[2] in FLOAT_NAMES:
            kind = str(value.dtype).removeprefix("torch.")
            raise CompressError(f"{path}: {key} is {kind}, a quantized network; save the float network instead.")
        if value.numel() * value.element_size() > room:
            raise CompressError(
                f"{path}: refused: {key} has shape {list(value.shape)}, more than the file can contain."
            )


def strip_prefixes(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """`state` without the names of wrappers and the prefixes that all names have, and what was removed."""
    taken: list[str] = []
    while True:
        prefix = next((p for p in WRAPPER_PREFIXES if all(key.startswith(p) and key != p for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        taken.append(prefix)
    wrappers = {name for key in state for name in key.split(".")[:-1] if name in WRAPPER_NAMES}
    short = {".".join(n for n in key.split(".") if n not in wrappers): value for key, value in state.items()}
    if not wrappers or len(short) < len(state):
        return state, taken
    state, more = strip_prefixes(short)
    return state, [*taken, *(f"{name}." for name in sorted(wrappers)), *more]
