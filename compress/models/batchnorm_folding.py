"""BatchNorm folded into the convolution before it: the same answers, less work, and no statistics left to look at.

Which of them can be folded is seen by running the network once: tracing its code instead, as torch.fx does, fails where
code asks for an image's size.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from compress.errors import UsageError


def fold_batchnorm(net: nn.Module, image_size: tuple[int, int]) -> nn.Module:
    """A copy of `net` in eval mode, in which every BatchNorm that alone reads a convolution has become part of it.

    `net` reads images [n, 3, *image_size] and is left as it is. Raises UsageError where nothing can be folded.
    """
    made = copy.deepcopy(net).eval()
    found = find_foldable_pairs(made, image_size)
    if not found:
        raise UsageError(
            "teachers.fold_batchnorm: in this teacher no BatchNorm is seen that follows a convolution directly, so there is "
            "nothing to fold; leave it out."
        )
    layers = dict(made.named_modules())
    for conv_name, norm_name in found:
        conv, norm = layers[conv_name], layers[norm_name]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        replace(made, conv_name, fuse_conv_bn_eval(conv, norm))
        replace(made, norm_name, nn.Identity())
    return made


def find_foldable_pairs(net: nn.Module, image_size: tuple[int, int]) -> list[tuple[str, str]]:
    """Names of the convolutions, each with that of the BatchNorm that reads its output and nothing else does.

    Only layers of exactly these types that run once, without hooks, and whose weights nobody else reads.
    """
    names = {layer: name for name, layer in net.named_modules() if is_foldable(layer)}
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}
    read: list[tuple[nn.Module, nn.Module]] = []
    runs: Counter[nn.Module] = Counter()

    def after(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        runs[layer] += 1
        outputs[id(output)] = (layer, output)

    def before(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        runs[layer] += 1
        if id(inputs[0]) in outputs:
            read.append((outputs[id(inputs[0])][0], layer))

    hooks = [
        layer.register_forward_hook(after) if isinstance(layer, nn.Conv2d) else layer.register_forward_pre_hook(before)
        for layer in names
    ]
    weight = next(net.parameters(), torch.zeros(()))
    try:
        with torch.no_grad(), TensorUseCounter() as uses:
            uses.count_tensors([net(torch.full((2, 3, *image_size), 0.5, dtype=weight.dtype, device=weight.device))])
    finally:
        for hook in hooks:
            hook.remove()
    inputs = {layer: uses.counts[number] for number, (layer, _) in outputs.items()}
    return [
        (names[conv], names[norm])
        for conv, norm in read
        if inputs[conv] == 1
        and runs[conv] == runs[norm] == 1
        and uses.max_uses([*own_tensors(conv), *own_tensors(norm)]) == 1
    ]


class TensorUseCounter(TorchFunctionMode):
    """While open, counts for every tensor the calls that make tensors of it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.kept_alive: list[Tensor] = []  # held, so that no id is given twice

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # not `x.shape`
            self.count_tensors([args, kwargs])
        return result

    def count_tensors(self, nested: Any) -> None:
        found = [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
        self.kept_alive += found
        self.counts.update({id(leaf) for leaf in found})

    def max_uses(self, tensors: Iterable[Tensor]) -> int:
        return max(self.counts[id(tensor)] for tensor in tensors)


def is_foldable(layer: nn.Module) -> bool:
    """A subclass may compute something else, and a hook may look in or make the weights."""
    known = type(layer) is nn.Conv2d or (type(layer) is nn.BatchNorm2d and layer.running_mean is not None)
    return known and not layer._forward_pre_hooks and not layer._forward_hooks


def own_tensors(layer: nn.Module) -> list[Tensor]:
    return [*layer.parameters(), *layer.buffers()]


def replace(net: nn.Module, name: str, layer: nn.Module) -> None:
    above, _, own = name.rpartition(".")
    setattr(net.get_submodule(above), own, layer)
