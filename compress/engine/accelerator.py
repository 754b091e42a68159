"""Device, precision, memory format and processes of a run."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from compress.engine.micro_batch import forward_in_parts
from compress.errors import UsageError
from compress.resources import default_threads

Precision = Literal["auto", "32", "bf16", "16"]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Accelerator:
    """A device with its precision, for process `rank` of `world_size`."""

    device: torch.device
    precision: Literal["32", "bf16", "16"]
    rank: int = 0
    world_size: int = 1
    micro_batch: int | None = None  #: images per forward pass of a network; None: the whole batch

    def forward(self, net: nn.Module, *inputs: Tensor) -> Tensor:
        """Call a network in this precision, and in parts if the batch is larger than a micro-batch."""
        with self.autocast():
            if self.micro_batch is None or len(inputs[0]) <= self.micro_batch:
                return net(*inputs)
            return forward_in_parts(net, inputs, self.micro_batch)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass in this precision."""
        if self.precision == "32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.float16 if self.precision == "16" else torch.bfloat16)

    def prepare(self, net: Module) -> Module:
        """Move `net` to the device in channels-last format (1.3x faster on CPUs, more with bf16)."""
        return net.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def to_float_images(self, x: Tensor) -> Tensor:
        """Move uint8 images [n, 3, h, w] to the device as floats in [0, 1], channels last."""
        x = x.to(self.device, non_blocking=True)
        return x.to(memory_format=torch.channels_last).float().div_(255)

    def all_reduce_mean(self, tensors: list[Tensor]) -> None:
        """Replace tensors in place by their mean over the processes.

        Uses one flattened all-reduce, because DDP's hooks fail with several trainable models.
        """
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([t.detach().reshape(-1).float() for t in tensors])
        dist.all_reduce(flat)
        flat /= self.world_size
        position = 0
        for tensor in tensors:
            tensor.detach().copy_(flat[position : position + tensor.numel()].view(tensor.shape))
            position += tensor.numel()

    def all_gather(self, rows: Tensor) -> Tensor:
        """Concatenate the rows of all processes, by rank; every process has the same number of rows."""
        if self.world_size == 1:
            return rows
        local = rows.to(self.device).contiguous()
        parts = [torch.empty_like(local) for _ in range(self.world_size)]
        dist.all_gather(parts, local)
        return torch.cat(parts).to(rows.device)

    def broadcast_float(self, value: float) -> float:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return float(tensor.item())

    def any(self, condition: bool) -> bool:
        """Return whether the condition holds on any process."""
        if self.world_size == 1:
            return condition
        flag = torch.tensor([float(condition)], device=self.device)
        dist.all_reduce(flag)
        return bool(flag.item())

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return rank 0's tensor on every rank."""
        if self.world_size == 1:
            return tensor
        copy = tensor.to(self.device, copy=True).contiguous()
        dist.broadcast(copy, 0)
        return copy.to(tensor.device)

    def barrier(self) -> None:
        """Wait until all processes have reached this point."""
        if self.world_size > 1:
            dist.barrier()


def create_accelerator(device: str = "auto", precision: Precision = "auto") -> Accelerator:
    """Create the accelerator of this process; joins torchrun's process group if there is one.

    Args:
        device: auto, cpu, cuda or cuda:N; auto is CUDA if available.
        precision: See `resolve_precision`.

    Raises:
        UsageError: If the device is unknown or not available.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        chosen = torch.device(kind)
    except RuntimeError as error:
        raise UsageError(f"--device: found {device!r}, expected auto, cpu, cuda or cuda:N.") from error
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError("--device cuda: PyTorch finds no GPU; use --device cpu (`compress doctor` shows why).")
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", chosen.index or 0)))
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.benchmark = True
    threads = default_threads()
    if threads is not None and "OMP_NUM_THREADS" not in os.environ:  # torch counts the machine's processors
        torch.set_num_threads(threads)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Accelerator(chosen, resolve_precision(chosen, precision), rank, world_size)


def resolve_precision(device: torch.device, precision: Precision) -> Literal["32", "bf16", "16"]:
    """Resolve `auto`: bf16 if the processor computes in it, else 32 (on a GPU: 16).

    Raises:
        UsageError: For float16 on a CPU, which is slower than float32.
    """
    if precision == "16" and device.type == "cpu":
        raise UsageError("--precision 16: float16 on a CPU is four times slower than float32; use bf16 or 32.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "16"
    return "bf16" if has_fast_bf16() else "32"


def has_fast_bf16() -> bool:
    """Check whether this CPU multiplies bf16 in hardware (AMX or AVX512-BF16)."""
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)
    if get_capabilities is not None:
        capabilities = get_capabilities()
        return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
