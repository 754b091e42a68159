"""Memory of one forward pass of a PyTorch network: weights, peak activations, and peak memory on a device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from profiles.flops.counter import eval_mode
from profiles.latency.memory import peak_resident_memory


@dataclass(frozen=True)
class MemoryUse:
    """Memory of one forward pass without gradients, in bytes."""

    weight_bytes: int  #: parameters and buffers
    activation_peak_bytes: int  #: maximum bytes of new tensors alive at once, including the output
    peak_bytes: int  #: weights, example and activations: free memory that a device needs, without workspace


def measure_memory(module: nn.Module, example: tuple[Tensor, ...]) -> MemoryUse:
    """Measure the memory of one forward pass, tensor by tensor; also on the meta device."""
    weights = storage_bytes([*module.parameters(), *module.buffers()])
    with eval_mode(module), torch.no_grad(), LiveTensorTracker(example) as live:
        module(*example)
    return MemoryUse(weights, live.peak, weights + storage_bytes(list(example)) + live.peak)


def storage_bytes(tensors: list[Tensor]) -> int:
    """Return the bytes of the tensors' storages; shared storage is counted once."""
    return sum(storage.nbytes() for storage in {tensor.untyped_storage() for tensor in tensors})


class LiveTensorTracker(TorchDispatchMode):
    """Tracks every tensor that is made while the mode is on, until it is freed.

    Attributes:
        peak: Maximum bytes alive at once.
        created: Bytes of all tensors.
    """

    def __init__(self, known: tuple[Tensor, ...] = ()) -> None:
        super().__init__()
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in known)
        self.current = self.peak = self.created = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self.known.add(value.untyped_storage())  # existed before, or is tracked already
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                self.track(value.untyped_storage())
        return output

    def track(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self.current += storage.nbytes()
        self.created += storage.nbytes()
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self.release, storage.nbytes()).atexit = False

    def release(self, size: int) -> None:
        self.current -= size


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Return the peak bytes of `call`: allocated memory on a GPU, else as `peak_resident_memory`."""
    return peak_cuda_memory(call, device) if device.type == "cuda" else peak_resident_memory(call)


def peak_memory_with_weights(call: Callable[[], object], *, module: nn.Module, device: str) -> int | None:
    """Return the peak bytes of `module` on `device` while `call` runs: its weights and what `call` adds.

    Weights that were there before are counted by their size. None if the system does not report it.
    """
    weights = [*module.parameters(), *module.buffers()]
    kind = torch.device(device).type
    resident = storage_bytes([tensor for tensor in weights if tensor.device.type == kind])
    if kind == "cuda":
        before = torch.cuda.memory_allocated(device)
        return peak_cuda_memory(call, device) - before + resident
    increase = peak_resident_memory(call)
    return None if increase is None else increase + resident


def peak_cuda_memory(call: Callable[[], object], device: torch.device | str = "cuda") -> int:
    """Return the peak bytes allocated on `device` during `call`, including earlier allocations."""
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
