"""Launches of rope, alone and with the writing of a cache; see `shaders/cuda/rows/rope.cu`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

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
_RESIDENT = 2048  # threads of a multiprocessor
_HEADS = 4  # of one team of threads at most, where there is more work than fits at once
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


def _spread(T: int, heads: int, lanes: int, sms: int) -> tuple[tuple[int, int], int, int]:
    """(grid, threads of a block, teams of `lanes` threads of a token).

    A token has a block, or several blocks if there are few tokens. If there are many, blocks have
    several tokens, and teams several heads: starting a block and reading tables is not free.
    """
    full = -(-heads * lanes // _THREADS)
    rounds = max(full, min(_HEADS, T * heads * lanes // (_RESIDENT * sms)))
    own = -(-heads // rounds) * lanes
    tokens = min(_THREADS // own, T // (4 * sms))
    threads = -(-own * max(1, tokens) // 32) * 32
    if tokens <= 1:
        return (T, full if 2 * sms > T else 1), threads, threads // lanes
    return (-(-T // (threads // own)), 1), threads, own // lanes


class Tables(NamedTuple):
    """cos, sin float32 [S, R/2]; rows int32 [T], the row of each token; what queries are multiplied
    by, float32 [S]; how pairs lie."""

    cos: Any = None
    sin: Any = None
    rows: Any = None
    factors: Any = None
    interleaved: bool = False


class Norms(NamedTuple):
    """RMS norms of the heads of q and k: weights float32, eps, what is added to the weights; what
    they go over (`AttentionSpec.norm_over`); whether they come after rope."""

    q: Any = None
    k: Any = None
    eps: float = 0.0
    offset: float = 0.0
    over: str = "head"
    last: bool = False

    def macros(self) -> dict[str, int]:
        norm = 0 if self.q is None else 2 if self.over == "all" else 1
        return {"NORM": norm, "LAST": int(self.last)}


def _launch(
    backend: CupyBackend, x: Any, out: Any, k_out: Any, v_out: Any, tables: Tables | None,
    slots: Any, norms: Norms, sizes: tuple[int, int, int], turn: float = 1.0,
) -> None:  # fmt: skip
    """x: rows of H + 2K heads, `sizes` = (H, K, D)."""
    H, K, D = sizes
    T = x.shape[0]
    if not out.size and not (K and T):
        return
    tables = tables or Tables()
    half, heads = 0 if tables.cos is None else tables.cos.shape[1], H + 2 * K
    gains = (norms.q, norms.k)
    stride = x.strides[0] // x.itemsize
    starts = [x.data.ptr, x.strides[0] if T > 1 else 0, D * x.itemsize]
    starts += [a.data.ptr for a in (out, k_out, v_out, *tables[:2], *gains) if a is not None]
    item = x.itemsize if k_out is None else min(x.itemsize, k_out.itemsize)
    shape = _shape(D, half, _run_pairs(D, half, item, *starts))
    grid, threads, teams = _spread(T, heads, shape["LANES"], backend.caps.sms)
    total = 0 if k_out is None else k_out.size // max(K * D, 1)
    cache = x.dtype if k_out is None else k_out.dtype
    backend.launch(
        "rope", "rope", grid, (threads,),
        [x, out, k_out, v_out, *tables[:4], slots, *gains, T, teams, H, K, D, half, total,
         np.int64(stride), float(norms.eps), float(norms.offset),
         0 if norms.over == "head" else D, turn],
        dependent=True, X=backend.c_type(x.dtype), C=backend.c_type(cache),
        INTERLEAVED=int(tables.interleaved), **norms.macros(), **shape,
    )  # fmt: skip


def _rope(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str, turn: float = 1.0
) -> Tensor:
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    source = x.data if x.data.size and has_dense_rows(x.data) else backend.dense(x.data)
    arrays = (backend.dense(t.data) for t in (cos, sin, positions))
    tables = Tables(*arrays, interleaved=layout == "interleaved")
    out = backend.empty(x.shape, x.dtype)
    _, H, D = x.shape
    _launch(backend, source, out, None, None, tables, None, Norms(), (H, 0, D), turn)
    return Tensor.wrap(out, backend)


def rope_write(
    backend: CupyBackend,
    qkv: Any,
    heads: int,
    kv_heads: int,
    head_dim: int,
    norms: Norms,
    tables: Tables | None,
    k_cache: Any | None = None,
    v_cache: Any | None = None,
    slots: Any | None = None,
) -> tuple[Any, Any | None, Any | None]:
    """(q [T, H, D], k, v): heads of a qkv product normed, rotated and put where attention reads.

    Args (arrays):
        qkv: [T, (H + 2K) D], rows may be strided.   norms, tables: of dense arrays.
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
    _launch(backend, source, out, k, v, tables, slots, norms, (H, K, D))
    return (out, k, v) if k_cache is None else (out, None, None)


def _supports(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str) -> str | None:
    if str(cos.dtype) != "float32" or str(sin.dtype) != "float32":
        return f"the tables are {cos.dtype}, not float32"
    half = cos.shape[1]
    return (
        "no dimension is rotated"
        if not half
        else size_refusal(x.shape[2], half) or refusals.floats(x)
    )


def size_refusal(D: int, half: int) -> str | None:
    """Why the kernel does not take heads of D, 2 half of which are rotated; None if it does."""
    if _shape(D, half, 1)["ITEMS"] > _MOST_ITEMS:
        return f"head_dim {D} is above {64 * _MOST_ITEMS}"
    return None


def _rope_backward(g: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str) -> Tensor:
    return _rope(g, cos, sin, positions, layout, -1.0)


KERNELS = {"rope": Kernel(_rope, _supports), "rope_backward": Kernel(_rope_backward, _supports)}

VARIANTS = [
    Variant("rope", {"X": x, "C": c, "INTERLEAVED": interleaved, "NORM": norm,
                     "LAST": int(half == 24 or norm == 2), **_shape(D, half, run)})
    for x, c, D, half, run, norm, interleaved in (
        ("bf16", "bf16", 128, 64, 8, 1, 0), ("bf16", "bf16", 64, 32, 8, 0, 0),
        ("bf16", "float", 80, 16, 8, 1, 1), ("float", "f16", 256, 128, 4, 0, 1),
        ("float", "float", 96, 24, 4, 1, 0), ("f16", "f16", 512, 256, 1, 1, 0),
        ("f16", "f16", 512, 256, 1, 1, 1), ("bf16", "bf16", 128, 64, 8, 2, 0),
        ("bf16", "bf16", 128, 0, 8, 0, 0),
    )
]  # fmt: skip
