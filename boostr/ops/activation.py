"""Activations, the gated ones of transformer MLPs, and softmax. Computed in float32 or wider."""

from __future__ import annotations

import math
from collections.abc import Callable

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import DTypeError, OptionError, ShapeError
from boostr.ops import core
from boostr.ops.norm import wide
from boostr.tensor import Tensor

GELU_FORMS = ("none", "tanh")


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), in x's dtype. Source: Elfwing et al. 2017."""
    return _silu(_float("silu", x))


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return core.maximum(x, 0)


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)². Source: So et al. 2021, Primer."""
    h = relu(x)
    return h * h


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), in x's dtype. Source: Hendrycks & Gimpel 2016; CLIP."""
    h = wide(_float("quick_gelu", x))
    return core.cast(h * core.sigmoid(h * 1.702), x.dtype)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x · Φ(x), with the exact Φ ("none") or its tanh form ("tanh"). Source: Hendrycks & Gimpel."""
    if approximate not in GELU_FORMS:
        raise OptionError(f"gelu: approximate must be one of {GELU_FORMS}, got {approximate!r}")
    return _gelu(_float("gelu", x), approximate)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up. Source: Shazeer 2020, GLU Variants Improve Transformer."""
    _check_pair("swiglu", gate, up)
    return _swiglu(gate, up)


def geglu(gate: Tensor, up: Tensor, approximate: str = "none") -> Tensor:
    """gelu(gate) · up. Source: Shazeer 2020, GLU Variants Improve Transformer."""
    _check_pair("geglu", gate, up)
    if approximate not in GELU_FORMS:
        raise OptionError(f"geglu: approximate must be one of {GELU_FORMS}, got {approximate!r}")
    return _geglu(gate, up, approximate)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x - max) / sum(exp(x - max)) along `axis`; a row of -inf alone gives zeros."""
    return _softmax(_float("softmax", x), core.checked_axis("softmax", axis, x.ndim))


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x - log(sum(exp(x))) along `axis`."""
    return _log_softmax(_float("log_softmax", x), core.checked_axis("log_softmax", axis, x.ndim))


def _float(op: str, x: Tensor) -> Tensor:
    if not dtypes.is_float(x.dtype):
        raise DTypeError(f"{op}: x must be a float tensor, got {x.dtype}")
    return x


def _check_pair(op: str, gate: Tensor, up: Tensor) -> None:
    _float(op, gate)
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ShapeError(
            f"{op}: gate and up must agree, got {gate.dtype}{list(gate.shape)} and "
            f"{up.dtype}{list(up.shape)}"
        )


def _silu_composite(x: Tensor) -> Tensor:
    h = wide(x)
    return core.cast(h * core.sigmoid(h), x.dtype)


def _gelu_wide(h: Tensor, approximate: str) -> Tensor:
    if approximate == "none":
        return h * 0.5 * (1 + core.erf(h * math.sqrt(0.5)))
    inner = (h + h * h * h * 0.044715) * math.sqrt(2 / math.pi)
    return h * 0.5 * (1 + core.tanh(inner))


def _swiglu_composite(gate: Tensor, up: Tensor) -> Tensor:
    h = wide(gate)
    return core.cast(h * core.sigmoid(h) * wide(up), gate.dtype)


def _softmax_composite(x: Tensor, axis: int) -> Tensor:
    h = wide(x)
    top = core.max(h.detach(), axis, keepdims=True)
    weights = core.exp(h - core.where(top > -math.inf, top, 0.0))
    total = core.sum(weights, axis, keepdims=True)
    return core.cast(weights / core.where(total > 0, total, 1.0), x.dtype)


def _softmax_vjp(g: Tensor, y: Tensor, x: Tensor, axis: int):
    product = wide(g) * wide(y)
    return core.cast(product - wide(y) * core.sum(product, axis, keepdims=True), x.dtype), None


def _log_softmax_composite(x: Tensor, axis: int) -> Tensor:
    h = wide(x)
    shifted = h - core.max(h.detach(), axis, keepdims=True)
    total = core.log(core.sum(core.exp(shifted), axis, keepdims=True))
    return core.cast(shifted - total, x.dtype)


# -- gradients -----------------------------------------------------------------------------------
def _silu_slope(h: Tensor) -> tuple[Tensor, Tensor]:
    """(silu(h), its derivative)."""
    s = core.sigmoid(h)
    return h * s, s * (1 + h * (1 - s))


def _gelu_slope(h: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    """(gelu(h), its derivative)."""
    if approximate == "none":
        phi = 0.5 * (1 + core.erf(h * math.sqrt(0.5)))
        density = core.exp(h * h * -0.5) * (1 / math.sqrt(2 * math.pi))
        return h * phi, phi + h * density
    t = core.tanh((h + h * h * h * 0.044715) * math.sqrt(2 / math.pi))
    inner = (1 + h * h * (3 * 0.044715)) * math.sqrt(2 / math.pi)
    return h * 0.5 * (1 + t), 0.5 * (1 + t) + h * 0.5 * (1 - t * t) * inner


def _one_backward(g: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    return core.cast(wide(g) * slope, x.dtype)


def _gated_backward(
    g: Tensor, gate: Tensor, up: Tensor, pair: tuple[Tensor, Tensor], again: bool
) -> tuple[Tensor, ...]:
    """(dgate, dup) of f(gate) · up, `pair` being f and f' of gate; behind them f(gate) · up, if it
    is wanted again."""
    value, slope = pair
    dgate = core.cast(wide(g) * wide(up) * slope, gate.dtype)
    found = dgate, core.cast(wide(g) * value, up.dtype)
    return (*found, core.cast(value * wide(up), gate.dtype)) if again else found


# activation f -> (g, gate, up) -> (dgate, dup, f(gate) · up), g being the gradient of f(gate) · up
GATED_AGAIN: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]] = {
    "silu": lambda g, gate, up: _swiglu_backward(g, gate, up, True),
    "gelu": lambda g, gate, up: _geglu_backward(g, gate, up, "none", True),
    "gelu_tanh": lambda g, gate, up: _geglu_backward(g, gate, up, "tanh", True),
}


_silu = Op("silu", _silu_composite, vjp=lambda g, y, x: (_silu_backward(g, x),), saves=("x",))
_gelu = Op(
    "gelu",
    lambda x, form: core.cast(_gelu_wide(wide(x), form), x.dtype),
    vjp=lambda g, y, x, form: (_gelu_backward(g, x, form), None),
    saves=("x",),
)
_swiglu = Op(
    "swiglu",
    _swiglu_composite,
    vjp=lambda g, y, gate, up: _swiglu_backward(g, gate, up),
    saves=("gate", "up"),
)
_geglu = Op(
    "geglu",
    lambda gate, up, form: core.cast(_gelu_wide(wide(gate), form) * wide(up), gate.dtype),
    vjp=lambda g, y, gate, up, form: (*_geglu_backward(g, gate, up, form), None),
    saves=("gate", "up"),
)
_silu_backward = Op("silu_backward", lambda g, x: _one_backward(g, x, _silu_slope(wide(x))[1]))
_gelu_backward = Op(
    "gelu_backward", lambda g, x, form: _one_backward(g, x, _gelu_slope(wide(x), form)[1])
)
_swiglu_backward = Op(
    "swiglu_backward",
    lambda g, gate, up, again=False: _gated_backward(g, gate, up, _silu_slope(wide(gate)), again),
)
_geglu_backward = Op(
    "geglu_backward",
    lambda g, gate, up, form, again=False: _gated_backward(
        g, gate, up, _gelu_slope(wide(gate), form), again
    ),
)
_softmax = Op("softmax", _softmax_composite, vjp=_softmax_vjp, saves=(0,))
_log_softmax = Op("log_softmax", _log_softmax_composite)
