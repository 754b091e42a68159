"""The operators that a program of unknown origin may call: arithmetic on tensors and shapes, nothing with an effect.

An operator of ATen is allowed by its schema: it takes and returns tensors, and the only texts it takes are modes. That
excludes files, printing, streams and storages. Operators with packed or unchecked memory are excluded by name.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torch

#: what is allowed outside ATen, each with its whole name
OTHER_OPERATORS = re.compile(
    r"torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.ops\.torchvision\.(nms|roi_align|roi_pool|ps_roi_align|ps_roi_pool|deform_conv2d)\.default"
    r"|torch\.ops\.prims\.(convert_element_type|view_of|broadcast_in_dim|iota)\.default"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|getitem|and_|or_)"
    r"|torch\.sym_(max|min|not|int|float|ite|sqrt|sum)|torch\._sym_sqrt"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
ATEN_OPERATOR = re.compile(r"torch\.ops\.aten\.([A-Za-z]\w*|_[a-z]\w*)\.(\w+)", re.ASCII)
#: operators without tensors as input
FACTORIES = {
    "arange", "empty", "empty_permuted", "empty_strided", "eye", "full", "linspace", "logspace", "ones", "rand",
    "randint", "randn", "randperm", "scalar_tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
#: operators without a result
ASSERTIONS = {
    "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range",
    "sym_constrain_range_for_size",
}  # fmt: skip
#: internal operators of ATen that exported networks contain
INTERNAL_OPERATORS = re.compile(
    r"_assert_(async|scalar|tensor_metadata)|_functional_assert_(async|scalar)|_to_copy|_unsafe_view"
    r"|_(log_)?softmax|_safe_softmax|_local_scalar_dense|_convolution|_convolution_mode|_batch_norm\w*"
    r"|_native_batch_norm_legit\w*|_native_multi_head_attention|_transformer_encoder_layer_fwd"
    r"|_scaled_dot_product_\w*attention\w*|_adaptive_avg_pool[23]d|_upsample_\w+|_fft_(r2c|c2c|c2r)|_conj\w*|_weight_norm"
    r"|_linalg_\w+|_cdist_forward|_pdist_forward|_prelu_kernel|_embedding_bag|_trilinear|_euclidean_dist|_unsafe_index"
    r"|_shape_as_tensor|_stack|_cat|_unique2?"
)
#: arguments that are texts: names of modes, and messages of assertions
TEXT_ARGUMENTS = {
    "approximate", "assert_msg", "driver", "equation", "indexing", "interpolation", "mode", "norm", "ord", "pad_mode",
    "padding", "padding_side", "reduce", "rounding_mode", "side", "UPLO", "p", "api_name",
}  # fmt: skip
#: they replace the memory of a tensor, or read memory that nothing has checked
UNCHECKED = re.compile(
    r"(set|resize|resize_as|data|shallow_copy_data)_?|(?!fake_quantize)\w*(sparse|nested|mkldnn|cudnn|miopen|mps|xla"
    r"|vulkan|fbgemm|quantize|fused|storage|unsafe_masked|jagged)\w*"
)
ARGUMENT_TYPES = re.compile(r"(Optional\[|List\[)*(Tensor|int|bool|number|float|Device|Generator|str)\]*")


def is_allowed_operator(target: str) -> bool:
    """Whether a serialized program may call the operator `target`, such as `torch.ops.aten.relu.default`."""
    if OTHER_OPERATORS.fullmatch(target):
        return True
    match = ATEN_OPERATOR.fullmatch(target)
    if match is None or UNCHECKED.fullmatch(match[1]):
        return False
    if match[1].startswith("_") and not INTERNAL_OPERATORS.fullmatch(match[1]):
        return False
    name = f"aten::{match[1]}" + ("" if match[2] == "default" else f".{match[2]}")
    if name not in dispatcher_names():
        return False
    return has_pure_schema(match[1], getattr(getattr(torch.ops.aten, match[1]), match[2])._schema)


@functools.cache
def dispatcher_names() -> frozenset[str]:
    """The operators of the dispatcher; those of TorchScript's interpreter, such as aten::save, are not among them."""
    return frozenset(torch._C._dispatch_get_all_op_names())


def has_pure_schema(name: str, schema: Any) -> bool:
    kinds = [str(argument.type) for argument in schema.arguments]
    texts = {argument.name for argument in schema.arguments if "str" in str(argument.type)}
    return (
        all(ARGUMENT_TYPES.fullmatch(kind) for kind in kinds)
        and texts <= TEXT_ARGUMENTS
        and (bool(schema.returns) or name in ASSERTIONS)
        and (any("Tensor" in kind for kind in kinds) or name in FACTORIES | ASSERTIONS)
    )
