"""Launches of rope, alone and with the writing of a cache; see `shaders/cuda/rows/rope.cu`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.cupy.rows.rows import has_dense_rows, power_of_two
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.errors import ShapeError
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

_THREADS = 256
_MOST_ITEMS = 8


def _run_pairs(D: int, half: int, item: int, *starts: int) -> int:
    """Pairs in one run: as many as 16 bytes hold of one side, if all divides, else 1."""
    run, rest = 16 // item, D - 2 * half
    if half % run or rest % (2 * run) or any(start % 16 for start in starts):
        return 1
    return run


def _shape(D: int, half: int, run: int) -> dict[str, int]:
    """The macros VEC, ITEMS and LANES for heads of D dimensions, 2 * half of them rotated."""
    runs = -(-(half + (D - 2 * half + 1) // 2) // run)
    lanes = min(32, power_of_two(runs))
    return {"VEC": run, "ITEMS": -(-runs // lanes), "LANES": lanes}


def _launch(
    backend: CupyBackend, x: Any, out: Any, k_out: Any, v_out: Any, tables: list[Any], slots: Any,
    norms: list[Any], sizes: tuple[int, int, int], layout: str, eps: float,
    turn: float = 1.0,
) -> None:  # fmt: skip
    """x: rows of H + 2K heads, `sizes` = (H, K, D); tables: cos, sin and rows."""
    H, K, D = sizes
    T = x.shape[0]
    if not out.size and not (K and T):
        return
    half, heads = tables[0].shape[1], H + 2 * K
    stride = x.strides[0] // x.itemsize
    starts = [x.data.ptr, x.strides[0] if T > 1 else 0, D * x.itemsize]
    starts += [a.data.ptr for a in (out, k_out, v_out, *tables[:2], *norms) if a is not None]
    item = x.itemsize if k_out is None else min(x.itemsize, k_out.itemsize)
    shape = _shape(D, half, _run_pairs(D, half, item, *starts))
    lanes = shape["LANES"]
    rounds = -(-heads * lanes // _THREADS)
    teams = -(-heads // rounds)
    threads = -(-teams * lanes // 32) * 32
    shares = rounds if 2 * backend.caps.sms > T else 1
    total = 0 if k_out is None else k_out.size // max(K * D, 1)
    cache = x.dtype if k_out is None else k_out.dtype
    backend.launch(
        "rope", "rope", (T, shares), (threads,),
        [x, out, k_out, v_out, *tables, slots, *norms, H, K, D, half, total, np.int64(stride),
         float(eps), turn],
        dependent=True, X=backend.c_type(x.dtype), C=backend.c_type(cache),
        INTERLEAVED=int(layout == "interleaved"), NORM=int(any(n is not None for n in norms)),
        **shape,
    )  # fmt: skip


def _rope(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str, turn: float = 1.0
) -> Tensor:
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    source = x.data if x.data.size and has_dense_rows(x.data) else backend.dense(x.data)
    tables = [backend.dense(t.data) for t in (cos, sin, positions)]
    out = backend.empty(x.shape, x.dtype)
    _, H, D = x.shape
    _launch(
        backend, source, out, None, None, tables, None, [None, None], (H, 0, D), layout, 0.0, turn
    )
    return Tensor.wrap(out, backend)


def rope_write(
    backend: CupyBackend,
    qkv: Any,
    heads: int,
    kv_heads: int,
    head_dim: int,
    q_norm: Any | None,
    k_norm: Any | None,
    eps: float,
    cos: Any,
    sin: Any,
    rows: Any,
    layout: str,
    k_cache: Any | None = None,
    v_cache: Any | None = None,
    slots: Any | None = None,
) -> tuple[Any, Any | None, Any | None]:
    """(q [T, H, D], k, v): heads of a qkv product normed, rotated and put where attention reads.

    Args (arrays):
        qkv: [T, (H + 2K) D], rows may be strided.   q_norm, k_norm: float32 [D] or None.
        cos, sin: float32 [S, R/2].   rows: int32 [T], their rows.   layout: as ops.rope.
        k_cache, v_cache: dense [NB, bs, K, D].   slots: int32 [T], rows of the caches; negative
            ones are skipped. Without caches k and v are made, [T, K, D]; with them they are None.
    """
    T = qkv.shape[0]
    H, K, D = heads, kv_heads, head_dim
    if qkv.shape[1] != (H + 2 * K) * D:
        raise ShapeError(f"rope_write: qkv must be [T, {(H + 2 * K) * D}], got {qkv.shape}")
    source = qkv if qkv.size and has_dense_rows(qkv) else backend.dense(qkv)
    out = backend.empty((T, H, D), qkv.dtype)
    k, v = k_cache, v_cache
    if k_cache is None:
        k, v = (backend.empty((T, K, D), qkv.dtype) for _ in range(2))
        slots = None
    tables = [backend.dense(a) for a in (cos, sin, rows)]
    norms = [None if n is None else backend.dense(n) for n in (q_norm, k_norm)]
    _launch(backend, source, out, k, v, tables, slots, norms, (H, K, D), layout, eps)
    return (out, k, v) if k_cache is None else (out, None, None)


def _supports(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str) -> str | None:
    if str(cos.dtype) != "float32" or str(sin.dtype) != "float32":
        return f"the tables are {cos.dtype}, not float32"
    D, half = x.shape[2], cos.shape[1]
    if half and _shape(D, half, 1)["ITEMS"] > _MOST_ITEMS:
        return f"head_dim {D} is above {64 * _MOST_ITEMS}"
    return "no dimension is rotated" if not half else refusals.floats(x)


def _rope_backward(g: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str) -> Tensor:
    return _rope(g, cos, sin, positions, layout, -1.0)


KERNELS = {"rope": Kernel(_rope, _supports), "rope_backward": Kernel(_rope_backward, _supports)}

VARIANTS = [
    Variant("rope", {"X": x, "C": c, "INTERLEAVED": interleaved, "NORM": norm,
                     **_shape(D, half, run)})
    for x, c, D, half, run, norm, interleaved in (
        ("bf16", "bf16", 128, 64, 8, 1, 0), ("bf16", "bf16", 64, 32, 8, 0, 0),
        ("bf16", "float", 80, 16, 8, 1, 1), ("float", "f16", 256, 128, 4, 0, 1),
        ("float", "float", 96, 24, 4, 1, 0), ("f16", "f16", 512, 256, 1, 1, 0),
        ("f16", "f16", 512, 256, 1, 1, 1),
    )
]  # fmt: skip
