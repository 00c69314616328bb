"""The fused ops of a decoder layer (`boostr/nn/fusion.py`).

For few rows each is a kernel, a GEMV with what surrounds it (`gemv.py`), or one for each way in
which its weights are stored; for more rows norm, one product for all weights that read the same
input, and one kernel for what follows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.cupy.attention import attention
from boostr.backends.cupy.attention.cache import pack
from boostr.backends.cupy.products import gemv, gemv_qkv, linear
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
    weight, bias = _dense(backend, norm.weight, norm.bias)
    return gemv.Norm(weight, norm.eps, norm.offset, norm.kind == "layer", bias)


def _normed(x: Tensor, norm: Norm | None) -> Any:
    if norm is None:
        return x.backend.dense(x.data)  # type: ignore[attr-defined]
    return norms.normed(x, norm).data


# -- q, k, v -------------------------------------------------------------------------------------
def _inputs_supports(
    x: Tensor, norm: Norm | None, weights: list, biases: list, own: HeadNorms, rope: Rope | None,
    cache: Cache | None, head_dim: int,
) -> str | None:  # fmt: skip
    reason = (
        _supports_products(x, weights, biases)
        or refusals.norm_before(norm)
        or refusals.heads(own, rope)
    )
    if reason is not None:
        return reason
    if head_dim % 2:
        return f"head_dim {head_dim} is odd"
    if rope is None:
        return ropes.size_refusal(head_dim, 0)
    for name, table in (("cos", rope.cos), ("sin", rope.sin), ("factors", rope.query_factors)):
        if table is not None and table.dtype != dtypes.float32:
            return f"{name} is {table.dtype}, not float32"
    return ropes.size_refusal(head_dim, rope.cos.shape[1])


def _inputs(
    x: Tensor, norm: Norm | None, weights: list, biases: list, own: HeadNorms, rope: Rope | None,
    cache: Cache | None, head_dim: int,
) -> Any:  # fmt: skip
    if cache is not None and isinstance(cache.keys, PackedKV):
        return _packed_inputs(x, norm, weights, biases, own, rope, cache, head_dim)
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    flat, few = _dense(backend, *biases), _few(x, *weights)
    tables, head_norms = _tables(backend, rope), _head_norms(backend, own, head_dim)
    kept: Any = (None,) * 3 if cache is None else (cache.keys, cache.values, cache.slots)
    k_cache, v_cache, slots = (None if t is None else t.data for t in kept)
    each = head_norms.over == "head" and not head_norms.last
    if cache is not None and few and each and kept[0].dtype == x.dtype:
        q = gemv_qkv.qkv_rope_write(
            backend, backend.dense(x.data), _norm(backend, norm), tuple(weights), tables, k_cache,
            v_cache, slots, head_norm=gemv_qkv.HeadNorm(*head_norms[:4]) if own.q else None,
            biases=tuple(flat),
        )  # fmt: skip
        return Tensor.wrap(q, backend)
    if few:
        qkv = gemv_qkv.qkv(
            backend,
            backend.dense(x.data),
            _norm(backend, norm),
            tuple(weights),
            tuple(flat),
            head_dim,
        )
    else:
        qkv = linear.segments_gemm(backend, _normed(x, norm), weights, flat, x.dtype)
    heads, kv_heads = (w.shape[0] // head_dim for w in weights[:2])
    made = ropes.rope_write(
        backend, qkv, heads, kv_heads, head_dim, head_norms, tables, k_cache, v_cache, slots
    )
    q, k, v = (None if a is None else Tensor.wrap(a, backend) for a in made)
    return (q, k, v) if cache is None else q


def _tables(backend: CupyBackend, rope: Rope | None) -> ropes.Tables | None:
    if rope is None:
        return None
    cos, sin, rows, factors = _dense(backend, rope.cos, rope.sin, rope.rows, rope.query_factors)
    return ropes.Tables(cos, sin, rows, factors, rope.layout == "interleaved")


def _head_norms(backend: CupyBackend, own: HeadNorms, head_dim: int) -> ropes.Norms:
    if own.q is None or own.k is None:
        return ropes.Norms()
    q, k = _dense(backend, own.q.weight, own.k.weight)
    over = refusals.norm_over(own.q, head_dim)
    return ropes.Norms(q, k, own.q.eps, own.q.offset, over, own.after_rope)


def _packed_inputs(
    x: Tensor, norm: Norm | None, weights: list, biases: list, own: HeadNorms, rope: Rope | None,
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
    if len(q) == 0:
        return "no rows"
    rows = Tensor.wrap(q.data.reshape(len(q), -1), q.backend)
    if factor != 1.0 and len(q) > linear.FEW:
        return f"a residual factor of {len(q)} rows"
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
    if factor == 1.0:
        return linear.KERNELS["linear"].run(rows, weight, bias, residual, q.dtype)
    return _product(rows, weight, bias, residual, factor)


# -- a product that is added to the residual -----------------------------------------------------
def _product_supports(
    x: Tensor, weight: Any, bias: Tensor | None, residual: Tensor | None, factor: float
) -> str | None:
    if not 0 < len(x) <= linear.FEW:
        return f"{len(x)} rows are not in 1..{linear.FEW}"
    return linear.KERNELS["linear"].supports(x, weight, bias, residual, x.dtype)


def _product(
    x: Tensor, weight: Any, bias: Tensor | None, residual: Tensor | None, factor: float
) -> Tensor:
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    rows, own_bias, rest = _dense(backend, x, bias, residual)
    y = gemv.gemv(backend, rows, weight, own_bias, rest, x.dtype, factor=factor)
    return Tensor.wrap(y, backend)


# -- products of one input: the gated half of a feed-forward layer, and the head -----------------
def _products_supports(
    x: Tensor, norm: Norm | None, weights: list, biases: list, act: str | None, dtype: np.dtype
) -> str | None:
    reason = refusals.norm_before(norm)
    if reason is not None:
        return reason
    if act is not None and act not in gemv.ACTIVATIONS:
        return f"the activation {act!r}"
    few = _few(x, *weights)
    if len(weights) == 1:
        if not few:
            return f"more than {linear.FEW} rows, or they do not fit shared memory"
        return linear.KERNELS["linear"].supports(x, weights[0], biases[0], None, dtype)
    if len(weights) != 2 or act is None or dtype != x.dtype:
        return f"{len(weights)} products with the activation {act!r}"
    if act not in activation.FORMS and not few:
        return f"the activation {act!r} of {len(x)} rows"
    return _supports_products(x, weights, biases)


def _products(
    x: Tensor, norm: Norm | None, weights: list, biases: list, act: str | None, dtype: np.dtype
) -> Tensor:
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    flat = _dense(backend, *biases)
    if act is None or len(weights) == 1:
        y = gemv.gemv(
            backend, backend.dense(x.data), weights[0], flat[0], None, dtype,
            norm=_norm(backend, norm), act=act,
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
    "product": Kernel(_product, _product_supports),
    "products": Kernel(_products, _products_supports),
}
