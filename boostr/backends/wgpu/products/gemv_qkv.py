"""Launches of the products that make q, k and v, with rope and the cache behind them.

`gemv_qkv.wgsl` does all in one kernel; heads that are normalised take a second one,
`gemv_heads.wgsl`, as the norm needs a whole head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from boostr.backends.wgpu.products.gemv import (
    BF16,
    DIGITS,
    INT8,
    KNOWN,
    LARGE,
    LAYER,
    ODD,
    ROUNDED,
    TEAMS,
    product,
    variant,
)
from boostr.backends.wgpu.products.gemv_input import (
    Input,
    Norm,
    base,
    name_or_none,
    norm_arrays,
    norm_bases,
    prepared,
    present,
    specialised,
    x_base,
)
from boostr.backends.wgpu.products.gemv_plan import (
    Stored,
    Tile,
    joined,
    stored,
)
from boostr.backends.wgpu.products.planes import FORMS, PACKED, Weight
from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import name_of
from boostr.quant.forms import Form

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

_HEAD_THREADS, _ALL_THREADS = 32, 128


class Rope(NamedTuple):
    """cos, sin: float32 [S, R/2]; rows: int32 [T], the row of the tables of each token; factors:
    float32 [S], of queries."""

    cos: GpuArray
    sin: GpuArray
    rows: GpuArray
    interleaved: bool = False
    factors: GpuArray | None = None


class Norms(NamedTuple):
    """RMS norms of the heads of q and k: weights float32, eps; over: see gemv_heads.wgsl; offset:
    added to the weights; last: whether they come after rope."""

    q: GpuArray
    k: GpuArray
    eps: float
    over: str = "head"
    offset: float = 0.0
    last: bool = False


def qkv_refusal(rotated: int, head_dim: int, *caches: GpuArray | None) -> str | None:
    """None if `qkv_rope` takes these heads and caches, else why not."""
    if head_dim % 4 or rotated % 4:
        return f"head_dim {head_dim} or its rotated part {rotated} is not a multiple of 4"
    for cache in caches:
        if cache is not None and (cache.offset * cache.dtype.itemsize % 4 or not cache.contiguous):
            return "a cache does not begin at a word"
    return None


class Cache(NamedTuple):
    """Where new keys and values go: keys, values [NB, bs, KH, D]; slots int32 [M], -1: nowhere."""

    keys: GpuArray
    values: GpuArray
    slots: GpuArray


class _Places(NamedTuple):
    """Where q, k and v go, and what turns them there."""

    q: GpuArray
    k: GpuArray
    v: GpuArray
    rope: Rope | None
    slots: GpuArray | None

    def values(self) -> dict[str, Any]:
        """What the sources that write them are specialised by."""
        return {
            "H": self.q.shape[1], "KH": self.k.shape[-2], "D": self.q.shape[2],
            "ROT": 2 * self.rope.cos.shape[1] if self.rope else 0,
            "INTERLEAVED": bool(self.rope and self.rope.interleaved),
            "FACTORS": bool(self.rope and self.rope.factors is not None),
            "X": name_of(self.q.dtype), "CACHE": name_of(self.k.dtype),
            "SLOTS": self.slots is not None,
        }  # fmt: skip

    def reads(self) -> list[GpuArray]:
        rope = self.rope
        return present(*((rope.cos, rope.sin, rope.rows, rope.factors) if rope else ()), self.slots)

    def bases(self, backend: WgpuBackend) -> list[int]:
        return [base(backend, a) for a in (*self.reads(), self.k, self.v)]


def _places(
    backend: WgpuBackend,
    M: int,
    H: int,
    KH: int,
    D: int,
    dtype: Any,
    rope: Rope | None,
    cache: Cache | None,
) -> _Places:
    q = backend.empty((M, H, D), dtype)
    if rope is not None:
        cos, sin, rows = (backend.dense(a) for a in rope[:3])
        factors = None if rope.factors is None else backend.dense(rope.factors)
        rope = Rope(cos, sin, rows, rope.interleaved, factors)
    if cache is None:
        k, v, slots = backend.empty((M, KH, D), dtype), backend.empty((M, KH, D), dtype), None
    else:
        k, v, slots = cache.keys, cache.values, backend.dense(cache.slots)
    return _Places(q, k, v, rope, slots)


def qkv_rope(
    backend: WgpuBackend, x: GpuArray, norm: Norm | None, weights: Sequence[Weight],
    rope: Rope | None, head_dim: int, *, cache: Cache | None = None,
    biases: Sequence[GpuArray | None] = (None,) * 3, head_norm: Norms | None = None,
    tile: Tile | None = None,
) -> tuple[GpuArray, GpuArray, GpuArray]:  # fmt: skip
    """q, k, v of norm(x), q and k turned by rope: q [M, H, D]; k and v [M, KH, D], or the caches.

    Args:
        x: [M, K], few rows.   weights: of q [H D, K], k and v [KH D, K]; those that are
            stored alike and lie end to end take one kernel.
        biases: of q, k and v, of one dtype; all or none, and none with `head_norm`.
    """
    off = x.shape[1] % 8 != 0
    each = [stored(backend, w, off) for w in weights]
    if any(w.slow for w in each):
        each = [w._replace(slow=True) for w in each]
    parts = each[:1]
    for w in each[1:]:
        whole = joined(backend, [parts[-1], w])
        parts[-1:] = [parts[-1], w] if whole is None else [whole]
    given = prepared(backend, x, each[0], norm)
    H, KH = each[0].N // head_dim, each[1].N // head_dim
    if head_norm is not None:
        bound = [given.x, *present(given.scales)]
        heads = product(backend, given, parts, bound, None, None, x.dtype, tile, {})
        return heads_rope(backend, heads, H, KH, rope, head_norm, cache)
    to = _places(backend, given.M, H, KH, head_dim, x.dtype, rope, cache)
    _qkv(backend, given, parts, to, [None if b is None else backend.dense(b) for b in biases], tile)
    return to.q, to.k, to.v


def _qkv(
    backend: WgpuBackend, given: Input, weights: list[Stored], to: _Places,
    biases: list[GpuArray | None], tile: Tile | None,
) -> None:  # fmt: skip
    """The product and all behind it in one kernel, for each part of the weight."""
    M, D = given.M, to.q.shape[2]
    total = sum(w.N for w in weights)
    values = {**to.values(), "BIAS": name_or_none(biases[0])}
    eps = given.norm.eps if given.norm else 0.0
    head = 0
    for w in weights:
        cut, known = specialised(backend, w, given, total, 4, tile)
        known |= values
        params = [
            M, w.N // D, head, x_base(backend, given), *w.bases(backend),
            *(base(backend, b) for b in biases), *norm_bases(backend, given),
            base(backend, given.scales), *to.bases(backend), float(eps),
        ]  # fmt: skip
        reads = [*present(given.x, given.scales), *w.planes, *norm_arrays(given), *present(*biases)]
        backend.launch(
            "gemv_qkv", "main", -(-w.N // cut.group), [*reads, *to.reads()], [to.q, to.k, to.v],
            params, **known,
        )  # fmt: skip
        head += w.N // D


def heads_rope(
    backend: WgpuBackend, heads: GpuArray, H: int, KH: int, rope: Rope | None,
    norm: Norms | None = None, cache: Cache | None = None,
) -> tuple[GpuArray, GpuArray, GpuArray]:  # fmt: skip
    """q, k, v as `qkv_rope` returns them, of heads [M, (H + 2 KH) D] as a product made them."""
    M, D = heads.shape[0], heads.shape[1] // (H + 2 * KH)
    to = _places(backend, M, H, KH, D, heads.dtype, rope, cache)
    heads = backend.dense(heads)
    norms = [] if norm is None else [backend.dense(norm.q), backend.dense(norm.k)]
    count = M * (H + 2 * KH)
    params = [
        base(backend, heads), *(base(backend, n) for n in norms or (None, None)),
        *to.bases(backend), count, float(norm.eps if norm else 0),
    ]  # fmt: skip
    backend.launch(
        "gemv_heads", "main", count, [heads, *norms, *to.reads()], [to.q, to.k, to.v], params,
        **to.values(), **_norm_values(norm),
    )  # fmt: skip
    return to.q, to.k, to.v


def _norm_values(norm: Norms | None) -> dict[str, Any]:
    if norm is None:
        return {"NORM": "", "THREADS": _HEAD_THREADS}
    threads = _ALL_THREADS if norm.over == "all" else _HEAD_THREADS
    return {
        "NORM": norm.over, "OFFSET": float(norm.offset), "LAST": norm.last, "THREADS": threads,
    }  # fmt: skip


# -- what the compile gate builds ----------------------------------------------------------------
_NORMS: Any = Norms(None, None, 0.0)  # type: ignore[arg-type]
VARIANTS = [
    variant("gemv_qkv", BF16, 1, LARGE),
    variant("gemv_qkv", BF16, 1, KNOWN),
    variant("gemv_qkv", INT8, 1, DIGITS),
    variant("gemv_qkv", Form("c4", 8, 32, "f16"), 1, TEAMS),
    variant("gemv_qkv", BF16, 4, INTERLEAVED=True, ROT=8, CACHE="f32", BIAS="f32"),
    variant("gemv_qkv", INT8, 2, LARGE, ROT=8, SLOTS=False, NORM=LAYER),
    variant("gemv_qkv", ROUNDED, 2, SLOTS=False),
    variant("gemv_qkv", Form("f32"), 1, **ODD),
    *(variant("gemv_qkv", form) for form in FORMS if form.codes in PACKED),
    variant("gemv_qkv", BF16, 1, KNOWN, ROT=0),
    variant("gemv_qkv", BF16, 2, FACTORS=True, ROT=8, SLOTS=False),
    *(
        Variant("gemv_heads", {
            "H": 3, "KH": 1, "D": 16, "ROT": rot, "INTERLEAVED": rot == 8, "X": x, "CACHE": cache,
            "SLOTS": rot < 16, "FACTORS": rot == 8, **_norm_values(norm),
        })
        for rot, x, cache, norm in (
            (16, "bf16", "bf16", None), (8, "f32", "f16", _NORMS), (0, "f32", "f32", _NORMS),
            (16, "bf16", "bf16", _NORMS._replace(last=True, over="heads", offset=1.0)),
            (16, "f16", "f16", _NORMS._replace(over="all")),
        )
    ),
]  # fmt: skip
