"""What one image costs in arithmetic, by two counters that know nothing of each other.

fvcore traces the network and sums a formula per operator (`profiles.formulas`). It counts multiply-accumulates,
whatever it calls them, so its sum is `macs` here and `flops` is twice that. PyTorch's own counter runs the network and
sees products only (convolutions, matrix products, attention): there both agree to the last digit, and all of what
fvcore finds above it is normalisation, pooling by averages and interpolation. Neither counts element-wise arithmetic.
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

from profiles.layers import Layer, Work, calls_of, layers_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore compiles a loss with torch.jit when it is imported
    from fvcore.nn import FlopCountAnalysis

    from profiles.formulas import OTHERS, PRODUCT_NAMES, PRODUCTS, Formula, activations, is_free

#: what fvcore's tracer raises for programs of torch.export and TorchScript
UNTRACEABLE = (RuntimeError, TypeError, AttributeError, NotImplementedError, ValueError)


@dataclass(frozen=True)
class Flops:
    """Arithmetic of one forward pass over the example that was counted (one image: a batch of 1)."""

    macs: int  #: multiply-accumulates by fvcore
    flops: int  #: 2 * macs
    params: int  #: learned numbers, each counted once however often it is shared
    macs_torch: int  #: by torch.utils.flop_counter: products only
    unsupported: dict[str, int]  #: operator -> calls that fvcore could not count and that are not free: macs is too low
    by_operator: dict[str, int]  #: kind of operator -> macs
    counter: str = "fvcore"  #: "torch" for a program that fvcore cannot trace: then macs is macs_torch, products only
    products: int = 0  #: of macs, those in products: equal to macs_torch where both counters agree
    activations: int | None = None  #: numbers that products make; None for a program that fvcore cannot trace
    layers: tuple[Layer, ...] = ()  #: every module, the whole first; empty for a program that fvcore cannot trace


@dataclass(frozen=True)
class Trace:
    """fvcore's view."""

    by_operator: dict[str, int]  #: kind of operator -> MACs, greatest first
    unsupported: dict[str, int]  #: operator -> calls that it cannot count and that are not free
    works: list[Work]  #: every operation that was counted
    calls: Counter[tuple[str, ...]]  #: as `profiles.layers.calls_of`


def count(module: nn.Module, example: tuple[Tensor, ...]) -> Flops:
    """Count one forward pass of `module` over `example`, in eval mode (restored afterwards).

    Raises what the forward pass raises; the meta device is not for tracing, use `products` there.
    """
    macs_torch = products(module, example)
    params = sum(parameter.numel() for parameter in module.parameters())
    try:
        found = traced(module, example)
    except UNTRACEABLE:
        by_operator = {"products": macs_torch}
        return Flops(macs_torch, 2 * macs_torch, params, macs_torch, {}, by_operator, "torch", macs_torch)
    macs = sum(found.by_operator.values())
    return Flops(
        macs=macs,
        flops=2 * macs,
        params=params,
        macs_torch=macs_torch,
        unsupported=found.unsupported,
        by_operator=found.by_operator,
        products=sum(macs for name, macs in found.by_operator.items() if name in PRODUCT_NAMES),
        activations=sum(work.activations for work in found.works),
        layers=tuple(layers_of(module, found.works, found.calls)),
    )


def traced(module: nn.Module, example: tuple[Tensor, ...]) -> Trace:
    """What fvcore sees of one forward pass, in one trace. Raises one of `UNTRACEABLE` where it sees nothing."""
    works: list[Work] = []
    with running(module), quiet(), calls_of(module) as calls:
        analysis = FlopCountAnalysis(module, example)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        for kind, (name, formula) in (PRODUCTS | OTHERS).items():
            analysis.set_op_handle(kind, noting(kind, name, formula, works))
        macs = {name: int(value) for name, value in analysis.by_operator().items() if value}
        left = {name: calls for name, calls in analysis.unsupported_ops().items() if not is_free(name)}
    return Trace(dict(sorted(macs.items(), key=lambda item: -item[1])), dict(sorted(left.items())), works, calls)


def noting(kind: str, name: str, formula: Formula, works: list[Work]) -> Callable[[list[Any], list[Any]], Counter[str]]:
    """A handle for fvcore that also notes where the operation stands."""

    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        macs = formula(inputs, outputs)
        scopes = outputs[0].node().scopeName().split("/")
        stack = tuple(scope for scope in scopes if scope)
        works.append(Work(stack, macs, activations(kind, inputs, outputs)))
        return Counter({name: macs})

    return handle


def products(module: nn.Module, example: tuple[Tensor, ...]) -> int:
    """MACs of convolutions, matrix products and attention in one forward pass, by PyTorch's counter; any device."""
    with running(module), FlopCounterMode(display=False, custom_mapping=VECTORS) as counter:
        module(*example)
    return counter.get_total_flops() // 2


def vector_flops(answer: Any, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
    """FLOPs of a product with a vector, which PyTorch's counter leaves out. The last two shapes are the operands'."""
    matrix, _vector = [part for part in (answer, *shapes) if isinstance(part, torch.Size)][-2:]
    return 2 * prod(matrix)


aten = torch.ops.aten
VECTORS: dict[Any, Any] = {aten.mv: vector_flops, aten.dot: vector_flops, aten.addmv: vector_flops}


@contextlib.contextmanager
def running(module: nn.Module) -> Iterator[None]:
    """As both counters want it: eval mode, no gradients, attention in the parts that it is made of."""
    with evaluating(module), frozen(module), torch.no_grad(), attention_in_parts(), lstm_in_parts(module):
        yield


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the outermost module and all within it; afterwards each has the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter asks for gradients: PyTorch's counter stumbles over one that is handed from module to module."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def attention_in_parts() -> Iterator[None]:
    """`nn.MultiheadAttention` as the products it is made of, for its fused call is invisible to both counters; and
    attention by PyTorch's plain code, whose products are counted on every device."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def lstm_in_parts(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """An LSTM as the products it is made of: oneDNN's fused one is invisible to PyTorch's counter."""
    here = any(isinstance(part, nn.LSTM) for part in module.modules())
    return torch.backends.mkldnn.flags(enabled=False) if here else contextlib.nullcontext()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """fvcore and the tracer talk a lot; what they say is in the result."""
    logger = logging.getLogger("fvcore")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
