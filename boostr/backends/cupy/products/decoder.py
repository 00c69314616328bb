"""The fused ops of a decoder layer (`boostr/ops/fused.py`).

For few rows each is one kernel, a GEMV with what surrounds it (`gemv.py`); for more rows norm,
one product for all weights that read the same input, and one kernel for what follows it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.cupy.attention import attention
from boostr.backends.cupy.products import gemv, linear
from boostr.backends.cupy.rows import activation, rope
from boostr.backends.cupy.rows import norm as norms
from boostr.ops.attention import AttentionOptions, attention_options
from boostr.tensor import Tensor


def _few(x: Tensor, *weights: Any) -> bool:
    """Whether a GEMV takes these rows."""
    backend: Any = x.backend
    return len(x) <= linear.FEW and all(
        gemv.shared_refusal(backend, w, len(x), x.dtype) is None for w in weights
    )


def _array(x: Tensor | None) -> Any:
    return None if x is None else x.data


def _dense(backend: Any, *tensors: Tensor | None) -> list[Any]:
    return [None if t is None else backend.dense(t.data) for t in tensors]


def _stored_as(weight: Any) -> Any:
    return weight.dtype if isinstance(weight, Tensor) else weight.scheme


def _supports_products(x: Tensor, weights: list[Any], biases: list[Any]) -> str | None:
    """Whether `linear` has kernels for all of these."""
    for weight, bias in zip(weights, biases, strict=True):
        reason = linear.KERNELS["linear"].supports(x, weight, bias, None, x.dtype)
        if reason is not None:
            return reason
    return "no rows" if x.shape[0] == 0 else None


# -- q, k, v -------------------------------------------------------------------------------------
def _qkv_supports(
    x, norm, weights, biases, head_norms, cos, sin, rows, *rest,
) -> str | None:  # fmt: skip
    head_dim, layout = rest[-3], rest[-1]
    reason = _supports_products(x, weights, biases)
    if reason is not None:
        return reason
    if len({_stored_as(w) for w in weights}) > 1:
        return "the weights are not stored alike"
    if (head_norms[0] is None) != (head_norms[1] is None):
        return "only one of q and k is normalised"
    vectors = [norm, *(n for n in head_norms if n is not None)]
    if any(v.dtype != dtypes.float32 for v in vectors):
        return "norm weights are not float32"
    heads = Tensor.wrap(x.data.reshape(x.shape[0], 1, -1)[:, :, :head_dim], x.backend)
    return rope.KERNELS["rope"].supports(heads, cos, sin, rows, layout)


def _qkv(x, norm, weights, biases, head_norms, cos, sin, rows, head_dim, eps, layout):
    made = _qkv_arrays(
        x, norm, weights, biases, head_norms, (cos, sin, rows), (None, None, None),
        head_dim, eps, layout,
    )  # fmt: skip
    return tuple(Tensor.wrap(a, x.backend) for a in made)


def _qkv_write(
    x, norm, weights, biases, head_norms, cos, sin, rows, k_cache, v_cache, slots,
    head_dim, eps, layout,
):  # fmt: skip
    q, _, _ = _qkv_arrays(
        x, norm, weights, biases, head_norms, (cos, sin, rows), (k_cache, v_cache, slots),
        head_dim, eps, layout,
    )  # fmt: skip
    return Tensor.wrap(q, x.backend)


def _qkv_arrays(
    x, norm, weights, biases, head_norms, tables, cache, head_dim, eps, layout
) -> tuple[Any, Any, Any]:
    backend: Any = x.backend
    heads, kv_heads = (w.shape[0] // head_dim for w in weights[:2])
    placed, kept = _dense(backend, *tables), [_array(t) for t in cache]
    if _few(x, *weights) and kept[0] is not None and kept[0].dtype == x.dtype:
        first = gemv.Norm(backend.dense(norm.data), eps)
        own, flat = None, _dense(backend, *biases)
        if head_norms[0] is not None:
            q_norm, k_norm = _dense(backend, *head_norms)
            own = gemv.HeadNorm(q_norm, k_norm, eps)
        q = gemv.qkv_rope_write(
            backend, backend.dense(x.data), first, (weights[0], weights[1], weights[2]),
            gemv.Rope(placed[0], placed[1], placed[2], layout == "interleaved"),
            kept[0], kept[1], kept[2], head_norm=own,
            biases=(flat[0], flat[1], flat[2]),
        )  # fmt: skip
        return q, None, None
    h = norms.rms(x, norm, eps)
    qkv = linear.segments_gemm(backend, h, weights, _dense(backend, *biases), x.dtype)
    (q_norm, k_norm), (cos, sin, rows) = _dense(backend, *head_norms), placed
    return rope.rope_write(
        backend, qkv, heads, kv_heads, head_dim, q_norm, k_norm, eps, cos, sin, rows, layout,
        kept[0], kept[1], kept[2],
    )  # fmt: skip


# -- attention and its output projection ---------------------------------------------------------
def _attend_supports(
    q, k_cache, v_cache, cu, table, kv_lens, weight, bias, residual, window, scale
) -> str | None:
    reason = linear.KERNELS["linear"].supports(residual, weight, bias, residual, residual.dtype)
    if reason is not None:
        return reason
    if len(q) == 0:
        return "no rows"
    return attention.KERNELS["paged_attention"].supports(q, k_cache, v_cache)


@cache
def _options(head_dim: int, window: Any, scale: float | None) -> AttentionOptions:
    return attention_options(
        "paged_attention_linear", head_dim, True, window, scale, None, "bottom-right"
    )


def _attend(q, k_cache, v_cache, cu, table, kv_lens, weight, bias, residual, window, scale):
    options = _options(q.shape[2], window, scale)
    out, _ = attention.KERNELS["paged_attention"].run(
        q, k_cache, v_cache, cu, table, kv_lens, None, None, options
    )
    rows = Tensor.wrap(out.data.reshape(len(residual), weight.shape[1]), q.backend)
    return linear.KERNELS["linear"].run(rows, weight, bias, residual, residual.dtype)


# -- the gated half of a feed-forward layer ------------------------------------------------------
def _gated_supports(x, norm, gate, up, gate_bias, up_bias, eps, act) -> str | None:
    if norm.dtype != dtypes.float32:
        return "norm weights are not float32"
    if _stored_as(gate) != _stored_as(up):
        return "the weights are not stored alike"
    return _supports_products(x, [gate, up], [gate_bias, up_bias])


def _gated(x, norm, gate, up, gate_bias, up_bias, eps, act):
    backend: Any = x.backend
    biases = _dense(backend, gate_bias, up_bias)
    if _few(x, gate, up):
        y = gemv.norm_gated_gemv(
            backend, backend.dense(x.data), gemv.Norm(backend.dense(norm.data), eps), gate, up,
            act=act, gate_bias=biases[0], up_bias=biases[1],
        )  # fmt: skip
    else:
        h = norms.rms(x, norm, eps)
        both = linear.segments_gemm(backend, h, [gate, up], biases, x.dtype)
        y = activation.gated(backend, both, act)
    return Tensor.wrap(y, backend)


# -- the head ------------------------------------------------------------------------------------
def _head_supports(x, norm, weight, bias, eps, dtype) -> str | None:
    if not _few(x, weight):
        return f"more than {linear.FEW} rows, or they do not fit shared memory"
    if norm.dtype != dtypes.float32:
        return "norm weights are not float32"
    return linear.KERNELS["linear"].supports(x, weight, bias, None, dtype)


def _head(x, norm, weight, bias, eps, dtype):
    backend: Any = x.backend
    first = gemv.Norm(backend.dense(norm.data), eps)
    y = gemv.norm_gemv(
        backend, backend.dense(x.data), first, weight, bias=_array(bias), out_dtype=dtype
    )
    return Tensor.wrap(y, backend)


KERNELS = {
    "qkv_rope": Kernel(_qkv, _qkv_supports),
    "qkv_rope_write": Kernel(_qkv_write, _qkv_supports),
    "paged_attention_linear": Kernel(_attend, _attend_supports),
    "norm_gated_linear": Kernel(_gated, _gated_supports),
    "norm_linear": Kernel(_head, _head_supports),
}
