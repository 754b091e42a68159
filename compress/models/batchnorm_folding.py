"""Fold BatchNorm into the convolution before it: the same outputs with less computation.

One forward pass shows which layers can be folded. Tracing the code instead, as torch.fx does, fails for code that reads
the image size.
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
    """Return a copy in eval mode in which every BatchNorm that alone reads a convolution is folded into it.

    Args:
        net: Network for images [n, 3, *image_size]; not changed.
        image_size: (height, width) in pixels.

    Raises:
        UsageError: No BatchNorm can be folded.
    """
    copied = copy.deepcopy(net).eval()
    foldable = find_foldable_pairs(copied, image_size)
    if not foldable:
        raise UsageError(
            "teachers.fold_batchnorm: found no BatchNorm that directly follows a convolution in this teacher; leave it "
            "out."
        )
    layers = dict(copied.named_modules())
    for conv_name, norm_name in foldable:
        conv, norm = layers[conv_name], layers[norm_name]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        copied.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        copied.set_submodule(norm_name, nn.Identity())
    return copied


def find_foldable_pairs(net: nn.Module, image_size: tuple[int, int]) -> list[tuple[str, str]]:
    """Names of the convolutions, each with the BatchNorm that alone reads its output.

    Only layers of exactly these types that run once, have no hooks and do not share their weights.
    """
    names = {layer: name for name, layer in net.named_modules() if is_foldable(layer)}
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}
    reads: list[tuple[nn.Module, nn.Module]] = []
    runs: Counter[nn.Module] = Counter()

    def record_output(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        runs[layer] += 1
        outputs[id(output)] = (layer, output)

    def record_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        runs[layer] += 1
        if id(inputs[0]) in outputs:
            reads.append((outputs[id(inputs[0])][0], layer))

    hooks = [
        layer.register_forward_hook(record_output)
        if isinstance(layer, nn.Conv2d)
        else layer.register_forward_pre_hook(record_input)
        for layer in names
    ]
    weight = next(net.parameters(), torch.zeros(()))
    try:
        with torch.no_grad(), TensorUseCounter() as uses:
            images = torch.full((2, 3, *image_size), 0.5, dtype=weight.dtype, device=weight.device)
            uses.count_tensors([net(images)])
    finally:
        for hook in hooks:
            hook.remove()
    readers = {layer: uses.counts[number] for number, (layer, _) in outputs.items()}
    return [
        (names[conv], names[norm])
        for conv, norm in reads
        if readers[conv] == 1
        and runs[conv] == runs[norm] == 1
        and uses.max_uses([*own_tensors(conv), *own_tensors(norm)]) == 1
    ]


class TensorUseCounter(TorchFunctionMode):
    """Count, for every tensor, the calls that compute tensors from it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.kept_alive: list[Tensor] = []  # so that no id is used twice

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # not `x.shape`
            self.count_tensors([args, kwargs])
        return result

    def count_tensors(self, nested: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
        self.kept_alive += tensors
        self.counts.update({id(leaf) for leaf in tensors})

    def max_uses(self, tensors: Iterable[Tensor]) -> int:
        return max(self.counts[id(tensor)] for tensor in tensors)


def is_foldable(layer: nn.Module) -> bool:
    """Exclude subclasses, which may compute something else, and hooks, which may read or replace values."""
    known = type(layer) is nn.Conv2d or (type(layer) is nn.BatchNorm2d and layer.running_mean is not None)
    return known and not layer._forward_pre_hooks and not layer._forward_hooks


def own_tensors(layer: nn.Module) -> list[Tensor]:
    return [*layer.parameters(), *layer.buffers()]
