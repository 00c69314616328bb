"""Products of 1..8 rows with a weight in its stored form, and what a decode step does around them.

`shaders/wgsl/gemv*.wgsl` say what is computed. All functions take and return device arrays;
`weight` is a Tensor [N, K] or a QuantizedTensor, and is bound in parts where it is larger than a
binding may be:

    gemv(backend, x [M, K], weight, bias=, residual=, out_dtype=, norm=) -> [M, N]
    combine_gemv(backend, partials, weight, dtype=, ...) -> [M, N]
    norm_gated_gemv(backend, x, norm, gate, up, act=, ...) -> [M, F]
    qkv_rope(backend, x, norm, weights, rope, ...) -> q, k, v
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from boostr.backends.wgpu.array import GpuArray
from boostr.backends.wgpu.gemv_plan import (
    Stored,
    Tile,
    Weight,
    choose,
    joined,
    padded_rows,
    stored,
    units,
)
from boostr.backends.wgpu.kernels import Variant
from boostr.backends.wgpu.wgsl import name_of
from boostr.quant.scheme import QuantizedTensor

MOST_ROWS = 8  # of x that one launch takes
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
_QUANTIZE_THREADS = 256


class Norm(NamedTuple):
    """An RMS norm of x before the product: weight float32 [K], eps."""

    weight: GpuArray
    eps: float


class Rope(NamedTuple):
    """cos, sin: float32 [S, R/2]; rows: int32 [T], the row of the tables of each token."""

    cos: GpuArray
    sin: GpuArray
    rows: GpuArray
    interleaved: bool = False


class _Input(NamedTuple):
    """x as a kernel reads it: arrays to bind first, and the values that describe it.

    Attributes:
        scales: float32 [M] of a rounded x.   norm: what is left to the product.
    """

    x: GpuArray
    M: int
    scales: GpuArray | None
    norm: Norm | None
    slow: bool
    values: dict[str, Any]


def _prepared(backend: Any, x: GpuArray, w: Stored, norm: Norm | None) -> _Input:
    """x contiguous and on a 16-byte border; rounded to int8 (and normed before) under w8a8."""
    M, K = x.shape
    if w.form == "w8a8":
        values, scales = quantized_rows(backend, x, norm)
        return _Input(values, M, scales, None, w.slow, {"X": "f32", "XS": values.shape[1]})
    x = _aligned(backend, x)
    if norm is not None:
        norm = Norm(_aligned(backend, norm.weight), norm.eps)
    return _Input(x, M, None, norm, w.slow, {"X": name_of(x.dtype), "XS": K})


def _aligned(backend: Any, x: GpuArray) -> GpuArray:
    x = backend.dense(x)
    return backend.copy(x) if backend.offset(x) * x.dtype.itemsize % 16 else x


def quantized_rows(
    backend: Any, x: GpuArray, norm: Norm | None = None
) -> tuple[GpuArray, GpuArray]:
    """(int8 [M, K rounded up to 16], zeros behind K; float32 [M]): rows of x or rms_norm(x) by
    their absmax / 127."""
    x = backend.dense(x)
    M, K = x.shape
    padded = -(-K // 16) * 16
    values, scales = backend.empty((M, padded), np.int8), backend.empty((M,), np.float32)
    reads = [x] if norm is None else [x, backend.dense(norm.weight)]
    backend.launch(
        "gemv_quantize", "main", M, reads, [values, scales],
        [backend.offset(x), backend.offset(reads[-1]) if norm else 0, norm.eps if norm else 0.0],
        X=name_of(x.dtype), K=K, XS=padded, THREADS=_QUANTIZE_THREADS, NORM=norm is not None,
    )  # fmt: skip
    return values, scales


def _values(w: Stored, given: _Input, tile: Tile, M: int) -> dict[str, Any]:
    """What every product's source is specialised by."""
    return {
        "FORM": w.form, "GROUP": w.group, "SLOW": given.slow, "K": w.K, "M": M,
        "NORM": given.norm is not None, "INPUT": "plain", **given.values, **tile.values(),
    }  # fmt: skip


def _base(backend: Any, array: GpuArray | None, size: int = 1) -> int:
    """Where an array begins, in units of `size` elements."""
    return 0 if array is None else backend.offset(array) // size


def _x_base(backend: Any, given: _Input) -> int:
    return _base(backend, given.x, 1 if given.slow else 16 // given.x.dtype.itemsize)


def _norm_base(backend: Any, given: _Input) -> int:
    return 0 if given.norm is None else _base(backend, given.norm.weight, 1 if given.slow else 4)


def _weight_bases(backend: Any, w: Stored) -> list[int]:
    return [_base(backend, w.rows, units(w)), _base(backend, w.scales)]


def _present(*arrays: GpuArray | None) -> list[GpuArray]:
    return [a for a in arrays if a is not None]


def _name(array: GpuArray | None) -> str:
    return "" if array is None else name_of(array.dtype)


# -- the products --------------------------------------------------------------------------------
def gemv(
    backend: Any, x: GpuArray, weight: Weight, bias: GpuArray | None = None,
    residual: GpuArray | None = None, out_dtype: Any = None, *, norm: Norm | None = None,
    tile: Tile | None = None,
) -> GpuArray:  # fmt: skip
    """x Wᵀ + bias + residual in `out_dtype` (x's by default); under `norm` of rms_norm(x)."""
    w = stored(backend, weight, off=x.shape[1] % 8 != 0)
    given = _prepared(backend, x, w, norm)
    out = np.dtype(out_dtype or x.dtype)
    bound = [given.x, *_present(given.scales)]
    return _product(backend, given, w, bound, bias, residual, out, tile, {})


def combine_gemv(
    backend: Any, partials: GpuArray, weight: Weight, *, dtype: Any, bias: GpuArray | None = None,
    residual: GpuArray | None = None, tile: Tile | None = None,
) -> GpuArray:  # fmt: skip
    """The splits of attention combined to x [M, H D]; then x Wᵀ + bias + residual, in `dtype`.

    partials: float32 [M, H, S, D + 4] of `attention_decode.partials`; D a multiple of 8.
    """
    M, _, S, pitch = partials.shape
    w = stored(backend, weight)
    given = _Input(partials, M, None, None, False, {"X": "f32", "XS": w.K})
    values = {"INPUT": "combine", "PARTS_S": S, "PARTS_DV": pitch - 4}
    dtype = np.dtype(dtype)
    return _product(backend, given, w, [partials], bias, residual, dtype, tile, values)


def combine_refusal(weight: Weight, head_dim: int) -> str | None:
    """None if `combine_gemv` takes this weight behind heads of that size, else why not."""
    if isinstance(weight, QuantizedTensor) and weight.scheme.activations_int8:
        return "w8a8 needs all of x before the product"
    if head_dim % 8 or weight.shape[1] % 16:
        return f"head_dim {head_dim} or K {weight.shape[1]} is not a multiple of 8 and 16"
    return None


def _product(
    backend: Any, given: _Input, w: Stored, bound: list[GpuArray], bias: GpuArray | None,
    residual: GpuArray | None, out_dtype: np.dtype, tile: Tile | None, values: dict[str, Any],
) -> GpuArray:  # fmt: skip
    M, N = given.M, w.N
    # words of 16-bit results would straddle rows of an odd length
    made = np.dtype(np.float32) if M > 1 and N % 2 else out_dtype
    out = backend.empty((M, N), made)
    rows = padded_rows(M)
    tile = tile or choose(backend.caps, w, rows)
    bias = None if bias is None else backend.dense(bias)
    residual = None if residual is None else backend.dense(residual)
    values = {
        **_values(w, given, tile, rows), **values,
        "OUT": name_of(made), "BIAS": _name(bias), "RESIDUAL": _name(residual),
    }  # fmt: skip
    norm = given.norm.weight if given.norm else None
    for first, part in w.parts(backend):
        params = [
            M, part.N, first, N, _x_base(backend, given), *_weight_bases(backend, part),
            _base(backend, bias), _base(backend, residual), _norm_base(backend, given),
            _base(backend, given.scales),
            float(given.norm.eps if given.norm else 0),
        ]  # fmt: skip
        reads = [*bound, *_present(part.rows, part.scales, norm, bias, residual)]
        backend.launch("gemv", "main", -(-part.N // tile.group), reads, [out], params, **values)
    return out if made == out_dtype else backend.cast(out, out_dtype)


def norm_gated_gemv(
    backend: Any, x: GpuArray, norm: Norm | None, gate: Weight, up: Weight, *, act: str = "silu",
    gate_bias: GpuArray | None = None, up_bias: GpuArray | None = None, tile: Tile | None = None,
) -> GpuArray:  # fmt: skip
    """act(h gateᵀ) · (h upᵀ) with h = rms_norm(x), or x without `norm`: [M, F] in x's dtype.

    act: one of ACTIVATIONS. gate and up [F, K] must be stored alike.
    """
    off = x.shape[1] % 8 != 0
    g, u = stored(backend, gate, off), stored(backend, up, off)
    g, u = g._replace(slow=g.slow or u.slow), u._replace(slow=g.slow or u.slow)
    given, F = _prepared(backend, x, g, norm), g.N
    M, rows = given.M, padded_rows(given.M)
    made = np.dtype(np.float32) if M > 1 and F % 2 else x.dtype
    out = backend.empty((M, F), made)
    tile = tile or choose(backend.caps, g._replace(N=2 * F), rows, least=4)
    bias, up_bias = (None if b is None else backend.dense(b) for b in (gate_bias, up_bias))
    values = {
        **_values(g, given, tile, rows), "OUT": name_of(made), "BIAS": _name(bias),
        "UP_BIAS": _name(up_bias), "ACT": act,
    }  # fmt: skip
    weight = given.norm.weight if given.norm else None
    for (first, g_part), (_, u_part) in zip(g.parts(backend), u.parts(backend), strict=True):
        params = [
            M, g_part.N, first, F, _x_base(backend, given), *_weight_bases(backend, g_part),
            *_weight_bases(backend, u_part), _base(backend, bias), _base(backend, up_bias),
            _norm_base(backend, given), _base(backend, given.scales),
            float(given.norm.eps if given.norm else 0),
        ]  # fmt: skip
        reads = _present(
            given.x, given.scales, g_part.rows, g_part.scales, u_part.rows, u_part.scales,
            weight, bias, up_bias,
        )  # fmt: skip
        grid = -(-2 * g_part.N // tile.group)
        backend.launch("gemv_gated", "main", grid, reads, [out], params, **values)
    return out if made == x.dtype else backend.cast(out, x.dtype)


def qkv_refusal(rotated: int, head_dim: int, *caches: GpuArray | None) -> str | None:
    """None if `qkv_rope` takes these heads and caches, else why not."""
    if head_dim % 4 or rotated % 4:
        return f"head_dim {head_dim} or its rotated part {rotated} is not a multiple of 4"
    for cache in caches:
        if cache is not None and (cache.offset * cache.dtype.itemsize % 4 or not cache.contiguous):
            return "a cache does not begin at a word"
    return None


def qkv_rope(
    backend: Any, x: GpuArray, norm: Norm | None, weights: tuple[Weight, Weight, Weight],
    rope: Rope, head_dim: int, *, k_cache: GpuArray | None = None,
    v_cache: GpuArray | None = None, slots: GpuArray | None = None,
    biases: tuple[GpuArray | None, ...] = (None, None, None), tile: Tile | None = None,
) -> tuple[GpuArray, GpuArray | None, GpuArray | None]:  # fmt: skip
    """q, k, v of rms_norm(x), q and k turned: (q [M, H, D], k and v [M, KH, D], or None where
    they went into the caches).

    Args:
        x: [M, K].   weights: of q [H D, K], k and v [KH D, K], stored alike.
        k_cache, v_cache: [NB, bs, KH, D].   slots: int32 [M], negative: not written.
        biases: of q, k and v, of one dtype; all or none.
    """
    off = x.shape[1] % 8 != 0
    each = [stored(backend, w, off) for w in weights]
    if any(w.slow for w in each):
        each = [w._replace(slow=True) for w in each]
    whole = joined(backend, each)
    given = _prepared(backend, x, each[0], norm)
    M, rows, D = given.M, padded_rows(given.M), head_dim
    H, KH = each[0].N // D, each[1].N // D
    q = backend.empty((M, H, D), x.dtype)
    k, v = k_cache, v_cache
    if k is None or v is None:
        k, v = (backend.empty((M, KH, D), x.dtype) for _ in range(2))
    bound = [None if b is None else backend.dense(b) for b in biases]
    cos, sin, table_rows = (backend.dense(a) for a in (rope.cos, rope.sin, rope.rows))
    slots = None if slots is None else backend.dense(slots)
    tile = tile or choose(backend.caps, each[0]._replace(N=sum(w.N for w in each)), rows, least=4)
    values = {
        **_values(each[0], given, tile, rows), "H": H, "KH": KH, "D": D,
        "ROT": 2 * cos.shape[1], "INTERLEAVED": rope.interleaved, "CACHE": name_of(k.dtype),
        "SLOTS": slots is not None, "BIAS": _name(bound[0]),
    }  # fmt: skip
    norm_weight = given.norm.weight if given.norm else None
    head = 0
    for w in each if whole is None else [whole]:
        params = [
            M, w.N // D, head, _x_base(backend, given), *_weight_bases(backend, w),
            *(_base(backend, b) for b in bound), _norm_base(backend, given),
            *(_base(backend, a) for a in (given.scales, cos, sin, table_rows, slots, k, v)),
            float(given.norm.eps if given.norm else 0),
        ]  # fmt: skip
        reads = _present(
            given.x, given.scales, w.rows, w.scales, norm_weight, *bound, cos, sin, table_rows,
            slots,
        )  # fmt: skip
        grid = -(-w.N // tile.group)
        backend.launch("gemv_qkv", "main", grid, reads, [q, k, v], params, **values)
        head += w.N // D
    return (q, k, v) if k_cache is None else (q, None, None)


# -- what the compile gate builds ----------------------------------------------------------------
_SMALL, _LARGE = Tile(32, 8, 4, 1), Tile(256, 64, 4, 2)


def _variant(family: str, form: str, M: int = 1, tile: Tile = _SMALL, **values: Any) -> Variant:
    K = 192 if form in ("q8_0", "q4_1") else 176
    x = "f32" if form in ("f32", "w8a8") else "bf16"
    common = {
        "FORM": form, "GROUP": 0, "SLOW": False, "K": K, "M": M, "NORM": form != "w8a8",
        "INPUT": "plain", "X": x, "XS": K, **tile.values(), "OUT": x, "BIAS": "",
    }  # fmt: skip
    own = {
        "gemv": {"RESIDUAL": x},
        "gemv_gated": {"UP_BIAS": "", "ACT": "silu"},
        "gemv_qkv": {
            "H": 3, "KH": 1, "D": 16, "ROT": 16, "INTERLEAVED": False, "CACHE": x, "SLOTS": True,
        },
    }[family]  # fmt: skip
    needs = ("subgroup_max",) if tile is _LARGE else ()
    return Variant(family, {**common, **own, **values}, needs)


_FORMS = ("f32", "f16", "bf16", "i8", "w8a8", "q8_0", "q4_1")
_ODD: dict[str, Any] = {"SLOW": True, "K": 33, "XS": 48}
_COMBINED: dict[str, Any] = {
    "INPUT": "combine", "PARTS_S": 4, "PARTS_DV": 16, "NORM": False, "X": "f32",
}  # fmt: skip
VARIANTS = [
    *(_variant("gemv", form, M) for form, M in zip(_FORMS, (1, 2, 4, 8, 1, 2, 4), strict=True)),
    *(_variant("gemv", form, 1, _LARGE) for form in _FORMS),
    _variant("gemv", "bf16", 8, _LARGE, OUT="f32", BIAS="f32", RESIDUAL=""),
    _variant("gemv", "i8", 1, _LARGE, GROUP=32, X="f16", OUT="f16", BIAS="f16"),
    _variant("gemv", "i8", 1, DECODE="magic"),
    _variant("gemv", "i8", 1, DECODE="builtin"),
    _variant("gemv", "i8", 2, GROUP=32, **_ODD),
    *(_variant("gemv", form, 2, **_ODD) for form in ("f32", "f16", "bf16", "i8", "w8a8")),
    _variant("gemv", "bf16", 1, _LARGE, **_COMBINED),
    _variant("gemv", "i8", 2, **_COMBINED),
    _variant("gemv_gated", "bf16", 1, _LARGE, BIAS="f32", UP_BIAS="f32"),
    _variant("gemv_gated", "i8", 2, ACT="gelu"),
    _variant("gemv_gated", "w8a8", 2, ACT="gelu_tanh"),
    _variant("gemv_gated", "f32", 1, **_ODD),
    _variant("gemv_qkv", "bf16", 1, _LARGE),
    _variant("gemv_qkv", "bf16", 4, INTERLEAVED=True, ROT=8, CACHE="f32", BIAS="f32"),
    _variant("gemv_qkv", "i8", 2, _LARGE, ROT=8, SLOTS=False),
    _variant("gemv_qkv", "w8a8", 2, SLOTS=False),
    _variant("gemv_qkv", "f32", 1, **_ODD),
    *(
        Variant("gemv_quantize", {"X": x, "K": 33, "XS": 48, "THREADS": 256, "NORM": norm})
        for x, norm in (("f32", False), ("bf16", True), ("f16", True))
    ),
]
