"""What each operator costs in multiply-accumulates (MACs), and which cost none: the table that fvcore counts by.

A product (convolution, matrix product, attention) costs as many MACs as it multiplies pairs, which is what every
counter says. For the rest we keep fvcore's conventions: a number that is normalised, averaged or interpolated costs a
few.
Element-wise arithmetic, reductions and moves cost nothing; they are listed in `FREE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from fvcore.nn import jit_handles

#: Operators that cost nothing by convention, beside those that fvcore ignores already: their cost is memory traffic,
#: which no count of MACs tells. Arithmetic and activations of single elements; reductions and choices; moves.
ELEMENTS = """abs add addcmul ceil clamp_max clamp_min cos cosh div elu erf exp fmod gelu glu hardshrink hardsigmoid
hardswish hardtanh leaky_relu log log1p log_sigmoid maximum minimum mish mul ne neg pow prelu reciprocal relu6 round
rsqrt rsub selu sigmoid sign silu sin sinh softplus softsign sqrt square sub tanh threshold true_divide where
bitwise_and bitwise_or le logical_and logical_not logical_or lt dropout feature_dropout native_dropout bernoulli"""
REDUCTIONS = """amax amin any all argmax argmin cumsum frobenius_norm linalg_norm linalg_vector_norm log_softmax
logsumexp max_pool1d max_pool2d max_pool2d_with_indices max_pool3d adaptive_max_pool2d mean min norm numel prod softmax
sort std std_mean sum topk var var_mean"""
MOVES = """adjoint alias argsort as_strided broadcast_tensors broadcast_to channel_shuffle clone col2im diagonal
empty_like expand_as fill flip gather im2col index_fill index_select lift_fresh linspace mT masked_select meshgrid
moveaxis movedim native_channel_shuffle new_ones numpy_T one_hot ones_like outer pad pixel_shuffle pixel_unshuffle rand
rand_like randn randn_like reflection_pad1d reflection_pad2d repeat repeat_interleave replication_pad2d reshape_as
resolve_conj resolve_neg scatter swapaxes swapdims tensor_split tile tril triu type unflatten unfold view_as zero Bool
Float IntImplicit"""
FREE = frozenset((ELEMENTS + " " + REDUCTIONS + " " + MOVES).split())

Formula = Callable[[list[Any], list[Any]], int]


def is_free(operator: str) -> bool:
    """Whether `operator` ("aten::add_") costs no multiply-accumulate by convention, or is not arithmetic at all."""
    space, _, name = operator.partition("::")
    if space == "prim":
        return not name.startswith(("PythonOp", "CallFunction"))  # which hide a function of somebody's
    return name in FREE or name.removesuffix("_") in FREE


def shape(value: Any) -> list[int]:
    """The shape of a traced value. Raises RuntimeError where the tracer does not know it: nothing is guessed."""
    found = jit_handles.get_shape(value)
    if found is None:
        raise RuntimeError(f"{value.debugName()}: its shape is not known")
    return found


def convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """Weights times places: those of the output, or of the input where it is transposed. The bias is free."""
    x, weight, transposed = shape(inputs[0]), shape(inputs[1]), inputs[6].toIValue()
    return prod(weight) * prod((x if transposed else shape(outputs[0]))[2:]) * (x[0] if len(x) == len(weight) else 1)


def placed(inputs: list[Any], outputs: list[Any]) -> int:
    """Weights times places of the output: a convolution that pads by "same", or one with deformed kernels."""
    answer = shape(outputs[0])
    return prod(shape(inputs[1])) * prod(answer[2:]) * answer[0]


def product(inputs: list[Any], outputs: list[Any]) -> int:
    """a @ b of matrices, batches of them and vectors, broadcast as need be: a row for each number of the answer."""
    return prod(shape(outputs[0])) * shape(inputs[0])[-1]


def added_product(inputs: list[Any], outputs: list[Any]) -> int:
    """input + a @ b: as the product; the sum is free."""
    return prod(shape(outputs[0])) * shape(inputs[1])[-1]


def tensor_product(inputs: list[Any], outputs: list[Any]) -> int:
    """tensordot(a, b, dims, dims): for each number of the answer all that is summed."""
    first = shape(inputs[0])
    return prod(shape(outputs[0])) * prod(first[axis] for axis in inputs[2].toIValue())


def attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries times keys and weights times values: n heads q k (d + dv). The softmax between them is free."""
    query, key, value = (shape(part) for part in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def recurrent(inputs: list[Any], outputs: list[Any]) -> int:
    """lstm, gru, rnn: every matrix of weights times the numbers of steps. The list of weights has matrices first."""
    lists = [list(value.node().inputs()) for value in inputs if value.node().kind() == "prim::ListConstruct"]
    weights = next(found for found in lists if found and len(shape(found[0])) == 2)
    return prod(shape(inputs[0])[:-1]) * sum(prod(shape(one)) for one in weights if len(shape(one)) == 2)


def einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Pair after pair, in the order that PyTorch takes them."""
    equation = inputs[0].toIValue().replace(" ", "")
    shapes = [shape(value) for value in inputs[1].node().inputs()]
    path = inputs[2].toIValue() if len(inputs) > 2 else None
    return contraction(equation, shapes, shape(outputs[0]), path)


def contraction(equation: str, shapes: Sequence[Sequence[int]], answer: Sequence[int], path: list[int] | None) -> int:
    """MACs of an Einstein sum. An index of one operand alone is summed before; without a common one nothing is added.

    Raises NotImplementedError for an ellipsis among more than two operands.
    """
    given, _, wanted = equation.partition("->")
    terms = given.split(",")
    if "->" not in equation:
        wanted = "".join(sorted(letter for letter in set(given) - {",", "."} if given.count(letter) == 1))
    if len(terms) == 2:
        sizes = sizes_of(terms, shapes)
        summed = (set(terms[0]) & set(terms[1])) - set(wanted) - {"."}
        return prod(answer) * prod(sizes[letter] for letter in summed) if summed else 0
    if "." in equation:
        raise NotImplementedError(f"einsum {equation!r}: an ellipsis among {len(terms)} operands")
    return chain(terms, wanted, sizes_of(terms, shapes), path)


def chain(terms: list[str], wanted: str, sizes: dict[str, int], path: list[int] | None) -> int:
    """More than two operands: PyTorch's path names a pair at a time, and puts what comes of it last."""
    total, order = 0, list(path or [])
    while len(terms) > 1:
        first, second = (order.pop(0), order.pop(0)) if order else (0, 1)
        pair = terms[first], terms[second]
        rest = [term for place, term in enumerate(terms) if place not in (first, second)]
        kept = set("".join(pair)) & set("".join([*rest, wanted]))
        summed = (set(pair[0]) & set(pair[1])) - kept
        total += prod(sizes[letter] for letter in kept | summed) if summed else 0
        made = "".join(sorted(kept))
        terms = [*rest, made] if path else [made, *rest]
    return total


def sizes_of(terms: Sequence[str], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """The size of each letter; that of an ellipsis is nobody's. A size of 1 is broadcast."""
    sizes: dict[str, int] = {}
    for term, sides in zip(terms, shapes, strict=True):
        before, dots, after = term.partition("...")
        tail = list(sides)[len(sides) - len(after) :] if dots else []
        for letter, side in zip(before + after, [*list(sides)[: len(before)], *tail], strict=False):
            sizes[letter] = max(sizes.get(letter, 1), side)
    return sizes


def each_read(cost: int) -> Formula:
    """`cost` MACs for each number that is read."""
    return lambda inputs, outputs: cost * prod(shape(inputs[0]))


def each_made(cost: int) -> Formula:
    """`cost` MACs for each number that is made."""
    return lambda inputs, outputs: cost * prod(shape(outputs[0]))


def normalisation(weight: int, cost: int) -> Formula:
    """`cost` MACs a number, one more where there are learned weights, which are input number `weight`."""
    return lambda inputs, outputs: prod(shape(inputs[0])) * (cost + (jit_handles.get_shape(inputs[weight]) is not None))


def batch_normalisation(inputs: list[Any], outputs: list[Any]) -> int:
    """With fixed statistics one MAC a number, two with learned weights, as fvcore has it; else as the others."""
    return normalisation(1, 4 if inputs[5].toIValue() else 1)(inputs, outputs)


#: products: kind of operator -> (its name in the table, formula). Both counters know them, and must agree.
PRODUCTS: dict[str, tuple[str, Formula]] = {
    "aten::_convolution": ("conv", convolution),
    "aten::_convolution_mode": ("conv", placed),
    "torchvision::deform_conv2d": ("deform_conv2d", placed),
    "aten::linear": ("linear", product),
    "aten::matmul": ("matmul", product),
    "aten::mm": ("matmul", product),
    "aten::bmm": ("matmul", product),
    "aten::mv": ("matmul", product),
    "aten::dot": ("matmul", product),
    "aten::inner": ("matmul", product),
    "aten::addmm": ("matmul", added_product),
    "aten::addmv": ("matmul", added_product),
    "aten::baddbmm": ("matmul", added_product),
    "aten::tensordot": ("matmul", tensor_product),
    "aten::einsum": ("einsum", einsum),
    "aten::scaled_dot_product_attention": ("attention", attention),
    "aten::lstm": ("recurrent", recurrent),
    "aten::gru": ("recurrent", recurrent),
    "aten::rnn_tanh": ("recurrent", recurrent),
    "aten::rnn_relu": ("recurrent", recurrent),
}
#: and all else that is counted, by fvcore's conventions
OTHERS: dict[str, tuple[str, Formula]] = {
    "aten::batch_norm": ("batch_norm", batch_normalisation),
    "aten::layer_norm": ("layer_norm", normalisation(2, 4)),
    "aten::group_norm": ("group_norm", normalisation(2, 4)),
    "aten::instance_norm": ("instance_norm", normalisation(1, 4)),
    "aten::rms_norm": ("rms_norm", normalisation(2, 2)),
    "aten::avg_pool1d": ("avg_pool", each_read(1)),
    "aten::avg_pool2d": ("avg_pool", each_read(1)),
    "aten::avg_pool3d": ("avg_pool", each_read(1)),
    "aten::adaptive_avg_pool1d": ("avg_pool", each_read(1)),
    "aten::adaptive_avg_pool2d": ("avg_pool", each_read(1)),
    "aten::adaptive_avg_pool3d": ("avg_pool", each_read(1)),
    "aten::upsample_nearest1d": ("interpolation", each_made(1)),
    "aten::upsample_nearest2d": ("interpolation", each_made(1)),
    "aten::_upsample_nearest_exact2d": ("interpolation", each_made(1)),
    "aten::upsample_linear1d": ("interpolation", each_made(2)),
    "aten::upsample_bilinear2d": ("interpolation", each_made(4)),
    "aten::_upsample_bilinear2d_aa": ("interpolation", each_made(4)),
    "aten::upsample_bicubic2d": ("interpolation", each_made(16)),
    "aten::_upsample_bicubic2d_aa": ("interpolation", each_made(16)),
    "aten::grid_sampler": ("interpolation", each_made(4)),
}
#: names of the products in a table
PRODUCT_NAMES = frozenset(name for name, _ in PRODUCTS.values())


def activations(kind: str, inputs: list[Any], outputs: list[Any]) -> int:
    """Numbers that a product of this kind makes; attention makes its scores too, even if they are never stored."""
    if kind not in PRODUCTS:
        return 0
    made = prod(shape(outputs[0]))
    if kind == "aten::scaled_dot_product_attention":
        made += prod(shape(inputs[0])[:-1]) * shape(inputs[1])[-2]
    return made
