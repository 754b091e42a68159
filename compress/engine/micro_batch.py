"""Forward passes in parts, so that only the activations of one part are in memory at a time.

The outputs of the parts are concatenated, so every loss sees the whole batch. Autograd computes a part again when its
backward pass begins, in the state of the first pass. Losses and gradients are those of whole batches, except where a
network mixes its images: BatchNorm in training mode normalizes by each part, and Dropout draws other masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from compress.errors import CompressError

Entry = TypeVar("Entry")


class Capture(Generic[Entry]):
    """Entries that hooks record in forward passes of a network.

    The entries of the parts of one pass are merged into those of the whole batch. Nothing is recorded while a part is
    computed again; the hooks are then present as in the first pass, because autograd keeps tensors of theirs too.

    Args:
        net: The network that is called.
        register_hooks: Registers the hooks, which call `record`.
        store: Receives every entry.
        merge: Combines the same entry of all parts, given the parts' shares of the batch.
    """

    def __init__(
        self, net: nn.Module, register_hooks: Callable[[], Sequence[RemovableHandle]], store: Callable[[Entry], object],
        merge: Callable[[Sequence[Entry], Sequence[float]], Entry],
    ) -> None:  # fmt: skip
        self.net, self.register_hooks, self.store, self.merge = net, register_hooks, store, merge
        self.handles: Sequence[RemovableHandle] = ()
        self.parts: list[list[Entry]] | None = None

    def __enter__(self) -> None:
        _captures.append(self)
        self.handles = self.register_hooks()

    def __exit__(self, *_: object) -> None:
        _captures.remove(self)
        handles, self.handles = self.handles, ()
        for handle in handles:
            handle.remove()

    def record(self, entry: Entry) -> None:
        """Store an entry, or keep it until the pass is complete."""
        if Recomputation.depth:
            return
        if self.parts is None:
            self.store(entry)
        else:
            self.parts[-1].append(entry)

    def finish(self, shares: Sequence[float]) -> None:
        """Store the merged entries of all parts."""
        parts, self.parts = self.parts or [], None
        for entries in zip(*parts, strict=True):
            self.store(self.merge(entries, shares))


_captures: list[Capture] = []


def forward_in_parts(net: nn.Module, inputs: tuple[Tensor, ...], size: int) -> Tensor:
    """Return `net(*inputs)`, computed for at most `size` images at a time.

    Every part has two images or more, because BatchNorm cannot normalize one.

    Raises:
        CompressError: If the output has not one row per image.
    """
    images = len(inputs[0])
    count = min(math.ceil(images / size), max(1, images // 2))
    if count == 1 or any(len(x) != images for x in inputs):
        return net(*inputs)
    parts = list(zip(*(x.tensor_split(count) for x in inputs), strict=True))
    tensors = (*inputs, *net.parameters())
    is_differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    captures = [capture for capture in _captures if capture.net is net]
    call = partial(_call_again_in_backward, net, captures) if is_differentiable else net
    outputs = []
    try:
        for capture in captures:
            capture.parts = []
        for part in parts:
            for capture in captures:
                assert capture.parts is not None
                capture.parts.append([])
            outputs.append(require_rows(call(*part), len(part[0]), net))
        for capture in captures:
            capture.finish([len(part[0]) / images for part in parts])
    finally:
        for capture in captures:
            capture.parts = None
    return torch.cat(outputs)


def require_rows(output: object, images: int, net: nn.Module) -> Tensor:
    """Return an output that has one row per image. Raises CompressError for any other."""
    if isinstance(output, Tensor) and output.ndim > 0 and len(output) == images:
        return output
    found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise CompressError(
        f"training.micro_batch: found a network ({type(net).__name__}) whose output {found} has not one row per image, "
        f"expected {images} rows; remove the setting, or choose a smaller batch size."
    )


def _call_again_in_backward(net: nn.Module, captures: Sequence[Capture], *part: Tensor) -> Tensor:
    """Call `net` and keep its inputs only; the backward pass computes the rest again."""
    contexts = partial(_contexts, Recomputation(net, captures))
    return checkpoint(net, *part, use_reentrant=False, context_fn=contexts)  # pyright: ignore[reportReturnType]


def _contexts(again: Recomputation) -> tuple[nullcontext[None], Recomputation]:
    return nullcontext(), again


class Recomputation:
    """Context in which a network computes as at the time of the first pass, and keeps its running statistics."""

    depth = 0  #: number of recomputations in progress

    def __init__(self, net: nn.Module, captures: Sequence[Capture] = ()) -> None:
        self.net, self.captures = net, captures
        self.modes = [module.training for module in net.modules()]
        self.gradients = [parameter.requires_grad for parameter in net.parameters()]

    def __enter__(self) -> None:
        Recomputation.depth += 1
        self.later = Recomputation(self.net)
        self.buffers = [buffer.clone() for buffer in self.net.buffers()]
        self.apply()
        missing = [capture for capture in self.captures if not capture.handles]
        self.handles = [handle for capture in missing for handle in capture.register_hooks()]

    def __exit__(self, *_: object) -> None:
        Recomputation.depth -= 1
        for handle in self.handles:
            handle.remove()
        self.later.apply()
        for buffer, before in zip(self.net.buffers(), self.buffers, strict=True):
            buffer.data.copy_(before)  # not seen by autograd, whose graph may contain the buffer

    def apply(self) -> None:
        """Set the mode of every module, and which parameters have gradients."""
        for module, mode in zip(self.net.modules(), self.modes, strict=True):
            module.training = mode
        for parameter, has_gradient in zip(self.net.parameters(), self.gradients, strict=True):
            parameter.requires_grad_(has_gradient)


def describe_micro_batch(size: int, batch_size: int, nets: Mapping[str, nn.Module]) -> str:
    """Return a sentence about what micro-batches of `size` images change in the training of `nets`."""
    reasons = {"BatchNorm normalizes by them": _BatchNorm, "Dropout draws other masks": _DropoutNd}
    found = {
        reason: [name for name, net in nets.items() if any(isinstance(module, kind) for module in net.modules())]
        for reason, kind in reasons.items()
    }
    changes = [f"{reason} (in {', '.join(names)})" for reason, names in found.items() if names]
    but = f", except that {' and '.join(changes)}" if changes else ""
    return (
        f"Micro-batches of {size} images: each step still learns from {batch_size}, and its result is that of whole "
        f"batches{but}."
    )
