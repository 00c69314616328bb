"""The fused ops of a decoder layer (`boostr/nn/fusion.py`).

For few rows each is a kernel, a GEMV with what surrounds it (`gemv.py`), or one for each way in
which its weights are stored; for more rows norm, one product for all weights that read the same
input, and one kernel for what follows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.cupy.attention import attention
from boostr.backends.cupy.attention.cache import pack
from boostr.backends.cupy.products import gemv, linear
from boostr.backends.cupy.rows import activation
from boostr.backends.cupy.rows import norm as norms
from boostr.backends.cupy.rows import rope as ropes
from boostr.operands import Cache, HeadNorms, Norm, PackedKV, Rope
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend


def _few(x: Tensor, *weights: Any) -> bool:
    """Whether a GEMV takes these rows."""
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    return len(x) <= linear.FEW and all(
        gemv.shared_refusal(backend, w, len(x), x.dtype) is None for w in weights
    )


def _dense(backend: CupyBackend, *tensors: Tensor | None) -> list[Any]:
    return [None if t is None else backend.dense(t.data) for t in tensors]


def _supports_products(x: Tensor, weights: list[Any], biases: list[Any]) -> str | None:
    """Whether `linear` has kernels for all of these."""
    for weight, bias in zip(weights, biases, strict=True):
        reason = linear.KERNELS["linear"].supports(x, weight, bias, None, x.dtype)
        if reason is not None:
            return reason
    return "no rows" if x.shape[0] == 0 else None


def _norm(backend: CupyBackend, norm: Norm | None) -> gemv.Norm | None:
    """The norm as the GEMVs take it."""
    if norm is None:
        return None
    return gemv.Norm(backend.dense(norm.weight.data), norm.eps, norm.offset)


def _normed(x: Tensor, norm: Norm | None) -> Any:
    if norm is None:
        return x.backend.dense(x.data)  # type: ignore[attr-defined]
    return norms.rms(x, norm.weight, norm.eps, norm.offset).data


# -- q, k, v -------------------------------------------------------------------------------------
def _inputs_supports(
    x: Tensor, norm: Norm | None, weights: list, biases: list, own: HeadNorms, rope: Rope | None,
    cache: Cache | None, head_dim: int,
) -> str | None:  # fmt: skip
    reason = (
        _supports_products(x, weights, biases)
        or refusals.norm_before(norm)
        or refusals.head_norms(own, head_dim)
    )
    if reason is not None:
        return reason
    if rope is None:
        return "heads without rope"
    if rope.query_factors is not None:
        return "queries with a factor by position"
    heads = Tensor.wrap(x.data.reshape(x.shape[0], 1, -1)[:, :, :head_dim], x.backend)
    return ropes.KERNELS["rope"].supports(heads, rope.cos, rope.sin, rope.rows, rope.layout)


def _inputs(
    x: Tensor, norm: Norm | None, weights: list, biases: list, own: HeadNorms, rope: Rope,
    cache: Cache | None, head_dim: int,
) -> Any:  # fmt: skip
    if cache is not None and isinstance(cache.keys, PackedKV):
        return _packed_inputs(x, norm, weights, biases, own, rope, cache, head_dim)
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    cos, sin, rows = _dense(backend, rope.cos, rope.sin, rope.rows)
    q_norm, k_norm = _dense(backend, *(None if n is None else n.weight for n in own[:2]))
    eps, flat = 0.0 if own.q is None else own.q.eps, _dense(backend, *biases)
    kept: Any = (None,) * 3 if cache is None else (cache.keys, cache.values, cache.slots)
    if cache is not None and _few(x, *weights) and kept[0].dtype == x.dtype:
        q = gemv.qkv_rope_write(
            backend, backend.dense(x.data), _norm(backend, norm),
            (weights[0], weights[1], weights[2]),
            gemv.Rope(cos, sin, rows, rope.layout == "interleaved"),
            *(None if t is None else t.data for t in kept),
            head_norm=gemv.HeadNorm(q_norm, k_norm, eps) if own.q else None,
            biases=(flat[0], flat[1], flat[2]),
        )  # fmt: skip
        return Tensor.wrap(q, backend)
    qkv = linear.segments_gemm(backend, _normed(x, norm), weights, flat, x.dtype)
    heads, kv_heads = (w.shape[0] // head_dim for w in weights[:2])
    k_cache, v_cache, slots = (None if t is None else t.data for t in kept)
    made = ropes.rope_write(
        backend, qkv, heads, kv_heads, head_dim, q_norm, k_norm, eps, cos, sin, rows, rope.layout,
        k_cache, v_cache, slots,
    )  # fmt: skip
    q, k, v = (None if a is None else Tensor.wrap(a, backend) for a in made)
    return (q, k, v) if cache is None else q


def _packed_inputs(
    x: Tensor, norm: Norm | None, weights: list, biases: list, own: HeadNorms, rope: Rope,
    cache: Cache, head_dim: int,
) -> Any:  # fmt: skip
    """Keys and values as floats in rows of their own, then rounded into the cache by a kernel."""
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    shape = (len(x), 1, weights[1].shape[0] // head_dim, head_dim)
    rows = [Tensor.wrap(backend.empty(shape, x.dtype), backend) for _ in range(2)]
    places: Any = cache._replace(keys=rows[0], values=rows[1], slots=None)
    q = _inputs(x, norm, weights, biases, own, rope, places, head_dim)
    k, v = (t.data.reshape(shape[0], *shape[2:]) for t in rows)
    pack(backend, k, v, cache.keys, cache.values, backend.dense(cache.slots.data))
    return q


# -- attention and its output projection ---------------------------------------------------------
def _attend_supports(
    q: Tensor, cache: Cache, cu: Tensor, alibi: Tensor | None, sinks: Tensor | None, options: Any,
    weight: Any, bias: Tensor | None, factor: float, residual: Tensor | None,
) -> str | None:  # fmt: skip
    if factor != 1.0:
        return f"a residual factor, {factor}"
    if len(q) == 0:
        return "no rows"
    rows = Tensor.wrap(q.data.reshape(len(q), -1), q.backend)
    return linear.KERNELS["linear"].supports(
        rows, weight, bias, residual, q.dtype
    ) or attention.KERNELS["paged_attention"].supports(q, cache.keys, cache.values)


def _attend(
    q: Tensor, cache: Cache, cu: Tensor, alibi: Tensor | None, sinks: Tensor | None, options: Any,
    weight: Any, bias: Tensor | None, factor: float, residual: Tensor | None,
) -> Tensor:  # fmt: skip
    out, _ = attention.KERNELS["paged_attention"].run(
        q, cache.keys, cache.values, cu, cache.block_table, cache.kv_lens, alibi, sinks, options
    )
    rows = Tensor.wrap(out.data.reshape(len(q), weight.shape[1]), q.backend)
    return linear.KERNELS["linear"].run(rows, weight, bias, residual, q.dtype)


# -- products of one input: the gated half of a feed-forward layer, and the head -----------------
def _products_supports(
    x: Tensor, norm: Norm | None, weights: list, biases: list, act: str | None, dtype: np.dtype
) -> str | None:
    reason = refusals.norm_before(norm)
    if reason is not None:
        return reason
    if len(weights) == 1 and act is None:
        if not _few(x, *weights):
            return f"more than {linear.FEW} rows, or they do not fit shared memory"
        return linear.KERNELS["linear"].supports(x, weights[0], biases[0], None, dtype)
    if len(weights) != 2 or act not in gemv.ACTIVATIONS or dtype != x.dtype:
        return f"{len(weights)} products with the activation {act!r}"
    return _supports_products(x, weights, biases)


def _products(
    x: Tensor, norm: Norm | None, weights: list, biases: list, act: str | None, dtype: np.dtype
) -> Tensor:
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    flat = _dense(backend, *biases)
    if act is None:
        y = gemv.gemv(
            backend, backend.dense(x.data), weights[0], flat[0], None, dtype,
            norm=_norm(backend, norm),
        )  # fmt: skip
    elif _few(x, *weights):
        y = gemv.norm_gated_gemv(
            backend, backend.dense(x.data), _norm(backend, norm), *weights, act=act,
            gate_bias=flat[0], up_bias=flat[1],
        )  # fmt: skip
    else:
        both = linear.segments_gemm(backend, _normed(x, norm), weights, flat, x.dtype)
        y = activation.gated(backend, both, act)
    return Tensor.wrap(y, backend)


KERNELS = {
    "attention_inputs": Kernel(_inputs, _inputs_supports),
    "attend": Kernel(_attend, _attend_supports),
    "products": Kernel(_products, _products_supports),
}
