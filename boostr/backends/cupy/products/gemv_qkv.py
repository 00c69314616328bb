"""Launches of the products that make q, k and v of a decode step, with rope and the cache behind
them: `shaders/cuda/products/gemv_qkv.cu`. Arrays as in `gemv.py`."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from boostr.backends.cupy.products.gemv import (
    BF16,
    F16,
    Norm,
    alike,
    c_type,
    floats,
    form_of_scheme,
    input_macros,
    launch,
    variant,
    vectors,
)
from boostr.backends.cupy.products.gemv_plan import (
    C_TYPES,
    Array,
    Plan,
    choose,
    choose_for_block,
    padded_rows,
    shared_bytes,
)
from boostr.backends.cupy.products.stored import Stored, Weight
from boostr.backends.cupy.rows.rope import Tables

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

Weights = tuple[Weight, Weight, Weight]
Biases = tuple[Array | None, Array | None, Array | None]


class HeadNorm(NamedTuple):
    """RMS norms of the heads of q and k before rope: weights [D], eps, what is added to these."""

    q: Array
    k: Array
    eps: float
    offset: float = 0.0


class _Places(NamedTuple):
    """Where heads go, and how many heads lie from one row of them to the next."""

    q: Array
    k: Array
    v: Array
    slots: Array | None
    q_pitch: int
    kv_pitch: int


def qkv_rope_write(
    backend: CupyBackend, x: Array, norm: Norm | None, weights: Weights, rope: Tables | None,
    k_cache: Array, v_cache: Array, slots: Array | None, *, head_norm: HeadNorm | None = None,
    biases: Biases = (None, None, None), plan: Plan | None = None,
) -> Array:  # fmt: skip
    """q, k, v of norm(x), q and k with rope if there is one; k and v into the caches at `slots`;
    returns q [M, H, D].

    Args:
        x: [M, K].   weights: of q [H D, K], k and v [KH D, K]; neighbours that are stored alike
            take one kernel.
        k_cache, v_cache: [NB, bs, KH, D] of x's dtype.   slots: int32 [M], negative: not written;
            None: row m goes to row m of them.
        head_norm: RMS norms of the heads of q and k.   biases: of q, k and v, of one dtype.
    """
    KH, D = k_cache.shape[2:]
    H = weights[0].shape[0] // D
    out = backend.empty((len(x), H, D), x.dtype)
    to = _Places(out, k_cache, v_cache, slots, H, KH)
    _launches(backend, x, norm, weights, biases, rope or Tables(), to, D, head_norm, plan)
    return out


def qkv(
    backend: CupyBackend, x: Array, norm: Norm | None, weights: Weights, biases: Biases,
    head_dim: int,
) -> Array:  # fmt: skip
    """The products alone, side by side: [M, (H + 2 KH) D]."""
    H, KH = (w.shape[0] // head_dim for w in weights[:2])
    heads = H + 2 * KH
    out = backend.empty((len(x), heads * head_dim), x.dtype)
    k, v = (out[:, n * head_dim :] for n in (H, H + KH))
    to = _Places(out, k, v, None, heads, heads)
    _launches(backend, x, norm, weights, biases, Tables(), to, head_dim, None, None)
    return out


def _launches(
    backend: CupyBackend, x: Array, norm: Norm | None, weights: Weights, biases: Biases,
    tables: Tables, to: _Places, D: int, head_norm: HeadNorm | None, plan: Plan | None,
) -> None:  # fmt: skip
    """One for each run of weights that are stored alike."""
    M, K = x.shape
    q, k, v = (Stored.of(w, backend) for w in weights)
    H, KH, rows, item = q.N // D, k.N // D, padded_rows(M), x.dtype.itemsize
    bias = next((b for b in biases if b is not None), None)
    own: Any = head_norm or HeadNorm(None, None, 0.0)
    half = 0 if tables.cos is None else tables.cos.shape[1]
    first = 0
    for _, run in itertools.groupby((q, k, v), lambda w: w.form):
        together = tuple(run)
        some, w = sum(w.N for w in together) // D, together[0]
        cut = plan or _plan(backend, w, rows, some, D, item, head_norm is not None)
        cut = alike(cut, together, x, *vectors(norm))
        values = rows * (D // cut.cluster) * 4 if head_norm else 0
        args = [
            x, *q.planes, biases[0], *k.planes, biases[1], *v.planes, biases[2], to.q, to.k, to.v,
            *vectors(norm), own.q, own.k, tables.cos, tables.sin, tables.factors, tables.rows,
            to.slots, first, some, H, KH, to.q_pitch, to.kv_pitch, D, half, M, K, *floats(norm),
            float(own.eps), float(own.offset),
        ]  # fmt: skip
        launch(
            backend, "gemv_qkv", cut, w, some * (D // 2), 32 // cut.lanes, args,
            shared_bytes(backend, cut, w, rows, item, values),
            some * cut.cluster if head_norm else 0, ROWS=rows, X_T=C_TYPES[x.dtype],
            **input_macros(norm), BIAS_T=c_type(bias), QK_NORM=int(bool(head_norm)),
            HEAD_NORM_T=c_type(own.q), INTERLEAVED=int(tables.interleaved), CLUSTER=cut.cluster,
        )  # fmt: skip
        first += some


def _plan(
    backend: CupyBackend, q: Stored, rows: int, heads: int, D: int, item: int, normed: bool
) -> Plan:
    """As `choose`; with head norms the pairs of a head are shared out to a cluster of blocks."""
    if not normed:
        return choose(backend, q, rows, heads * D, item, (2,))
    caps, cluster = backend.caps, 1
    while (
        caps.compute_capability >= 90
        and cluster < 8
        and 4 * heads * cluster <= 3 * caps.sms
        and D // 2 % (2 * cluster) == 0
    ):
        cluster *= 2
    return choose_for_block(backend, q, rows, D // cluster, item, cluster)


# -- what the compile gate builds -------------------------------------------------------------
VARIANTS = [
    variant("gemv_qkv", form_of_scheme("int8"), least=80),
    variant("gemv_qkv", form_of_scheme("q4_1"), least=80),
    variant("gemv_qkv", BF16, least=80, INPUT="LAYER_NORM", KEEP=2),
    variant("gemv_qkv", F16, INTERLEAVED=1, QK_NORM=1),
    replace(variant("gemv_qkv", BF16, least=80, QK_NORM=1, CLUSTER=4), only="sm_90a"),
]
