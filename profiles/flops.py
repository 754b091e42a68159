"""What one image costs in arithmetic, by two counters that know nothing of each other.

fvcore traces the network and sums a formula per operator. It counts multiply-accumulates, whatever it calls them, so
its sum is `macs` here and `flops` is twice that. PyTorch's own counter runs the network and sees products only
(convolutions, matrix products, attention): it stays a little below fvcore, which also counts normalisation, pooling by
averages and interpolation. Neither counts element-wise arithmetic; what is left out is listed by name in `FREE`.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore compiles a loss with torch.jit when it is imported
    from fvcore.nn import FlopCountAnalysis

#: Operators that cost nothing by convention, beside those that fvcore ignores already: their cost is memory traffic,
#: which no count of MACs tells. Arithmetic and activations of single elements; reductions and choices; moves.
ELEMENTS = """abs add addcmul clamp_max clamp_min cos cosh div elu erf exp fmod gelu glu hardsigmoid hardswish hardtanh
leaky_relu log log1p maximum minimum mish mul neg pow prelu reciprocal relu6 rsqrt rsub selu sigmoid sign silu sin sinh
softplus softsign sqrt square sub tanh true_divide where bitwise_and bitwise_or le logical_and logical_not logical_or lt
ne dropout feature_dropout native_dropout bernoulli"""
REDUCTIONS = """amax amin any all argmax argmin cumsum frobenius_norm linalg_norm linalg_vector_norm log_softmax
logsumexp max_pool1d max_pool2d max_pool2d_with_indices max_pool3d adaptive_max_pool2d mean min norm numel prod softmax
std std_mean sum topk var var_mean"""
MOVES = """alias as_strided broadcast_tensors channel_shuffle clone empty_like expand_as fill flip im2col index_fill
index_select lift_fresh linspace masked_select meshgrid movedim native_channel_shuffle new_ones ones_like
outer pad pixel_shuffle pixel_unshuffle rand rand_like randn randn_like reflection_pad2d repeat
repeat_interleave replication_pad2d reshape_as resolve_conj resolve_neg scatter swapaxes swapdims
tensor_split tile tril triu type unflatten unfold view_as zero Bool Float IntImplicit"""
FREE = frozenset((ELEMENTS + " " + REDUCTIONS + " " + MOVES).split())

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


def count(module: nn.Module, example: tuple[Tensor, ...]) -> Flops:
    """Count one forward pass of `module` over `example`, in eval mode (restored afterwards).

    Raises what the forward pass raises; the meta device is not for tracing, use `products` there.
    """
    macs_torch = products(module, example)
    try:
        by_operator, unsupported = traced(module, example)
    except UNTRACEABLE:
        counter, macs, by_operator, unsupported = "torch", macs_torch, {"products": macs_torch}, {}
    else:
        counter, macs = "fvcore", sum(by_operator.values())
    return Flops(
        macs=macs,
        flops=2 * macs,
        params=sum(parameter.numel() for parameter in module.parameters()),
        macs_torch=macs_torch,
        unsupported=unsupported,
        by_operator=by_operator,
        counter=counter,
    )


def traced(module: nn.Module, example: tuple[Tensor, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """fvcore's view: MACs of each kind of operator, greatest first, and the calls it cannot count that are not free."""
    with evaluating(module), torch.no_grad(), attention_in_parts(), quiet():
        analysis = FlopCountAnalysis(module, example).ancestor_mode("caller")
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle(**HANDLERS)
        macs = {name: int(value) for name, value in analysis.by_operator().items() if value}
        left = {name: calls for name, calls in analysis.unsupported_ops().items() if not is_free(name)}
    return dict(sorted(macs.items(), key=lambda item: -item[1])), dict(sorted(left.items()))


def products(module: nn.Module, example: tuple[Tensor, ...]) -> int:
    """MACs of convolutions, matrix products and attention in one forward pass, by PyTorch's counter; any device."""
    with evaluating(module), torch.no_grad(), attention_in_parts(), FlopCounterMode(display=False) as counter:
        module(*example)
    return counter.get_total_flops() // 2


def is_free(operator: str) -> bool:
    """Whether `operator` ("aten::add_") costs no multiply-accumulate by convention, or is not arithmetic at all."""
    space, _, name = operator.partition("::")
    return space == "prim" or name in FREE or name.removesuffix("_") in FREE


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
def attention_in_parts() -> Iterator[None]:
    """`nn.MultiheadAttention` as the products it is made of: its fused call is invisible to both counters."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


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


def shape(value: Any) -> list[int]:
    """The shape of a traced value; empty where the tracer does not know one."""
    return list(value.type().sizes() or []) if value.isCompleteTensor() else []


def attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries times keys and weights times values: n heads q k (d + dv). The softmax between them is free."""
    query, key, value = (shape(part) for part in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def batched_product(inputs: list[Any], outputs: list[Any]) -> int:
    """baddbmm(input, a, b), a of [n, i, j] and b of [n, j, k]: n i j k."""
    a, b = shape(inputs[1]), shape(inputs[2])
    return prod(a) * b[-1]


def vector_product(inputs: list[Any], outputs: list[Any]) -> int:
    """mv(a, v), a of [i, j]: i j."""
    return prod(shape(inputs[0]))


def pooling(inputs: list[Any], outputs: list[Any]) -> int:
    """One accumulation for each number read."""
    return prod(shape(inputs[0]))


#: formulas that fvcore lacks
HANDLERS: dict[str, Any] = {
    "aten::scaled_dot_product_attention": attention,
    "aten::baddbmm": batched_product,
    "aten::mv": vector_product,
    "aten::avg_pool2d": pooling,
    "aten::adaptive_avg_pool1d": pooling,
}
