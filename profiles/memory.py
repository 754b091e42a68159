"""How much memory one call needs: weights, activations at their peak, and what the process really held."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from profiles.flops import evaluating
from profiles.resident import resident_peak


@dataclass(frozen=True)
class Memory:
    """Bytes of one forward pass without gradients."""

    weight_bytes: int  #: parameters and buffers
    activation_peak_bytes: int  #: most bytes of tensors alive at once that the call made, its answer included
    peak_bytes: int  #: weights, example and activations together: what a device must have free, less its workspace


def memory(module: nn.Module, example: tuple[Tensor, ...]) -> Memory:
    """What one forward pass of `module` over `example` needs, tensor by tensor; on the meta device too."""
    weights = storage_bytes([*module.parameters(), *module.buffers()])
    with evaluating(module), torch.no_grad(), Live(example) as live:
        module(*example)
    return Memory(weights, live.peak, weights + storage_bytes(list(example)) + live.peak)


def storage_bytes(tensors: list[Tensor]) -> int:
    """Bytes behind `tensors`, shared storage counted once."""
    return sum(storage.nbytes() for storage in {tensor.untyped_storage() for tensor in tensors})


class Live(TorchDispatchMode):
    """Follows every tensor that is made while it is on, until it dies. `peak`: the most bytes alive at once."""

    def __init__(self, known: tuple[Tensor, ...] = ()) -> None:
        super().__init__()
        self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self.seen.add(value.untyped_storage())  # was there before, or is followed already
        answer = func(*args, **(kwargs or {}))
        for value in tree_leaves(answer):
            if isinstance(value, Tensor):
                self.follow(value.untyped_storage())
        return answer

    def follow(self, storage: torch.UntypedStorage) -> None:
        if storage in self.seen:
            return
        self.seen.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.release, storage.nbytes()).atexit = False

    def release(self, size: int) -> None:
        self.now -= size


def peak(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `call` takes at its peak where it computes: allocated on a GPU, else as `resident_peak`."""
    return cuda_peak(call, device) if device.type == "cuda" else resident_peak(call)


def rise(call: Callable[[], object], *, module: nn.Module, device: str) -> int | None:
    """Bytes that `module` takes on `device` while `call` runs, at the peak: its weights, and all that `call` adds.

    Weights that were there before are counted by their size. None where the system does not tell, as `resident_peak`.
    """
    weights = [*module.parameters(), *module.buffers()]
    kind = torch.device(device).type
    there = storage_bytes([tensor for tensor in weights if tensor.device.type == kind])
    if kind == "cuda":
        before = torch.cuda.memory_allocated(device)
        return cuda_peak(call, device) - before + there
    found = resident_peak(call)
    return None if found is None else found + there


def cuda_peak(call: Callable[[], object], device: torch.device | str = "cuda") -> int:
    """Bytes allocated on `device` at the peak of `call`, with all that was allocated before it."""
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
