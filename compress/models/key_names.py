"""Find the networks in a file of weights, under the names that libraries, wrappers and training modules give them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from compress.errors import UsageError
from compress.models.architecture_index import is_relevant_tensor
from compress.models.checkpoints import PART_MARK, CheckpointWeights
from compress.models.registry import DEFAULT_CLASSES, build_on_meta, import_timm

State = Mapping[str, Tensor]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

#: names of what a training module holds beside its network
TRAINING_PARTS = re.compile(r"(^|[._])(loss|criterion|objective|metrics?|accuracy|auroc|confusion|confmat)")
#: networks that are not taken if the file has another one
SECONDARY = re.compile(r"(^|[._])(teacher|ema|momentum)")
#: modules that normalize images with one number for all channels; others may scale labels
NORMALIZERS = re.compile(r"(^|\.)(norm\w*|preproc\w*|transforms?|\d+)\.$")
#: names of a mean that a network subtracts from its images; "std" in its place names the standard deviation
MEAN_NAMES = ("mean", "_mean", "pixel_mean", "image_mean", "img_mean")
#: levels of modules around a network
MAX_LEVELS = 5
#: names in files of earlier releases of torchvision, which it replaces when it loads them
EARLIER_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(\.mlp)\.linear_2\."), r"\1.3."),
)
#: buffers that timm computes instead of loading them
COMPUTED = ("attn_mask", "relative_position_index", "relative_coords_table")
#: tensors of lukemelas' EfficientNet-PyTorch and timm's names of them
EFFICIENTNET_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
                     "_fc": "classifier"}  # fmt: skip
EFFICIENTNET_BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                      "_project_conv": "conv_pwl", "_bn2": "bn3", "_se_reduce": "se.conv_reduce",
                      "_se_expand": "se.conv_expand"}  # fmt: skip
EFFICIENTNET_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
                            "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Names of a public training code that differ from those of our networks."""

    convert: Callable[[State], dict[str, Tensor] | None]  #: None for other names
    architectures: str = ""  #: prefix of the architectures with the same padding
    statistics: Statistics | None = None  #: mean and std that the code normalizes with


@dataclass(frozen=True)
class NetworkInFile:
    """The tensors of one network under the names of its architecture."""

    state: State
    prefix: str = ""  #: removed from the names in the file
    layout: Layout | None = None
    statistics: Statistics | None = None  #: mean and std that the file contains beside the network
    others: tuple[str, ...] = ()  #: names of other networks in the file


def rename_efficientnet(state: State) -> dict[str, Tensor] | None:
    """lukemelas' names -> timm's. A stage begins where the number of channels changes."""
    if "_conv_stem.weight" not in state:
        return None
    renamed, places = {}, place_blocks(state)
    for key, value in state.items():
        name, _, rest = key.partition(".")
        table, prefix = EFFICIENTNET_STEM, ""
        if name == "_blocks":
            number, _, rest = rest.partition(".")
            name, _, rest = rest.partition(".")
            is_first = f"_blocks.{number}._expand_conv.weight" not in state
            table = EFFICIENTNET_FIRST_BLOCK if is_first else EFFICIENTNET_BLOCK
            prefix = f"blocks.{places.get(number, number)}."
        if name not in table:
            return None
        renamed[f"{prefix}{table[name]}.{rest}"] = value
    return renamed


def place_blocks(state: State) -> dict[str, str]:
    """Number of a block of lukemelas' networks -> STAGE.BLOCK of timm's."""
    places: dict[str, str] = {}
    stage, block = -1, 0
    for number in map(str, range(len(state))):
        name = f"_blocks.{number}."
        if f"{name}_project_conv.weight" not in state:
            break
        first = state.get(f"{name}_expand_conv.weight")
        inner = first.shape[1] if first is not None else state[f"{name}_depthwise_conv.weight"].shape[0]
        is_new = stage < 0 or inner != state[f"{name}_project_conv.weight"].shape[0]
        stage, block = (stage + 1, 0) if is_new else (stage, block + 1)
        places[number] = f"{stage}.{block}"
    return places


def rename_kuangliu(state: State) -> dict[str, Tensor] | None:
    """The ResNets of kuangliu's pytorch-cifar, whose classifier is called `linear`."""
    if "linear.weight" not in state or "layer4.0.conv1.weight" not in state:
        return None
    return {re.sub(r"^linear\.", "fc.", key): value for key, value in state.items()}


def rename_wide_resnet(state: State) -> dict[str, Tensor] | None:
    """The names of WideResNet-pytorch, which the code of many papers on distillation has taken over."""
    if "block1.layer.0.bn1.weight" not in state:
        return None
    pairs = ((r"^bn1\.", "bn."), (r"\.layer\.", "."), (r"\.convShortcut\.", ".shortcut."))
    renamed = {}
    for key, value in state.items():
        for pattern, name in pairs:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


def rename_earlier(state: State) -> dict[str, Tensor] | None:
    """The names in files of earlier releases of torchvision."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in EARLIER_NAMES:
            key = pattern.sub(name, key)
        renamed[key] = value
    return renamed if renamed.keys() != state.keys() else None


CIFAR_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
WRN_STATISTICS = (tuple(v / 255 for v in (125.3, 123.0, 113.9)), tuple(v / 255 for v in (63.0, 62.1, 66.7)))
LAYOUTS = (
    Layout(rename_earlier),
    Layout(rename_efficientnet, architectures="timm/tf_"),
    Layout(rename_kuangliu, statistics=CIFAR_STATISTICS),
    Layout(rename_wide_resnet, statistics=WRN_STATISTICS),
)


def find_network(
    weights: CheckpointWeights, source: str, accepts: Callable[[State], bool], nearest: Callable[[State], list[str]]
) -> NetworkInFile | None:
    """Find the network that `accepts` accepts, under any of the names that the file may have for it.

    Args:
        weights: The content of the file.
        source: Name of the file, for errors.
        accepts: Whether tensors are those of a network.
        nearest: Names of architectures whose library may translate the names.

    Raises:
        UsageError: The file contains other layers beside the network.
    """
    bare, statistics = split_normalization(weights.state)
    for state in (weights.stored, weights.state, bare):
        for network in with_layouts(state, accepts):
            return replace(network, statistics=statistics if state is bare else None)
    found = list(search_parts(bare, "", accepts, MAX_LEVELS))
    if found:
        found.sort(key=lambda network: SECONDARY.search(network.prefix) is not None)
        require_nothing_else(bare, found, source)
        others = tuple(network.prefix.rstrip(".") for network in found[1:])
        return replace(found[0], statistics=statistics, others=others)
    short, prefix = strip_shared_prefix(bare)
    for name in nearest(short):
        converted = convert_with_timm(short, name)
        if converted is not None and accepts(converted):
            return NetworkInFile(converted, prefix, statistics=statistics)
    return None


def with_layouts(state: State, accepts: Callable[[State], bool]) -> Iterator[NetworkInFile]:
    if accepts(state):
        yield NetworkInFile(state)
    for layout in LAYOUTS:
        converted = layout.convert(state)
        if converted is not None and accepts(converted):
            yield NetworkInFile(converted, layout=layout)


def search_parts(state: State, prefix: str, accepts: Callable[[State], bool], levels: int) -> Iterator[NetworkInFile]:
    """Yield the outermost networks below the names of modules."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, dot, rest = key.partition(".")
        if dot:
            groups.setdefault(name, {})[rest] = value
    for name, group in groups.items():
        network = next(with_layouts(group, accepts), None)
        if network is not None:
            yield replace(network, prefix=f"{prefix}{name}.")
        elif levels > 1:
            yield from search_parts(group, f"{prefix}{name}.", accepts, levels - 1)


def require_nothing_else(state: State, found: list[NetworkInFile], source: str) -> None:
    """Raise UsageError if layers lie beside the networks, because they may belong to the first one."""
    prefixes = tuple(network.prefix for network in found)
    left = [
        key for key, value in state.items()
        if is_relevant_tensor(key, value) and not key.startswith(prefixes) and not TRAINING_PARTS.search(key)
        and not SECONDARY.search(key)
    ]  # fmt: skip
    if left:
        name = prefixes[0].rstrip(".")
        raise UsageError(
            f"{source}: found {left[0]} {list(state[left[0]].shape)} beside a known network under {name!r}; if it "
            f"belongs to it, give --arch package.module:factory; if not, use {source}{PART_MARK}{name}."
        )


def strip_shared_prefix(state: State) -> tuple[State, str]:
    """`state` without the names of modules that all keys begin with."""
    prefix = ""
    while True:
        names = {key.partition(".")[0] for key in state}
        if len(names) != 1 or not all("." in key for key in state):
            return state, prefix
        name = f"{names.pop()}."
        state, prefix = {key.removeprefix(name): value for key, value in state.items()}, prefix + name


def split_normalization(state: State) -> tuple[State, Statistics | None]:
    """`state` without a mean and a standard deviation of images, and both for images in [0, 1]."""
    for key, mean in state.items():
        name = key.rpartition(".")[2]
        std = state.get(key.removesuffix(name) + name.replace("mean", "std"))
        if name not in MEAN_NAMES or std is None or mean.numel() not in (1, 3) or mean.numel() != std.numel():
            continue
        if TRAINING_PARTS.search(key) or (mean.numel() == 1 and not NORMALIZERS.search(key.removesuffix(name))):
            continue
        means, stds = mean.double().flatten().tolist(), std.double().flatten().tolist()
        scale = 255.0 if max(*means, *stds, 0) > 2 else 1.0  # of images in [0, 255]
        if min(stds) <= 0:
            continue
        bare = {other: value for other, value in state.items() if value is not mean and value is not std}
        return bare, (tuple(value / scale for value in means), tuple(value / scale for value in stds))
    return state, None


def convert_with_timm(state: State, architecture: str) -> dict[str, Tensor] | None:
    """The names that timm gives the tensors of a published file; None if it cannot, or would resample them."""
    prefix, _, name = architecture.partition("/")
    if prefix != "timm":
        return None
    module = sys.modules[import_timm().model_entrypoint(name).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return None
    try:
        converted = convert(dict(state), build_on_meta(architecture, classes=DEFAULT_CLASSES))
    except Exception:  # converters expect the files of their family and raise errors of every kind for others
        return None
    return converted if count_values(converted) == count_values(state) else None


def count_values(state: State) -> int:
    return sum(value.numel() for key, value in state.items() if not key.endswith(COMPUTED))
