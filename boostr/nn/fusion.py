"""The places where a decoder layer's ops may run as one kernel: the only decision about fusion.

Each site is an op whose composite is its parts, ordinary ops in the same order. A backend's kernel
takes the operands it knows and refuses the rest by name; then the parts run, each with its own
kernel, and `BOOSTR_DEBUG=1` and `Program.describe()` say which fell apart and why. So a new kind of
norm, weight or option is right everywhere first, and fast where a kernel learns it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from boostr import autograd, dtypes, ops
from boostr.dispatch import Op, is_recorded
from boostr.errors import OptionError, ShapeError
from boostr.operands import Cache, HeadNorms, Norm, Rope
from boostr.ops.activation import GATED_AGAIN
from boostr.ops.linear import (
    Weight,
    bias_gradient,
    linear_input_gradient,
    linear_weight_gradient,
)
from boostr.options import AttentionOptions, attention_options
from boostr.tensor import Tensor

# `hidden_act` of a config -> the activation's name here
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}
_ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": ops.silu,
    "gelu": ops.gelu,
    "gelu_tanh": lambda x: ops.gelu(x, "tanh"),
    "quick_gelu": ops.quick_gelu,
    "relu": ops.relu,
    "relu2": ops.relu2,
}
_GATED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": ops.swiglu,
    "gelu": ops.geglu,
    "gelu_tanh": lambda gate, up: ops.geglu(gate, up, "tanh"),
    "quick_gelu": lambda gate, up: ops.quick_gelu(gate) * up,
    "relu": lambda gate, up: ops.relu(gate) * up,
    "relu2": lambda gate, up: ops.relu2(gate) * up,
}


def activation(hidden_act: str) -> str:
    """The activation of a config's `hidden_act`, or an error that lists the known names."""
    if hidden_act not in ACTIVATIONS:
        raise OptionError(
            f"unknown activation {hidden_act!r}; known: {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[hidden_act]


# -- 1: products of one input --------------------------------------------------------------------
def products(
    x: Tensor,
    norm: Norm | None,
    weights: Sequence[Weight],
    biases: Sequence[Tensor | None],
    activation: str | None = None,
    dtype: object = None,
) -> Tensor | tuple[Tensor, ...]:
    """h @ weightᵀ + bias for each weight, of h = norm(x), or x.

    Args:
        x: [T, E].   weights: [N, E] in any form.   biases: [N] or None, one for each weight.
        activation: of ACTIVATIONS' values: of two products act(first) · second, of one act(it).
        dtype: of the results; default x's.
    Returns:
        [T, N]; without an activation a tuple of them where there are several weights.
    """
    if len(weights) != len(biases) or not weights:
        raise ShapeError(f"products: {len(weights)} weights and {len(biases)} biases")
    if activation is not None and (activation not in _ACTS or len(weights) > 2):
        raise OptionError(
            f"products: activation must be one of {tuple(_ACTS)} of one or two products, "
            f"got {activation!r} of {len(weights)}"
        )
    for weight in weights:
        if weight.shape[-1] != x.shape[-1]:
            raise ShapeError(
                f"products: a weight must be [N, {x.shape[-1]}], got {list(weight.shape)}"
            )
    wanted = x.dtype if dtype is None else dtypes.parse(dtype)
    operands = (x, norm, list(weights), list(biases))
    if activation is not None and is_recorded(operands):
        return _activated(_products(*operands, None, wanted), activation)
    return _products(*operands, activation, wanted)


def _products_of(
    x: Tensor, norm: Norm | None, weights: list, biases: list, activation: str | None,
    dtype: np.dtype,
) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
    h = x if norm is None else normed(x, norm)
    made = tuple(ops.linear(h, w, b, dtype=dtype) for w, b in zip(weights, biases, strict=True))
    if activation is None:
        return made if len(weights) > 1 else made[0]
    return _activated(made, activation)


def _activated(made: Tensor | tuple[Tensor, ...], activation: str) -> Tensor:
    made = (made,) if isinstance(made, Tensor) else made
    return _ACTS[activation](*made) if len(made) == 1 else _GATED[activation](*made)


def _products_vjp(
    given, outputs, x: Tensor, norm: Norm | None, weights: list, biases: list,
    activation: str | None, dtype: np.dtype, passed: Tensor | None = None,
):  # fmt: skip
    """The norm is computed again, so that its result need not be kept; the gradients of what all
    products read are added up by the products, and `passed` by the norm."""
    with autograd.set_enabled(True):
        h = x if norm is None else normed(x, norm)
    dh, dweights, dbiases = None, [], []
    for g, weight, bias in zip(_as_tuple(given), weights, biases, strict=True):
        dweight = dbias = None
        if g is not None:
            if h.requires_grad:
                dh = linear_input_gradient(g, weight, h.dtype, dh)
            if isinstance(weight, Tensor) and weight.requires_grad:
                dweight = linear_weight_gradient(g, h.detach(), weight.dtype, None)
            dbias = bias_gradient(g, bias)
        dweights.append(dweight)
        dbiases.append(dbias)
    if norm is None or dh is None:
        dx = dh if dh is None or passed is None else passed + dh
        return dx, None, dweights, dbiases, None, None
    inputs = [x, norm.weight] if norm.bias is None else [x, norm.weight, norm.bias]
    dx, *dnorm = autograd.gradients(h, inputs, dh, passed=passed)
    return dx, (None, *dnorm, *[None] * (4 - len(dnorm))), dweights, dbiases, None, None


def _as_tuple(given: Any) -> tuple[Any, ...]:
    """Results, or their gradients, of which there may be one alone."""
    return given if isinstance(given, tuple) else (given,)


def normed(x: Tensor, norm: Norm) -> Tensor:
    """x under a norm operand, over the last axis."""
    if norm.kind == "layer":
        weight = norm.weight + norm.offset if norm.offset else norm.weight
        return ops.layer_norm(x, weight, norm.bias, eps=norm.eps)
    return ops.rms_norm(x, norm.weight, eps=norm.eps, weight_offset=norm.offset)


# -- 2: heads ------------------------------------------------------------------------------------
def heads(
    q: Tensor, k: Tensor, v: Tensor, norms: HeadNorms, rope: Rope | None, cache: Cache | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Norms of heads, rope, and with a cache k and v written into it, in this order; or norms
    after rope.

    Args:
        q: [T, H, D].   k: [T, K, D].   v: [T, K, Dv].
        norms: with weights [D] of each head, [H, D] and [K, D] of its own, or [H·D], [K·D] over all
            heads at once.
    Returns:
        q, k, v as they came to be.
    """
    if not norms.after_rope:
        q, k = _normed_heads(q, norms.q), _normed_heads(k, norms.k)
    if rope is not None:
        q, k = (ops.rope(t, rope.cos, rope.sin, rope.rows, layout=rope.layout) for t in (q, k))
    if norms.after_rope:
        q, k = _normed_heads(q, norms.q), _normed_heads(k, norms.k)
    if rope is not None and rope.query_factors is not None:
        factors = ops.core.take(rope.query_factors, rope.rows, 0).reshape(-1, 1, 1)
        q = q * ops.core.cast(factors, q.dtype)
    if cache is not None:
        ops.kv_write(k, v, cache.keys, cache.values, cache.slots)
    return q, k, v


def _normed_heads(x: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return x
    T, H, D = x.shape
    if norm.weight.shape == (D,):
        return normed(x, norm)
    if norm.weight.shape == (H, D):
        ones = norm.weight[0].full_like(1)
        return normed(x, norm._replace(weight=ones)) * ops.core.cast(norm.weight, x.dtype)
    return normed(x.reshape(T, H * D), norm).reshape(T, H, D)


def attention_inputs(
    x: Tensor,
    norm: Norm | None,
    weights: Sequence[Weight],
    biases: Sequence[Tensor | None],
    norms: HeadNorms,
    rope: Rope | None,
    cache: Cache | None,
    *,
    head_dim: int,
) -> tuple[Tensor, Tensor, Tensor] | Tensor:
    """Sites 1 and 2 in one: `heads` of the `products` q, k, v of x, cut into heads of `head_dim`.

    Returns:
        q [T, H, D], k [T, K, D], v [T, K, D]; with a cache, which has k and v then, q alone.
    """
    if len(weights) != 3 or len(biases) != 3:
        raise ShapeError(
            f"attention_inputs: expected weights and biases of q, k, v, got {len(weights)} and "
            f"{len(biases)}"
        )
    for weight in weights:
        if weight.shape[0] % head_dim or weight.shape[1] != x.shape[-1]:
            raise ShapeError(
                f"attention_inputs: a weight must be [heads · {head_dim}, {x.shape[-1]}], "
                f"got {list(weight.shape)}"
            )
    return _attention_inputs(x, norm, list(weights), list(biases), norms, rope, cache, head_dim)


def _inputs_of(x, norm, weights, biases, norms, rope, cache, head_dim):
    made = products(x, norm, weights, biases)
    q, k, v = (t.reshape(len(x), -1, head_dim) for t in made)
    q, k, v = heads(q, k, v, norms, rope, cache)
    return q if cache is not None else (q, k, v)


# -- 3: attention over a cache, and its output ---------------------------------------------------
def attend(
    q: Tensor,
    cache: Cache,
    cu_seqlens_q: Tensor,
    weight: Weight,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """residual + factor · (bias + weight · paged_attention(q, ...)), causal: [T, E].

    The options are those of `ops.paged_attention`.
    """
    options = attention_options("attend", q.shape[2], True, window, scale, softcap, "bottom-right")
    return _attend(
        q, cache, cu_seqlens_q, alibi_slopes, sinks, options, weight, bias, factor, residual
    )


def _attended(
    q: Tensor, cache: Cache, cu: Tensor, alibi: Tensor | None, sinks: Tensor | None,
    options: AttentionOptions, weight: Weight, bias: Tensor | None, factor: float,
    residual: Tensor | None,
) -> Tensor:  # fmt: skip
    out, _ = ops.paged_attention(
        q, cache.keys, cache.values, cu, cache.block_table, cache.kv_lens,
        window=(options.left, options.right), scale=options.scale, softcap=options.softcap,
        alibi_slopes=alibi, sinks=sinks,
    )  # fmt: skip
    return product(out.reshape(len(q), -1), weight, bias, residual, factor)


# -- 4: a product that is added to the residual --------------------------------------------------
def product(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """residual + factor · (x @ weightᵀ + bias); `ops.linear` where the factor is 1."""
    if factor == 1.0:
        return ops.linear(x, weight, bias, residual)
    return _product(x, weight, bias, residual, factor)


def _product_of(
    x: Tensor, weight: Weight, bias: Tensor | None, residual: Tensor | None, factor: float
) -> Tensor:
    y = ops.linear(x, weight, bias) * factor
    return y if residual is None else residual + y


def feed_forward(
    x: Tensor,
    norm: Norm | None,
    weights: Sequence[Weight],
    biases: Sequence[Tensor | None],
    activation: str,
    down: Weight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Sites 1 and 4: `product` of the `products` of x under an activation. For gradients its result
    is computed again, and not kept."""
    if not is_recorded((x, norm, [*weights], [*biases], down)):
        hidden = products(x, norm, weights, biases, activation)
        return product(hidden, down, bias, residual, factor)  # type: ignore[arg-type]
    made = _as_tuple(products(x, norm, weights, biases))
    return _activated_product(list(made), activation, down, bias, residual, factor)


def _product_of_activated(
    made: list, activation: str, weight: Weight, bias: Tensor | None, residual: Tensor | None,
    factor: float,
) -> Tensor:  # fmt: skip
    return product(_activated(tuple(made), activation), weight, bias, residual, factor)


def _activated_product_vjp(
    g: Tensor, y: Tensor, made: list, activation: str, weight: Any, bias: Tensor | None,
    residual: Tensor | None, factor: float,
):  # fmt: skip
    scaled = g if factor == 1.0 else g * factor
    dmade = dweight = None
    trained = isinstance(weight, Tensor) and weight.requires_grad
    if any(part.requires_grad for part in made):
        dh = linear_input_gradient(scaled, weight, made[0].dtype, None)
        dmade, h = _activated_vjp(dh, made, activation, trained)
    else:
        h = _activated(tuple(made), activation)
    if trained:
        dweight = linear_weight_gradient(scaled, h, weight.dtype, None)
    return dmade, None, dweight, bias_gradient(scaled, bias), g, None


def _activated_vjp(
    dh: Tensor, made: list[Tensor], activation: str, again: bool
) -> tuple[Sequence[Tensor | None], Tensor]:
    """(gradients of what was activated, and its result). Where that is wanted `again`, the usual
    gated ones make both at once."""
    if again and len(made) == 2 and activation in GATED_AGAIN:
        *dmade, h = GATED_AGAIN[activation](dh, *made)
        return dmade, h
    with autograd.set_enabled(True):
        h = _activated(tuple(made), activation)
    return autograd.gradients(h, made, dh), h.detach()


def add_norm(x: Tensor, norm: Norm, residual: Tensor, factor: float = 1.0) -> Tensor:
    """residual + factor · norm(x): the end of a half of a layer that is normalised after it."""
    return _add_norm(x, norm, residual, factor)


def _norm_added(x: Tensor, norm: Norm, residual: Tensor, factor: float) -> Tensor:
    y = normed(x, norm)
    return residual + (y if factor == 1.0 else y * factor)


_products = Op(
    "products",
    _products_of,
    _products_vjp,
    saves=("x", "norm", "weights", "biases"),
    adds="passed",
    fusion=True,
)
_attention_inputs = Op("attention_inputs", _inputs_of, fusion=True)
_attend = Op("attend", _attended, fusion=True)
_product = Op("product", _product_of, fusion=True)
_activated_product = Op(
    "activated_product",
    _product_of_activated,
    _activated_product_vjp,
    saves=("made", "weight", "bias"),
    fusion=True,
)
_add_norm = Op("add_norm", _norm_added, fusion=True)
