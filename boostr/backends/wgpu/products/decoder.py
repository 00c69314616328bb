"""The fused ops of a decoder layer (`boostr/ops/fused.py`).

For the few rows of a decode step each is one kernel, a GEMV with what surrounds it (`gemv.py`);
attention is two, of which the second joins the splits of the first and multiplies by the output
projection. More rows have one product for all weights that read the same input, if these lie end to
end, between the kernels of the ops that surround it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.wgpu.attention import attention_decode
from boostr.backends.wgpu.products import gemm, gemv, gemv_qkv, linear
from boostr.backends.wgpu.rows import norm as norms
from boostr.ops.attention import AttentionOptions, attention_options
from boostr.ops.fused import GATES
from boostr.tensor import Tensor

_FLOATS = (dtypes.float32, dtypes.float16, dtypes.bfloat16)


def _data(x: Tensor | None) -> Any:
    return None if x is None else x.data


def _stored_as(weight: Any) -> Any:
    return weight.dtype if isinstance(weight, Tensor) else weight.scheme


def _products(x: Tensor, weights: Any, biases: Any, few: bool = True) -> str | None:
    """Why GEMVs, or without `few` one product, do not take these rows; None if they do."""
    most = linear.few(x.backend)
    if len(x) == 0 or (few and len(x) > most):
        return f"{len(x)} rows are not in 1..{most}"
    if len(x) > most:
        if any(b is not None for b in biases):
            return "biases of several weights"
        if linear.joined(x.backend, weights) is None:
            return "the weights do not lie end to end"
    for weight, bias in zip(weights, biases, strict=True):
        reason = linear.KERNELS["linear"].supports(x, weight, bias, None, x.dtype)
        if reason is not None:
            return reason
    if len({_stored_as(w) for w in weights}) > 1:
        return "the weights are not stored alike"
    return None


def _vector(norm: Tensor) -> str | None:
    return None if norm.dtype == dtypes.float32 else f"norm weights are {norm.dtype}, not float32"


# -- q, k, v -------------------------------------------------------------------------------------
def _qkv_supports(
    x, norm, weights, biases, head_norms, cos, sin, rows, *rest,
) -> str | None:  # fmt: skip
    caches, head_dim = rest[:-3], rest[-3]
    reason = _products(x, weights, biases, few=False) or _vector(norm)
    if reason is not None:
        return reason
    own = [n for n in head_norms if n is not None]
    if len(own) == 1 or (own and any(b is not None for b in biases)):
        return "one of q and k is normalised, or biases come before norms of heads"
    reason = next(filter(None, map(_vector, own)), None)
    if reason is not None:
        return reason
    most = x.backend.caps.binding_bytes
    if any(w.nbytes > most for w in weights):
        return f"a weight has more bytes than a binding, {most}"
    kinds = {None if b is None else b.dtype for b in biases}
    if len(kinds) > 1:
        return "the biases are of several types, or only some are there"
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype != dtypes.float32:
            return f"{name} is {table.dtype}, not float32"
    if len({c.dtype for c in caches[:2]}) > 1 or any(c.dtype not in _FLOATS for c in caches[:2]):
        return "the caches are of two types, or of integers"
    return gemv_qkv.qkv_refusal(2 * cos.shape[1], head_dim, *(c.data for c in caches[:2]))


def _qkv_arrays(
    x, norm, weights, biases, head_norms, cos, sin, rows, cache, head_dim, eps, layout
) -> tuple[Any, Any, Any]:
    backend, own = x.backend, None
    if head_norms[0] is not None:
        own = gemv_qkv.Norms(head_norms[0].data, head_norms[1].data, eps)
    rope = gemv_qkv.Rope(cos.data, sin.data, rows.data, layout == "interleaved")
    if len(x) <= linear.few(x.backend):
        return gemv_qkv.qkv_rope(
            backend, x.data, gemv.Norm(norm.data, eps), weights, rope, head_dim, cache=cache,
            biases=[_data(b) for b in biases], head_norm=own,
        )  # fmt: skip
    heads = _normed_product(x, norm, eps, weights)
    H, KH = (w.shape[0] // head_dim for w in weights[:2])
    return gemv_qkv.heads_rope(backend, heads, H, KH, rope, own, cache)


def _normed_product(x: Tensor, norm: Tensor, eps: float, weights: Any) -> Any:
    """rms_norm(x) times weights that lie end to end."""
    h = norms.KERNELS["rms_norm"].run(x, norm, eps, 0.0)
    whole: Any = linear.joined(x.backend, weights)
    return gemm.linear(x.backend, h.data, whole, None, None, x.dtype)


def _qkv(x, norm, weights, biases, head_norms, cos, sin, rows, head_dim, eps, layout):
    made = _qkv_arrays(
        x, norm, weights, biases, head_norms, cos, sin, rows, None, head_dim, eps, layout
    )
    return tuple(Tensor.wrap(a, x.backend) for a in made)


def _qkv_write(
    x, norm, weights, biases, head_norms, cos, sin, rows, k_cache, v_cache, slots,
    head_dim, eps, layout,
):  # fmt: skip
    cache = gemv_qkv.Cache(k_cache.data, v_cache.data, slots.data)
    q, _, _ = _qkv_arrays(
        x, norm, weights, biases, head_norms, cos, sin, rows, cache, head_dim, eps, layout
    )
    return Tensor.wrap(q, x.backend)


# -- attention and its output projection ---------------------------------------------------------
@cache
def _options(head_dim: int, window: Any, scale: float | None) -> AttentionOptions:
    return attention_options(
        "paged_attention_linear", head_dim, True, window, scale, None, "bottom-right"
    )


def _attend_supports(
    q, k_cache, v_cache, cu, table, kv_lens, weight, bias, residual, window, scale
) -> str | None:
    reason = _products(residual, [weight], [bias])
    if reason is not None:
        return reason
    options = _options(q.shape[2], window, scale)
    return attention_decode.supports(q, k_cache, v_cache, cu, table, kv_lens, None, None, options)


def _attend(q, k_cache, v_cache, cu, table, kv_lens, weight, bias, residual, window, scale):
    backend, options = q.backend, _options(q.shape[2], window, scale)
    Dv = v_cache.shape[3]
    splits = attention_decode.left_to_reader(q, k_cache, v_cache, table, options)
    if splits and gemv.combine_refusal(weight, Dv) is None:
        parts, _ = attention_decode.partials(
            backend, q, k_cache, v_cache, cu, table, kv_lens, None, options, max_splits=splits
        )
        y = gemv.combine_gemv(
            backend, parts, weight, dtype=residual.dtype, bias=_data(bias), residual=residual.data
        )
        return Tensor.wrap(y, backend)
    out, _ = attention_decode.attend(q, k_cache, v_cache, cu, table, kv_lens, None, None, options)
    rows = backend.reshape(out.data, (len(residual), weight.shape[1]))
    y = gemv.gemv(backend, rows, weight, _data(bias), residual.data, residual.dtype)
    return Tensor.wrap(y, backend)


# -- the gated half of a feed-forward layer, and the head ----------------------------------------
def _gated_supports(x, norm, gate, up, gate_bias, up_bias, eps, act) -> str | None:
    return _products(x, [gate, up], [gate_bias, up_bias], few=False) or _vector(norm)


def _gated(x, norm, gate, up, gate_bias, up_bias, eps, act):
    if len(x) > linear.few(x.backend):
        both, F = Tensor.wrap(_normed_product(x, norm, eps, [gate, up]), x.backend), gate.shape[0]
        return GATES[act](both[:, :F], both[:, F:])
    y = gemv.norm_gated_gemv(
        x.backend, x.data, gemv.Norm(norm.data, eps), gate, up, act=act,
        gate_bias=_data(gate_bias), up_bias=_data(up_bias),
    )  # fmt: skip
    return Tensor.wrap(y, x.backend)


def _head_supports(x, norm, weight, bias, eps, dtype) -> str | None:
    reason = _products(x, [weight], [bias]) or _vector(norm)
    return reason or linear.KERNELS["linear"].supports(x, weight, bias, None, dtype)


def _head(x, norm, weight, bias, eps, dtype):
    first = gemv.Norm(norm.data, eps)
    y = gemv.gemv(x.backend, x.data, weight, _data(bias), None, dtype, norm=first)
    return Tensor.wrap(y, x.backend)


KERNELS = {
    "qkv_rope": Kernel(_qkv, _qkv_supports),
    "qkv_rope_write": Kernel(_qkv_write, _qkv_supports),
    "paged_attention_linear": Kernel(_attend, _attend_supports),
    "norm_gated_linear": Kernel(_gated, _gated_supports),
    "norm_linear": Kernel(_head, _head_supports),
}
