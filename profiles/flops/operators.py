"""Multiply-accumulates (MACs) per operator, and the operators that cost none: the table that fvcore counts by.

A product (convolution, matrix product, attention) costs one MAC per multiplied pair, as in every counter. Other
operators follow fvcore's conventions: a normalized, averaged or interpolated number costs a few MACs. Element-wise
arithmetic, reductions and data movement cost nothing; they are listed in `FREE_OPERATORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from fvcore.nn import jit_handles

#: Operators that cost nothing by convention, in addition to those that fvcore ignores: element-wise arithmetic,
#: reductions and data movement. Their cost is memory traffic, which MACs do not measure.
ELEMENTWISE = """abs add addcmul ceil clamp_max clamp_min cos cosh div elu erf exp fmod gelu glu hardshrink hardsigmoid
hardswish hardtanh leaky_relu log log1p log_sigmoid maximum minimum mish mul ne neg pow prelu reciprocal relu6 round
rsqrt rsub selu sigmoid sign silu sin sinh softplus softsign sqrt square sub tanh threshold true_divide where
bitwise_and bitwise_or le logical_and logical_not logical_or lt dropout feature_dropout native_dropout bernoulli"""
REDUCTIONS = """amax amin any all argmax argmin cumsum frobenius_norm linalg_norm linalg_vector_norm log_softmax
logsumexp max_pool1d max_pool2d max_pool2d_with_indices max_pool3d adaptive_max_pool2d mean min norm numel prod softmax
sort std std_mean sum topk var var_mean"""
DATA_MOVEMENT = """adjoint alias argsort as_strided broadcast_tensors broadcast_to channel_shuffle clone col2im diagonal
empty_like expand_as fill flip gather im2col index_fill index_select lift_fresh linspace mT masked_select meshgrid
moveaxis movedim native_channel_shuffle new_ones numpy_T one_hot ones_like outer pad pixel_shuffle pixel_unshuffle rand
rand_like randn randn_like reflection_pad1d reflection_pad2d repeat repeat_interleave replication_pad2d reshape_as
resolve_conj resolve_neg scatter swapaxes swapdims tensor_split tile tril triu type unflatten unfold view_as zero Bool
Float IntImplicit"""
FREE_OPERATORS = frozenset((ELEMENTWISE + " " + REDUCTIONS + " " + DATA_MOVEMENT).split())

Formula = Callable[[list[Any], list[Any]], int]


def is_free(operator: str) -> bool:
    """Return whether `operator` ("aten::add_") costs no MACs by convention, or is not arithmetic."""
    space, _, name = operator.partition("::")
    if space == "prim":
        return not name.startswith(("PythonOp", "CallFunction"))  # these hide a user's function
    return name in FREE_OPERATORS or name.removesuffix("_") in FREE_OPERATORS


def traced_shape(value: Any) -> list[int]:
    """Return the shape of a traced value. Raises RuntimeError if the tracer does not know it."""
    value_shape = jit_handles.get_shape(value)
    if value_shape is None:
        raise RuntimeError(f"{value.debugName()}: found an unknown shape, expected a known one")
    return value_shape


def convolution_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Weights times output positions, or input positions if it is transposed. The bias is free."""
    x, weight, transposed = traced_shape(inputs[0]), traced_shape(inputs[1]), inputs[6].toIValue()
    return (
        prod(weight)
        * prod((x if transposed else traced_shape(outputs[0]))[2:])
        * (x[0] if len(x) == len(weight) else 1)
    )


def output_convolution_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Weights times output positions: a convolution with "same" padding, or a deformable one."""
    output = traced_shape(outputs[0])
    return prod(traced_shape(inputs[1])) * prod(output[2:]) * output[0]


def matmul_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """a @ b of matrices, batches and vectors, broadcast: one row per output element."""
    return prod(traced_shape(outputs[0])) * traced_shape(inputs[0])[-1]


def addmm_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """input + a @ b: as the product; the sum is free."""
    return prod(traced_shape(outputs[0])) * traced_shape(inputs[1])[-1]


def tensordot_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """tensordot(a, b, dims, dims): the summed sizes per output element."""
    first = traced_shape(inputs[0])
    return prod(traced_shape(outputs[0])) * prod(first[axis] for axis in inputs[2].toIValue())


def attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries times keys and weights times values: n heads q k (d + dv). The softmax is free."""
    query, key, value = (traced_shape(part) for part in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def recurrent_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """lstm, gru, rnn: every weight matrix times the number of steps. Matrices come first in the weight list."""
    lists = [list(value.node().inputs()) for value in inputs if value.node().kind() == "prim::ListConstruct"]
    weights = next(value_shape for value_shape in lists if value_shape and len(traced_shape(value_shape[0])) == 2)
    return prod(traced_shape(inputs[0])[:-1]) * sum(
        prod(traced_shape(one)) for one in weights if len(traced_shape(one)) == 2
    )


def einsum_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Contract pair by pair, in PyTorch's order."""
    equation = inputs[0].toIValue().replace(" ", "")
    shapes = [traced_shape(value) for value in inputs[1].node().inputs()]
    path = inputs[2].toIValue() if len(inputs) > 2 else None
    return contraction_macs(equation, shapes, traced_shape(outputs[0]), path)


def contraction_macs(
    equation: str, shapes: Sequence[Sequence[int]], output: Sequence[int], path: list[int] | None
) -> int:
    """Return the MACs of an Einstein sum; a pair without a common index costs nothing.

    An index of one operand alone is summed first. Raises NotImplementedError for an ellipsis among more than two
    operands.
    """
    given, _, wanted = equation.partition("->")
    terms = given.split(",")
    if "->" not in equation:
        wanted = "".join(sorted(letter for letter in set(given) - {",", "."} if given.count(letter) == 1))
    if len(terms) == 2:
        sizes = index_sizes(terms, shapes)
        summed = (set(terms[0]) & set(terms[1])) - set(wanted) - {"."}
        return prod(output) * prod(sizes[letter] for letter in summed) if summed else 0
    if "." in equation:
        raise NotImplementedError(f"einsum {equation!r}: an ellipsis among {len(terms)} operands")
    return chained_contraction_macs(terms, wanted, index_sizes(terms, shapes), path)


def chained_contraction_macs(terms: list[str], wanted: str, sizes: dict[str, int], path: list[int] | None) -> int:
    """More than two operands: PyTorch's path names one pair at a time and appends its result."""
    total, order = 0, list(path or [])
    while len(terms) > 1:
        first, second = (order.pop(0), order.pop(0)) if order else (0, 1)
        pair = terms[first], terms[second]
        rest = [term for i, term in enumerate(terms) if i not in (first, second)]
        kept = set("".join(pair)) & set("".join([*rest, wanted]))
        summed = (set(pair[0]) & set(pair[1])) - kept
        total += prod(sizes[letter] for letter in kept | summed) if summed else 0
        made = "".join(sorted(kept))
        terms = [*rest, made] if path else [made, *rest]
    return total


def index_sizes(terms: Sequence[str], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """Return the size of each index letter, without an ellipsis. A size of 1 is broadcast."""
    sizes: dict[str, int] = {}
    for term, sides in zip(terms, shapes, strict=True):
        before, dots, after = term.partition("...")
        tail = list(sides)[len(sides) - len(after) :] if dots else []
        for letter, side in zip(before + after, [*list(sides)[: len(before)], *tail], strict=False):
            sizes[letter] = max(sizes.get(letter, 1), side)
    return sizes


def per_input_element(cost: int) -> Formula:
    """Create a formula: `cost` MACs per input element."""
    return lambda inputs, outputs: cost * prod(traced_shape(inputs[0]))


def per_output_element(cost: int) -> Formula:
    """Create a formula: `cost` MACs per output element."""
    return lambda inputs, outputs: cost * prod(traced_shape(outputs[0]))


def normalization_macs(weight: int, cost: int) -> Formula:
    """Create a formula: `cost` MACs per element, one more with learned weights, which are input number `weight`."""
    return lambda inputs, outputs: (
        prod(traced_shape(inputs[0])) * (cost + (jit_handles.get_shape(inputs[weight]) is not None))
    )


def batch_norm_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """One MAC per element with fixed statistics, two with learned weights, as in fvcore; else as other norms."""
    return normalization_macs(1, 4 if inputs[5].toIValue() else 1)(inputs, outputs)


#: products: operator -> (name in the table, formula). Both counters count them and must agree.
PRODUCTS: dict[str, tuple[str, Formula]] = {
    "aten::_convolution": ("conv", convolution_macs),
    "aten::_convolution_mode": ("conv", output_convolution_macs),
    "torchvision::deform_conv2d": ("deform_conv2d", output_convolution_macs),
    "aten::linear": ("linear", matmul_macs),
    "aten::matmul": ("matmul", matmul_macs),
    "aten::mm": ("matmul", matmul_macs),
    "aten::bmm": ("matmul", matmul_macs),
    "aten::mv": ("matmul", matmul_macs),
    "aten::dot": ("matmul", matmul_macs),
    "aten::inner": ("matmul", matmul_macs),
    "aten::addmm": ("matmul", addmm_macs),
    "aten::addmv": ("matmul", addmm_macs),
    "aten::baddbmm": ("matmul", addmm_macs),
    "aten::tensordot": ("matmul", tensordot_macs),
    "aten::einsum": ("einsum", einsum_macs),
    "aten::scaled_dot_product_attention": ("attention", attention_macs),
    "aten::lstm": ("recurrent", recurrent_macs),
    "aten::gru": ("recurrent", recurrent_macs),
    "aten::rnn_tanh": ("recurrent", recurrent_macs),
    "aten::rnn_relu": ("recurrent", recurrent_macs),
}
#: other counted operators, by fvcore's conventions
OTHERS: dict[str, tuple[str, Formula]] = {
    "aten::batch_norm": ("batch_norm", batch_norm_macs),
    "aten::layer_norm": ("layer_norm", normalization_macs(2, 4)),
    "aten::group_norm": ("group_norm", normalization_macs(2, 4)),
    "aten::instance_norm": ("instance_norm", normalization_macs(1, 4)),
    "aten::rms_norm": ("rms_norm", normalization_macs(2, 2)),
    "aten::avg_pool1d": ("avg_pool", per_input_element(1)),
    "aten::avg_pool2d": ("avg_pool", per_input_element(1)),
    "aten::avg_pool3d": ("avg_pool", per_input_element(1)),
    "aten::adaptive_avg_pool1d": ("avg_pool", per_input_element(1)),
    "aten::adaptive_avg_pool2d": ("avg_pool", per_input_element(1)),
    "aten::adaptive_avg_pool3d": ("avg_pool", per_input_element(1)),
    "aten::upsample_nearest1d": ("interpolation", per_output_element(1)),
    "aten::upsample_nearest2d": ("interpolation", per_output_element(1)),
    "aten::_upsample_nearest_exact2d": ("interpolation", per_output_element(1)),
    "aten::upsample_linear1d": ("interpolation", per_output_element(2)),
    "aten::upsample_bilinear2d": ("interpolation", per_output_element(4)),
    "aten::_upsample_bilinear2d_aa": ("interpolation", per_output_element(4)),
    "aten::upsample_bicubic2d": ("interpolation", per_output_element(16)),
    "aten::_upsample_bicubic2d_aa": ("interpolation", per_output_element(16)),
    "aten::grid_sampler": ("interpolation", per_output_element(4)),
}
#: names of the products in a table
PRODUCT_NAMES = frozenset(name for name, _ in PRODUCTS.values())


def count_activations(kind: str, inputs: list[Any], outputs: list[Any]) -> int:
    """Return the output elements of a product; attention also makes its scores, even if they are not stored."""
    if kind not in PRODUCTS:
        return 0
    made = prod(traced_shape(outputs[0]))
    if kind == "aten::scaled_dot_product_attention":
        made += prod(traced_shape(inputs[0])[:-1]) * traced_shape(inputs[1])[-2]
    return made
