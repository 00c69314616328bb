"""Elementwise primitives: one operand, two operands, `where` and `cast`, each with its gradient.

Operands broadcast as in numpy; two tensors of different dtypes are brought to their common one
(`bf16 + f32 = f32`), Python numbers take the tensor's.
"""
# ruff: noqa: A001  (named as in numpy)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import COMPARE
from boostr.dispatch import Op, Saves, common_backend
from boostr.errors import DTypeError, ShapeError
from boostr.ops.views import unbroadcast
from boostr.tensor import Tensor

Operand = Any  # Tensor, numpy array or Python number


def _wrap(data: Any, like: Tensor) -> Tensor:
    return Tensor.wrap(data, like.backend)


# -- one operand ---------------------------------------------------------------------------------
def _unary(
    name: str, vjp: Callable[..., Any] | None = None, saves: Saves = ()
) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        return _wrap(x.backend.unary(name, x.data), x)

    def gradient(g: Tensor, y: Tensor, x: Tensor) -> tuple[Any]:
        return (vjp(g, y, x) if vjp else None,)

    op = Op(name, run, vjp=gradient, saves=saves, primitive=True)

    def function(x: Tensor) -> Tensor:
        if name in _FLOAT_ONLY and not dtypes.is_float(x.dtype):
            x = cast(x, dtypes.float32)
        return op(x)

    function.__name__ = name
    function.__doc__ = f"{name} of every element; integers become float32 where the result is real."
    return function


_FLOAT_ONLY = {"exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf", "sigmoid"}

neg = _unary("neg", lambda g, y, x: -g)
abs = _unary("abs", lambda g, y, x: g * sign(x), ("x",))
exp = _unary("exp", lambda g, y, x: g * y, (0,))
log = _unary("log", lambda g, y, x: g / x, ("x",))
sqrt = _unary("sqrt", lambda g, y, x: g / (y * 2), (0,))
rsqrt = _unary("rsqrt", lambda g, y, x: g * y * y * y * -0.5, (0,))
sin = _unary("sin", lambda g, y, x: g * cos(x), ("x",))
cos = _unary("cos", lambda g, y, x: -g * sin(x), ("x",))
tanh = _unary("tanh", lambda g, y, x: g * (1 - y * y), (0,))
erf = _unary("erf", lambda g, y, x: g * exp(-x * x) * (2 / math.sqrt(math.pi)), ("x",))
sigmoid = _unary("sigmoid", lambda g, y, x: g * y * (1 - y), (0,))
floor = _unary("floor")
round = _unary("round")
logical_not = _unary("logical_not")


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1, in x's dtype; has no gradient."""
    return cast(gt(x, 0), x.dtype) - cast(lt(x, 0), x.dtype)


def _cast(x: Tensor, dtype: np.dtype) -> Tensor:
    return _wrap(x.backend.cast(x.data, dtype), x)


_cast_op = Op(
    "cast",
    _cast,
    vjp=lambda g, y, x, dtype: (cast(g, x.dtype), None),
    saves=(),
    primitive=True,
)


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x in another dtype; x itself if it has it already."""
    wanted = dtypes.parse(dtype)
    return x if x.dtype == wanted else _cast_op(x, wanted)


# -- two operands --------------------------------------------------------------------------------
def _binary(
    name: str,
    vjp: Callable[..., Any] | None = None,
    saves: Saves = ("a", "b", 0),
) -> Callable[..., Tensor]:
    def run(a: Operand, b: Operand) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        dtype = _common_dtype(a, b)
        x, y = (v.data if isinstance(v, Tensor) else v for v in (a, b))
        return _wrap(like.backend.binary(name, x, y, dtype), like)

    def gradient(g: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Any, ...]:
        if vjp is None:
            return None, None
        return tuple(
            unbroadcast(part(), v) if _wanted(v) else None
            for part, v in zip(vjp(g, y, a, b), (a, b), strict=True)
        )

    op = Op(name, run, vjp=gradient, saves=saves if vjp else (), primitive=True)

    def function(a: Operand, b: Operand) -> Tensor:
        a, b = _operands(name, a, b)
        return op(a, b)

    function.__name__ = name
    function.__doc__ = f"{name} of two broadcast operands{', as bool' * (name in COMPARE)}."
    return function


def _wanted(v: Operand) -> bool:
    """Whether an operand is a tensor whose gradient is asked for."""
    return getattr(v, "requires_grad", False)


def _operands(name: str, a: Operand, b: Operand) -> tuple[Operand, Operand]:
    """Numpy arrays become tensors, shapes are checked, true division leaves the integers."""
    like = a if isinstance(a, Tensor) else b
    if not isinstance(like, Tensor):
        raise DTypeError(f"{name}: one operand must be a Tensor, got {type(a)} and {type(b)}")
    a, b = (
        Tensor(v, backend=like.backend) if isinstance(v, np.ndarray | np.generic) else v
        for v in (a, b)
    )
    for v in (a, b):
        if not isinstance(v, Tensor | bool | int | float):
            raise DTypeError(f"{name}: expected a Tensor or a number, got {type(v).__name__}")
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        common_backend(name, [a, b])
        check_broadcast(name, a.shape, b.shape)
    if name == "div":
        a, b = (
            cast(v, dtypes.float32) if isinstance(v, Tensor) and not dtypes.is_float(v.dtype) else v
            for v in (a, b)
        )
    return a, b


def check_broadcast(name: str, *shapes: tuple[int, ...]) -> None:
    """Raise where shapes do not broadcast against each other."""
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        got = " and ".join(str(list(s)) for s in shapes)
        raise ShapeError(f"{name}: shapes {got} do not broadcast") from None


def _common_dtype(a: Operand, b: Operand) -> np.dtype:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype if a.dtype == b.dtype else np.result_type(a.dtype, b.dtype)
    tensor, number = (a, b) if isinstance(a, Tensor) else (b, a)
    if isinstance(number, float) and not dtypes.is_float(tensor.dtype):
        return dtypes.float32
    return tensor.dtype


def _log(x: Operand) -> Operand:
    return log(x) if isinstance(x, Tensor) else math.log(x)


def _where_max(g: Tensor, y: Tensor, a: Operand, b: Operand) -> tuple[Any, Any]:
    """Gradient of maximum and minimum: to the chosen operand, shared where they tie."""

    def share(v: Operand, other: Operand) -> Tensor:
        chosen, tie = cast(eq(y, v), g.dtype), cast(eq(y, other), g.dtype)
        return g * chosen / (chosen + tie)

    return lambda: share(a, b), lambda: share(b, a)


add = _binary("add", lambda g, y, a, b: (lambda: g, lambda: g), saves=())
sub = _binary("sub", lambda g, y, a, b: (lambda: g, lambda: -g), saves=())
mul = _binary("mul", lambda g, y, a, b: (lambda: g * b, lambda: g * a), saves={"a": "b", "b": "a"})
div = _binary(
    "div", lambda g, y, a, b: (lambda: g / b, lambda: -g * y / b), saves={"b": None, 0: "b"}
)
pow = _binary("pow", lambda g, y, a, b: (lambda: g * b * pow(a, b - 1), lambda: g * y * _log(a)))
maximum = _binary("maximum", _where_max)
minimum = _binary("minimum", _where_max)
floor_div = _binary("floor_div")
mod = _binary("mod")
bitwise_and = _binary("bitwise_and")
bitwise_or = _binary("bitwise_or")
bitwise_xor = _binary("bitwise_xor")
right_shift = _binary("right_shift")
left_shift = _binary("left_shift")
eq, ne, lt, le, gt, ge = (_binary(name) for name in COMPARE)


def _where(condition: Tensor, a: Operand, b: Operand) -> Tensor:
    dtype = _common_dtype(a, b)
    x, y = (v.data if isinstance(v, Tensor) else v for v in (a, b))
    return _wrap(condition.backend.where(condition.data, x, y, dtype), condition)


def _where_vjp(g: Tensor, y: Tensor, condition: Tensor, a: Operand, b: Operand) -> tuple:
    left = unbroadcast(where(condition, g, 0), a) if _wanted(a) else None
    right = unbroadcast(where(condition, 0, g), b) if _wanted(b) else None
    return None, left, right


_where_op = Op("where", _where, vjp=_where_vjp, saves=("condition",), primitive=True)


def where(condition: Tensor, a: Operand, b: Operand) -> Tensor:
    """a where the bool condition is true, else b; at least one of a, b is a tensor."""
    if not isinstance(condition, Tensor) or condition.dtype != dtypes.bool_:
        got = condition.dtype if isinstance(condition, Tensor) else type(condition).__name__
        raise DTypeError(f"where: condition must be a bool tensor, got {got}")
    a, b = _operands("where", a, b)
    tensors = [condition, *(v for v in (a, b) if isinstance(v, Tensor))]
    common_backend("where", tensors)
    check_broadcast("where", *(v.shape for v in tensors))
    return _where_op(condition, a, b)
