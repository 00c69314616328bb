"""The gradient of packed attention on WebGPU: launches of `attention_delta` and, twice, of
`attention_backward`, in whose WGSL the formula stands."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.wgpu.attention import attention
from boostr.backends.wgpu.attention.attention import Tiles
from boostr.backends.wgpu.attention.attention_plan import (
    aligned,
    make_plan,
    rows_of,
    sides,
    together,
)
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import name_of
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend
    from boostr.backends.wgpu.runtime.array import GpuArray
    from boostr.backends.wgpu.runtime.device import Caps
    from boostr.options import AttentionOptions

# As in attention.py: for heads of up to so many columns, from the best to the smallest
QUERIES: dict[int, tuple[Tiles, ...]] = {
    64: (Tiles(8, 16, 8, 8, 16, 16), Tiles(8, 16, 4, 8, 16, 16), Tiles(8, 8, 4, 8, 8, 16)),
    128: (Tiles(16, 8, 8, 4, 16, 16), Tiles(16, 8, 4, 4, 8, 8)),
    256: (Tiles(16, 8, 4, 4, 16, 16, UNROLL=2), Tiles(16, 4, 4, 4, 8, 8, UNROLL=2)),
}
KEYS: dict[int, tuple[Tiles, ...]] = {
    64: (Tiles(16, 8, 8, 4, 16, 16), Tiles(8, 8, 4, 8, 8, 16)),
    128: (Tiles(16, 16, 4, 4, 16, 16), Tiles(16, 8, 4, 4, 8, 8)),
    256: (Tiles(16, 8, 4, 4, 16, 16, UNROLL=2), Tiles(16, 4, 4, 4, 8, 8, UNROLL=2)),
}
_SHARE, _DELTA_THREADS = 8, 64


def shared_bytes(tiles: Tiles, D: int, DV: int) -> int:
    """Of the workgroup arrays of attention_backward.wgsl."""
    AP, keys = tiles.rows // 4 + 1, tiles.TN * tiles.TX
    columns = -(-max(D, DV) // (4 * tiles.TX)) * tiles.TX
    stage = max(tiles.BK * (AP + keys // 4 + 1), tiles.BKV * columns)
    return 16 * (stage + keys * AP)


@cache
def choose_tiles(D: int, DV: int, caps: Caps, keys: bool) -> Tiles | None:
    """The tiles of the kernel for dq, or with `keys` for dk and dv; None: too little memory."""
    table = KEYS if keys else QUERIES
    width = next(n for n in table if max(D, DV) <= n)
    listed = [attention.software_tiles(max(D, DV))] if caps.kind == "software" else []
    for tiles in (t.fitted(D) for t in (*listed, *table[width])):
        fits = shared_bytes(tiles, D, DV) <= caps.workgroup_bytes
        if fits and tiles.threads <= caps.workgroup_threads:
            return tiles
    return None


class _Call:
    """The arrays and numbers of one call, as the kernels want them."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        g, g_lse, out, lse, q, k, v, cu_q, cu_k, alibi, options = args
        self.backend: WgpuBackend = q.backend
        self.options: AttentionOptions = options
        (self.q, self.k, self.v, self.g), self.vector = rows_of(
            self.backend, q.data, k.data, v.data, _even(self.backend, g.data)
        )
        self.out = _even(self.backend, out.data)
        self.lse, self.g_lse = (self.backend.dense(x.data) for x in (lse, g_lse))
        self.cu_q, self.cu_k = cu_q.data, cu_k.data
        self.alibi = None if alibi is None else alibi.data

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Tq, H, K, D, DV."""
        Tq, H, D = self.q.shape
        return Tq, H, self.k.shape[1], D, self.v.shape[2]

    def stats(self) -> GpuArray:
        """[Tq, H, 2]: the norm and delta of each row."""
        backend, (Tq, H, _, _, DV) = self.backend, self.shape
        made = backend.empty((Tq, H, 2), dtypes.float32)
        reads = [self.g, self.out, self.lse, self.g_lse]
        backend.launch(
            "attention_delta", "attention_delta", -(-Tq * H * _SHARE // _DELTA_THREADS), reads,
            [made], (Tq * H, *(backend.offset(x) for x in reads)),
            Q=name_of(self.q.dtype), DV=DV, THREADS=_DELTA_THREADS, SHARE=_SHARE,
        )  # fmt: skip
        return made

    def gradients(self, stats: GpuArray, keys: bool) -> list[GpuArray]:
        """[dq], or with `keys` [dk, dv]."""
        backend, options, (_, H, K, D, DV) = self.backend, self.options, self.shape
        tiles: Any = choose_tiles(D, DV, backend.caps, keys)
        targets = [self.k, self.v] if keys else [self.q]
        made = [_room(backend, x) for x in targets]
        (cu_a, cu_b), window = (self.cu_q, self.cu_k), sides(options)
        if keys:
            (cu_a, cu_b), window = (cu_b, cu_a), (window[1], window[0])
        per_head = (H, self.alibi, None)
        plan = make_plan(
            backend, tiles.rows, targets[0].shape[0], cu_a, cu_b, window, options.bottom_right,
            per_head,
        )  # fmt: skip
        unit = 4 if self.vector and tiles.AHEAD else 1
        places = []
        for x in (self.q, self.k, self.v, self.g):
            places += [backend.offset(x) // unit, x.strides[0] // unit, x.strides[1] // unit]
        heads, other = (K, [self.q, self.g]) if keys else (H, [self.k, self.v])
        head_bytes = sum(x.shape[0] * x.shape[2] * x.dtype.itemsize for x in other)
        side = together(heads, 1 if keys else H // K, head_bytes * (H // K if keys else 1))
        cap, log2e = options.softcap, float(np.log2(np.e))
        scale = options.scale / cap if cap else options.scale * log2e
        backend.launch(
            "attention_backward", "attention_backward", plan.tiles * heads,
            [self.q, self.k, self.v, self.g, stats, plan.entries], made,
            (*places, heads, H // K, plan.tiles, side, *window, float(scale), cap * log2e,
             float(options.scale)),
            **self.values(tiles, keys),
        )  # fmt: skip
        return [a if a.dtype == x.dtype else backend.cast(a, x.dtype)
                for a, x in zip(made, targets, strict=True)]  # fmt: skip

    def values(self, tiles: Tiles, keys: bool) -> dict[str, Any]:
        """What attention_backward.wgsl is rendered with."""
        D, DV = self.shape[3:]
        general = attention.is_general(self.backend.caps)
        return values(
            tiles, keys, D, DV, name_of(self.q.dtype), name_of(self.k.dtype), self.vector,
            general or self.options.softcap > 0, general or self.alibi is not None,
        )  # fmt: skip


def values(
    tiles: Tiles, keys: bool, D: int, DV: int, q: str, kv: str, vector: bool, softcap: bool,
    alibi: bool,
) -> dict[str, Any]:  # fmt: skip
    """What attention_backward.wgsl is rendered with, from the types of q and k, v."""
    ends = {"OUT_Q": q if D % 2 == 0 else "f32", "OUT_K": kv if D % 2 == 0 else "f32",
            "OUT_V": kv if DV % 2 == 0 else "f32"}  # fmt: skip
    return {
        **asdict(tiles), **ends, "KEYS": int(keys), "D": D, "DV": DV, "Q": q, "KV": kv,
        "VECTOR": int(vector and tiles.AHEAD), "SOFTCAP": int(softcap), "ALIBI": int(alibi),
    }  # fmt: skip


def _even(backend: WgpuBackend, x: GpuArray) -> GpuArray:
    """x dense, and on a whole vector if its rows are."""
    x = backend.dense(x)
    return x if x.shape[-1] % 4 or aligned(backend, x) else backend.copy(x)


def _room(backend: WgpuBackend, x: GpuArray) -> GpuArray:
    """For a gradient of x: rows of an odd width share words, so they are made in float32."""
    return backend.empty(x.shape, x.dtype if x.shape[-1] % 2 == 0 else dtypes.float32)


def _run(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = _Call(args)
    backend: WgpuBackend = call.backend  # type: ignore[assignment]
    stats = call.stats()
    (dq,), (dk, dv) = call.gradients(stats, False), call.gradients(stats, True)
    return Tensor.wrap(dq, backend), Tensor.wrap(dk, backend), Tensor.wrap(dv, backend)


def _supports(
    g: Tensor, g_lse: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> str | None:
    if g.dtype != q.dtype or out.dtype != q.dtype:
        return f"gradients of {g.dtype} for an output of {out.dtype} from {q.dtype}"
    if g_lse.dtype != dtypes.float32:
        return f"the gradient of lse is {g_lse.dtype}: it takes float32"
    reason = attention.supports(q, k, v)
    caps, D, DV = q.backend.caps, q.shape[2], v.shape[-1]  # type: ignore[attr-defined]
    if reason is None and None in (choose_tiles(D, DV, caps, keys) for keys in (False, True)):
        return f"heads of {D} and {DV} columns do not fit {caps.workgroup_bytes} bytes"
    return reason


KERNELS = {"varlen_attention_backward": Kernel(_run, _supports)}


def _variants() -> list[Variant]:
    """As those of attention.py."""
    shape = {"THREADS": _DELTA_THREADS, "SHARE": _SHARE}
    made = [Variant("attention_delta", {"Q": q, "DV": DV, **shape})
            for q, DV in (("f32", 64), ("bf16", 80), ("f16", 7))]  # fmt: skip
    for D, DV in ((64, 64), (80, 80), (128, 128), (256, 256), (1, 7)):
        for keys in (False, True):
            tiles = attention.software_tiles(max(D, DV)).fitted(D)
            rendered = values(tiles, keys, D, DV, "f32", "f32", False, True, True)
            made.append(Variant("attention_backward", rendered))
        for caps, q, kv in ((attention.BARE, "f32", "f32"), (attention.LARGE, "bf16", "f16")):
            for keys in (False, True):
                tiles = choose_tiles(D, DV, caps, keys)
                assert tiles is not None
                extra = caps is attention.BARE
                rendered = values(tiles, keys, D, DV, q, kv, D % 4 == 0, extra, extra)
                made.append(Variant("attention_backward", rendered))
    return made


VARIANTS = _variants()
