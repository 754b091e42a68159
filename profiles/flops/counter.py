"""FLOPs of one image, counted by two independent counters.

fvcore traces the network and sums a formula per operator (`profiles.flops.operators`). It counts multiply-accumulates
(MACs); `flops` is twice that. PyTorch's counter runs the network and counts products only (convolutions, matrix
products, attention). Both agree exactly on products. What fvcore counts in addition is normalization, average pooling
and interpolation. Neither counts element-wise arithmetic.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from profiles.flops.layers import Layer, TracedOperation, build_layer_table, record_calls

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore compiles a loss with torch.jit when it is imported
    from fvcore.nn import FlopCountAnalysis

    from profiles.flops.operators import OTHERS, PRODUCT_NAMES, PRODUCTS, Formula, count_activations, is_free

#: errors that fvcore's tracer raises for programs of torch.export and TorchScript
TRACE_ERRORS = (RuntimeError, TypeError, AttributeError, NotImplementedError, ValueError)


@dataclass(frozen=True)
class FlopCount:
    """Arithmetic of one forward pass (of one image, if the example is a batch of 1)."""

    macs: int  #: multiply-accumulates counted by fvcore
    flops: int  #: 2 * macs
    params: int  #: parameters; a shared one is counted once
    macs_torch: int  #: multiply-accumulates counted by torch.utils.flop_counter: products only
    unsupported: dict[str, int]  #: operator -> calls that fvcore cannot count and that are not free: macs is too low
    by_operator: dict[str, int]  #: operator type -> macs
    counter: str = "fvcore"  #: "torch" if fvcore cannot trace the program; then macs is macs_torch
    products: int = 0  #: macs in products; equal to macs_torch if both counters agree
    activations: int | None = None  #: output elements of products; None if fvcore cannot trace the program
    layers: tuple[Layer, ...] = ()  #: one row per module, the root first; empty if fvcore cannot trace the program


@dataclass(frozen=True)
class FvcoreTrace:
    """Result of one trace by fvcore."""

    by_operator: dict[str, int]  #: operator type -> MACs, largest first
    unsupported: dict[str, int]  #: operator -> calls that it cannot count and that are not free
    operations: list[TracedOperation]  #: every counted operation
    calls: Counter[tuple[str, ...]]  #: as from `profiles.flops.layers.record_calls`


def count_flops(module: nn.Module, example: tuple[Tensor, ...]) -> FlopCount:
    """Count the arithmetic of one forward pass, in eval mode.

    Args:
        module: Network on a real device; use `count_products` for the meta device. Its mode is restored afterwards.
        example: Arguments of the forward pass, such as one image `(torch.zeros(1, 3, 224, 224),)`.

    Returns:
        Counts of both counters and a table of layers.

    Raises:
        Exception: Whatever the forward pass raises.

    Example:
        >>> import torch
        >>> count_flops(torch.nn.Conv2d(3, 8, 3), (torch.zeros(1, 3, 6, 6),)).macs
        3456
    """
    macs_torch = count_products(module, example)
    params = sum(parameter.numel() for parameter in module.parameters())
    try:
        trace = trace_with_fvcore(module, example)
    except TRACE_ERRORS:
        by_operator = {"products": macs_torch}
        return FlopCount(macs_torch, 2 * macs_torch, params, macs_torch, {}, by_operator, "torch", macs_torch)
    macs = sum(trace.by_operator.values())
    return FlopCount(
        macs=macs,
        flops=2 * macs,
        params=params,
        macs_torch=macs_torch,
        unsupported=trace.unsupported,
        by_operator=trace.by_operator,
        products=sum(macs for name, macs in trace.by_operator.items() if name in PRODUCT_NAMES),
        activations=sum(operation.activations for operation in trace.operations),
        layers=tuple(build_layer_table(module, trace.operations, trace.calls)),
    )


def trace_with_fvcore(module: nn.Module, example: tuple[Tensor, ...]) -> FvcoreTrace:
    """Trace one forward pass. Raises one of `TRACE_ERRORS` if the module cannot be traced."""
    operations: list[TracedOperation] = []
    with counting_mode(module), silence_fvcore(), record_calls(module) as calls:
        analysis = FlopCountAnalysis(module, example)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        for kind, (name, formula) in (PRODUCTS | OTHERS).items():
            analysis.set_op_handle(kind, create_recording_handle(kind, name, formula, operations))
        macs = {name: int(value) for name, value in analysis.by_operator().items() if value}
        unsupported = {name: calls for name, calls in analysis.unsupported_ops().items() if not is_free(name)}
    by_operator = dict(sorted(macs.items(), key=lambda item: -item[1]))
    return FvcoreTrace(by_operator, dict(sorted(unsupported.items())), operations, calls)


def create_recording_handle(
    kind: str, name: str, formula: Formula, operations: list[TracedOperation]
) -> Callable[[list[Any], list[Any]], Counter[str]]:
    """Create a handle for fvcore that also records the module in which the operation runs."""

    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        macs = formula(inputs, outputs)
        scopes = outputs[0].node().scopeName().split("/")
        stack = tuple(scope for scope in scopes if scope)
        operations.append(TracedOperation(stack, macs, count_activations(kind, inputs, outputs)))
        return Counter({name: macs})

    return handle


def count_products(module: nn.Module, example: tuple[Tensor, ...]) -> int:
    """Count MACs of convolutions, matrix products and attention with PyTorch's counter, on any device."""
    with counting_mode(module), FlopCounterMode(display=False, custom_mapping=VECTOR_FORMULAS) as counter:
        module(*example)
    return counter.get_total_flops() // 2


def vector_flops(output: Any, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
    """FLOPs of a matrix-vector product, which PyTorch's counter omits. The last two shapes are the operands'."""
    matrix, _vector = [part for part in (output, *shapes) if isinstance(part, torch.Size)][-2:]
    return 2 * prod(matrix)


aten = torch.ops.aten
VECTOR_FORMULAS: dict[Any, Any] = {aten.mv: vector_flops, aten.dot: vector_flops, aten.addmv: vector_flops}


@contextlib.contextmanager
def counting_mode(module: nn.Module) -> Iterator[None]:
    """Set up a module for both counters: eval mode, no gradients, fused operators decomposed."""
    with eval_mode(module), disable_gradients(module), torch.no_grad(), decompose_attention(), decompose_lstm(module):
        yield


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Set a module and all its submodules to eval mode; restore each mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def disable_gradients(module: nn.Module) -> Iterator[None]:
    """Set requires_grad to False: PyTorch's counter fails on a parameter that is passed between modules."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def decompose_attention() -> Iterator[None]:
    """Run attention as separate matrix products, because neither counter sees its fused kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def decompose_lstm(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Run LSTMs as separate matrix products, because PyTorch's counter does not see oneDNN's fused kernel."""
    has_lstm = any(isinstance(part, nn.LSTM) for part in module.modules())
    return torch.backends.mkldnn.flags(enabled=False) if has_lstm else contextlib.nullcontext()


@contextlib.contextmanager
def silence_fvcore() -> Iterator[None]:
    """Silence the warnings of fvcore and the tracer; the result holds the same information."""
    logger = logging.getLogger("fvcore")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
