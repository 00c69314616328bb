"""The fused ops of a decoder layer (`boostr/nn/fusion.py`).

For the few rows of a decode step each is one kernel, a GEMV with what surrounds it (`gemv.py`);
attention is two, of which the second joins the splits of the first and multiplies by the output
projection. More rows have one product for all weights that read the same input, if these lie end to
end, between the kernels of the ops that surround it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.wgpu.attention import attention_decode
from boostr.backends.wgpu.attention.cache import pack, packed_refusal
from boostr.backends.wgpu.products import gemm, gemv, gemv_qkv, linear
from boostr.backends.wgpu.products.planes import stored_form
from boostr.backends.wgpu.rows import activation
from boostr.backends.wgpu.rows import norm as norms
from boostr.operands import Cache, HeadNorms, Norm, PackedKV, Rope
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend


def _data(x: Tensor | None) -> Any:
    return None if x is None else x.data


def _rows(x: Tensor, weights: Any, biases: Any, few: bool = True) -> str | None:
    """Why GEMVs, or without `few` one product, do not take these rows; None if they do."""
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    most = linear.few(backend)
    if len(x) == 0 or (few and len(x) > most):
        return f"{len(x)} rows are not in 1..{most}"
    if len(x) > most:
        if any(b is not None for b in biases):
            return "biases of several weights"
        if linear.joined(backend, weights) is None:
            return "the weights do not lie end to end"
    for weight, bias in zip(weights, biases, strict=True):
        reason = linear.KERNELS["linear"].supports(x, weight, bias, None, x.dtype)
        if reason is not None:
            return reason
    return None


def _too_many(backend: WgpuBackend, arrays: int) -> str | None:
    """Why one kernel does not take so many arrays; None if it does."""
    most = backend.caps.bindings
    return None if arrays <= most else f"{arrays} arrays at once, the GPU binds {most}"


def _planes(weight: Any) -> int:
    """The arrays that a weight is bound as."""
    return 1 if isinstance(weight, Tensor) else len(weight.parts)


def _first(norm: Norm | None) -> gemv.Norm | None:
    """The norm as the GEMVs take it."""
    if norm is None:
        return None
    layer = norm.kind == "layer"
    return gemv.Norm(norm.weight.data, norm.eps, norm.offset, layer, _data(norm.bias))


def _vectors(norm: Norm | None) -> int:
    """The arrays that a norm is bound as."""
    return 0 if norm is None else 1 + (norm.bias is not None)


# -- q, k, v -------------------------------------------------------------------------------------
def _inputs_supports(
    x: Tensor, norm: Norm | None, weights: list, biases: list, own: HeadNorms, rope: Rope | None,
    cache: Cache | None, head_dim: int,
) -> str | None:  # fmt: skip
    reason = (
        _rows(x, weights, biases, few=False)
        or refusals.norm_before(norm)
        or refusals.heads(own, rope)
    )
    if reason is not None:
        return reason
    if own.q is not None and any(b is not None for b in biases):
        return "biases come before norms of heads"
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    most = backend.caps.binding_bytes
    if any(w.nbytes > most for w in weights):
        return f"a weight has more bytes than a binding, {most}"
    forms = {stored_form(w) for w in weights}
    if len(forms) > 1 and any(form.rounds_input for form in forms):
        return "only some of the weights round their input"
    given = sum(b is not None for b in biases)  # beside them x, rope, slots, q, k and v
    given += rope is not None and rope.query_factors is not None
    reason = _too_many(backend, max(map(_planes, weights)) + given + _vectors(norm) + 8)
    if reason is not None:
        return reason
    kinds = {None if b is None else b.dtype for b in biases}
    if len(kinds) > 1:
        return "the biases are of several types, or only some are there"
    if rope is None:
        return _cache_refusal(0, head_dim, cache)
    for name, table in (("cos", rope.cos), ("sin", rope.sin), ("factors", rope.query_factors)):
        if table is not None and table.dtype != dtypes.float32:
            return f"{name} is {table.dtype}, not float32"
    return _cache_refusal(2 * rope.cos.shape[1], head_dim, cache)


def _cache_refusal(rotated: int, head_dim: int, cache: Cache | None) -> str | None:
    kept: Any = () if cache is None else (cache.keys, cache.values)
    if kept and isinstance(kept[0], PackedKV):
        return packed_refusal(*kept) or gemv_qkv.qkv_refusal(rotated, head_dim)
    if len({c.dtype for c in kept}) > 1 or any(c.dtype not in dtypes.MODEL_FLOATS for c in kept):
        return "the caches are of two types, or of integers"
    return gemv_qkv.qkv_refusal(rotated, head_dim, *(c.data for c in kept))


def _inputs(
    x: Tensor, norm: Norm | None, weights: list, biases: list, own: HeadNorms, rope: Rope | None,
    cache: Cache | None, head_dim: int,
) -> Any:  # fmt: skip
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    if cache is not None and isinstance(cache.keys, PackedKV):
        q, k, v = _inputs(x, norm, weights, biases, own, rope, None, head_dim)
        pack(backend, k.data, v.data, cache.keys, cache.values, cache.slots.data)
        return q
    head_norm, kept, tables = None, None, None
    if own.q is not None and own.k is not None:
        head_norm = gemv_qkv.Norms(
            own.q.weight.data, own.k.weight.data, own.q.eps, refusals.norm_over(own.q, head_dim),
            own.q.offset, own.after_rope,
        )  # fmt: skip
    if cache is not None:
        planes: Any = (cache.keys, cache.values, cache.slots)
        kept = gemv_qkv.Cache(*(t.data for t in planes))
    if rope is not None:
        tables = gemv_qkv.Rope(
            rope.cos.data, rope.sin.data, rope.rows.data, rope.layout == "interleaved",
            _data(rope.query_factors),
        )  # fmt: skip
    if len(x) <= linear.few(backend):
        made = gemv_qkv.qkv_rope(
            backend, x.data, _first(norm), weights, tables, head_dim,
            cache=kept, biases=[_data(b) for b in biases], head_norm=head_norm,
        )  # fmt: skip
    else:
        heads = _normed_product(x, norm, weights)
        H, K = (w.shape[0] // head_dim for w in weights[:2])
        made = gemv_qkv.heads_rope(backend, heads, H, K, tables, head_norm, kept)
    if cache is not None:
        return Tensor.wrap(made[0], backend)
    return tuple(Tensor.wrap(a, backend) for a in made)


def _normed_product(x: Tensor, norm: Norm | None, weights: Any) -> Any:
    """norm(x), or x, times weights that lie end to end."""
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    h = x if norm is None else norms.normed(x, norm)
    whole: Any = linear.joined(backend, weights)
    return gemm.linear(backend, h.data, whole, None, None, x.dtype)


# -- attention and its output projection ---------------------------------------------------------
def _attend_supports(
    q: Tensor, cache: Cache, cu: Tensor, alibi: Tensor | None, sinks: Tensor | None, options: Any,
    weight: Any, bias: Tensor | None, factor: float, residual: Tensor | None,
) -> str | None:  # fmt: skip
    rows = Tensor.wrap(q.backend.reshape(q.data, (len(q), weight.shape[1])), q.backend)
    return _rows(rows, [weight], [bias]) or attention_decode.supports(
        q, cache.keys, cache.values, cu, cache.block_table, cache.kv_lens, alibi, sinks, options
    )


def _attend(
    q: Tensor, cache: Cache, cu: Tensor, alibi: Tensor | None, sinks: Tensor | None, options: Any,
    weight: Any, bias: Tensor | None, factor: float, residual: Tensor | None,
) -> Tensor:  # fmt: skip
    backend: WgpuBackend = q.backend  # type: ignore[assignment]
    Dv = cache.values.shape[3]
    kept: tuple[Any, Any] = (cache.keys, cache.values)
    splits = 0
    if sinks is None:
        splits = attention_decode.left_to_reader(q, *kept, cache.block_table, options, alibi)
    places = (cu, cache.block_table, cache.kv_lens)
    if splits and gemv.combine_refusal(weight, Dv) is None:
        parts, _ = attention_decode.partials(
            backend, q, *kept, *places, alibi, options, max_splits=splits
        )
        y = gemv.combine_gemv(
            backend, parts, weight, dtype=q.dtype, bias=_data(bias), residual=_data(residual),
            factor=factor,
        )  # fmt: skip
        return Tensor.wrap(y, backend)
    out, _ = attention_decode.attend(q, *kept, *places, alibi, sinks, options)
    rows = backend.reshape(out.data, (len(q), weight.shape[1]))
    y = gemv.gemv(backend, rows, weight, _data(bias), _data(residual), q.dtype, factor=factor)
    return Tensor.wrap(y, backend)


# -- a product that is added to the residual -----------------------------------------------------
def _product_supports(
    x: Tensor, weight: Any, bias: Tensor | None, residual: Tensor | None, factor: float
) -> str | None:
    return _rows(x, [weight], [bias]) or refusals.floats(*([] if residual is None else [residual]))


def _product(
    x: Tensor, weight: Any, bias: Tensor | None, residual: Tensor | None, factor: float
) -> Tensor:
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    y = gemv.gemv(backend, x.data, weight, _data(bias), _data(residual), x.dtype, factor=factor)
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
    if len(weights) == 1:
        return _rows(x, weights, biases) or linear.KERNELS["linear"].supports(
            x, weights[0], biases[0], None, dtype
        )
    if len(weights) != 2 or act is None or dtype != x.dtype:
        return f"{len(weights)} products with the activation {act!r}"
    if act not in activation.FORMS and len(x) > linear.few(x.backend):  # type: ignore[arg-type]
        return f"the activation {act!r} of {len(x)} rows"
    given = sum(b is not None for b in biases)  # beside them x and the result
    arrays = sum(map(_planes, weights)) + given + _vectors(norm) + 2
    return _rows(x, weights, biases, few=False) or _too_many(x.backend, arrays)  # type: ignore[arg-type]


def _products(
    x: Tensor, norm: Norm | None, weights: list, biases: list, act: str | None, dtype: np.dtype
) -> Tensor:
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    first, flat = _first(norm), [_data(b) for b in biases]
    if act is None or len(weights) == 1:
        y = gemv.gemv(backend, x.data, weights[0], flat[0], None, dtype, norm=first, act=act or "")
    elif len(x) > linear.few(backend):
        both = Tensor.wrap(_normed_product(x, norm, weights), backend)
        F = weights[0].shape[0]
        return activation.gated(both[:, :F], both[:, F:], act)
    else:
        y = gemv.norm_gated_gemv(
            backend, x.data, first, *weights, act=act, gate_bias=flat[0], up_bias=flat[1]
        )
    return Tensor.wrap(y, backend)


KERNELS = {
    "attention_inputs": Kernel(_inputs, _inputs_supports),
    "attend": Kernel(_attend, _attend_supports),
    "product": Kernel(_product, _product_supports),
    "products": Kernel(_products, _products_supports),
}
