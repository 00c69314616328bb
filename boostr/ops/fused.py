"""Sequences of ops that a decoder layer runs back to back, as one op each.

Their composites call the ops of the other families; a backend may have one kernel for the whole
(the five of a decode step on a GPU). All take pre-norm decoders: RMS norm first, residual last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import OptionError, ShapeError
from boostr.ops.activation import geglu, swiglu
from boostr.ops.attention import paged_attention
from boostr.ops.cache import kv_write
from boostr.ops.linear import Weight, linear
from boostr.ops.norm import rms_norm
from boostr.ops.rope import rope
from boostr.tensor import Tensor

GATES = {
    "silu": swiglu,
    "gelu": geglu,
    "gelu_tanh": lambda gate, up: geglu(gate, up, "tanh"),
}


def qkv_rope(
    x: Tensor,
    norm: Tensor,
    weights: Sequence[Weight],
    biases: Sequence[Tensor | None],
    head_norms: Sequence[Tensor | None],
    cos: Tensor,
    sin: Tensor,
    rows: Tensor,
    *,
    head_dim: int,
    eps: float,
    layout: str = "split-half",
) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs of attention: h = rms_norm(x); q, k = rope(head_norm(h @ w)); v = h @ w.

    Args:
        x: [T, E].   norm: [E].   weights, biases: of q, k, v: [H·D, E], [K·D, E], [K·D, E].
        head_norms: RMS norms [D] of each head of q and k, or (None, None).
        cos, sin, rows, layout: see `ops.rope`.   eps: of all the norms.
    Returns:
        q [T, H, D], k [T, K, D], v [T, K, D] in x's dtype.
    """
    _check_qkv(x, weights, biases, head_norms, head_dim)
    return _qkv_rope(
        x, norm, list(weights), list(biases), list(head_norms), cos, sin, rows,
        head_dim, eps, layout,
    )  # fmt: skip


def qkv_rope_write(
    x: Tensor,
    norm: Tensor,
    weights: Sequence[Weight],
    biases: Sequence[Tensor | None],
    head_norms: Sequence[Tensor | None],
    cos: Tensor,
    sin: Tensor,
    rows: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    head_dim: int,
    eps: float,
    layout: str = "split-half",
) -> Tensor:
    """`qkv_rope` whose k and v go into a cache as by `ops.kv_write`. Returns q [T, H, D]."""
    _check_qkv(x, weights, biases, head_norms, head_dim)
    return _qkv_rope_write(
        x, norm, list(weights), list(biases), list(head_norms), cos, sin, rows,
        k_cache, v_cache, slots, head_dim, eps, layout,
    )  # fmt: skip


def _check_qkv(x, weights, biases, head_norms, head_dim: int) -> None:
    if len(weights) != 3 or len(biases) != 3 or len(head_norms) != 2:
        raise ShapeError(
            "qkv_rope: expected weights and biases of q, k, v and norms of q, k, got "
            f"{len(weights)}, {len(biases)} and {len(head_norms)}"
        )
    for weight in weights:
        if weight.shape[0] % head_dim or weight.shape[1] != x.shape[-1]:
            raise ShapeError(
                f"qkv_rope: a weight must be [heads · {head_dim}, {x.shape[-1]}], "
                f"got {list(weight.shape)}"
            )


def paged_attention_linear(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    block_table: Tensor,
    kv_lens: Tensor,
    weight: Weight,
    bias: Tensor | None,
    residual: Tensor,
    *,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
) -> Tensor:
    """residual + bias + weight · paged_attention(q, ...), causal. Returns [T, E]."""
    return _paged_attention_linear(
        q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens, weight, bias, residual,
        window, scale,
    )  # fmt: skip


def norm_gated_linear(
    x: Tensor,
    norm: Tensor,
    gate: Weight,
    up: Weight,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    *,
    eps: float,
    activation: str = "silu",
) -> Tensor:
    """h = rms_norm(x); activation(h @ gateᵀ) · (h @ upᵀ).

    Args:
        x: [T, E].   norm: [E].   gate, up: [F, E].   activation: "silu", "gelu" or "gelu_tanh".
    Returns:
        [T, F] in x's dtype.
    """
    if activation not in GATES:
        raise OptionError(
            f"norm_gated_linear: activation must be one of {tuple(GATES)}, got {activation!r}"
        )
    return _norm_gated_linear(x, norm, gate, up, gate_bias, up_bias, eps, activation)


def norm_linear(
    x: Tensor,
    norm: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    eps: float,
    dtype: object = None,
) -> Tensor:
    """rms_norm(x) @ weightᵀ + bias, in `dtype` (default x's): the head of a decoder."""
    wanted = x.dtype if dtype is None else dtypes.parse(dtype)
    return _norm_linear(x, norm, weight, bias, eps, wanted)


# -- composites ----------------------------------------------------------------------------------
def _qkv(x, norm, weights, biases, head_norms, cos, sin, rows, head_dim, eps, layout):
    h = rms_norm(x, norm, eps=eps)
    q, k, v = (
        linear(h, w, b).reshape(x.shape[0], -1, head_dim)
        for w, b in zip(weights, biases, strict=True)
    )
    q, k = (
        t if own is None else rms_norm(t, own, eps=eps)
        for t, own in zip((q, k), head_norms, strict=True)
    )
    return rope(q, cos, sin, rows, layout=layout), rope(k, cos, sin, rows, layout=layout), v


def _qkv_write(
    x, norm, weights, biases, head_norms, cos, sin, rows, k_cache, v_cache, slots,
    head_dim, eps, layout,
):  # fmt: skip
    q, k, v = _qkv(x, norm, weights, biases, head_norms, cos, sin, rows, head_dim, eps, layout)
    kv_write(k, v, k_cache, v_cache, slots)
    return q


def _attend(
    q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens, weight, bias, residual, window, scale
):
    out, _ = paged_attention(
        q, k_cache, v_cache, cu_seqlens_q, block_table, kv_lens, window=window, scale=scale
    )
    return linear(out.reshape(q.shape[0], -1), weight, bias, residual)


def _gated(x, norm, gate, up, gate_bias, up_bias, eps, activation) -> Tensor:
    h = rms_norm(x, norm, eps=eps)
    return GATES[activation](linear(h, gate, gate_bias), linear(h, up, up_bias))


def _head(x, norm, weight, bias, eps: float, dtype: np.dtype) -> Tensor:
    return linear(rms_norm(x, norm, eps=eps), weight, bias, dtype=dtype)


_qkv_rope = Op("qkv_rope", _qkv, fusion=True)
_qkv_rope_write = Op("qkv_rope_write", _qkv_write, fusion=True)
_paged_attention_linear = Op("paged_attention_linear", _attend, fusion=True)
_norm_gated_linear = Op("norm_gated_linear", _gated, fusion=True)
_norm_linear = Op("norm_linear", _head, fusion=True)
