"""The primitives as ops, each with its gradient. Everything else in `ops/` is composed of these."""
# ruff: noqa: A004  (named as in numpy)

import sys

from boostr import tensor
from boostr.ops.elementwise import (
    abs,
    add,
    bitwise_and,
    bitwise_or,
    bitwise_xor,
    cast,
    check_broadcast,
    cos,
    div,
    eq,
    erf,
    exp,
    floor,
    floor_div,
    ge,
    gt,
    le,
    left_shift,
    log,
    logical_not,
    lt,
    maximum,
    minimum,
    mod,
    mul,
    ne,
    neg,
    pow,
    right_shift,
    round,
    rsqrt,
    sigmoid,
    sign,
    sin,
    sqrt,
    sub,
    tanh,
    where,
)
from boostr.ops.indexing import index, scatter_add, take, take_along
from boostr.ops.reduce import (
    argmax,
    argsort,
    cumsum,
    matmul,
    max,
    mean,
    min,
    sum,
)
from boostr.ops.views import (
    bitcast,
    broadcast_to,
    checked_axis,
    concat,
    contiguous,
    permute,
    reshape,
    split,
    unbroadcast,
)

__all__ = [
    "abs", "add", "argmax", "argsort", "bitcast", "bitwise_and", "bitwise_or", "bitwise_xor",
    "broadcast_to", "cast", "check_broadcast", "checked_axis", "concat", "contiguous", "cos",
    "cumsum", "div", "eq", "erf", "exp", "floor", "floor_div", "ge", "gt", "index", "le",
    "left_shift", "log", "logical_not", "lt", "matmul", "max", "maximum", "mean", "min",
    "minimum", "mod", "mul", "ne", "neg", "permute", "pow", "reshape", "right_shift", "round",
    "rsqrt", "scatter_add", "sigmoid", "sign", "sin", "split", "sqrt", "sub", "sum", "take",
    "take_along", "tanh", "unbroadcast", "where",
]  # fmt: skip

tensor.forward_to(sys.modules[__name__])
