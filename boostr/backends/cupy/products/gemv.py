"""Launches of the decode kernels: products of 1..8 rows with weights in their stored form.

`shaders/cuda/products/gemv*.cu` say what is computed. All functions take contiguous device arrays
(`weight`: a Tensor [N, K] or a QuantizedTensor), launch one kernel on the current stream, or one
for each way in which weights are stored (dependently inside `Backend.constant_weights`, as they
fetch weights before they wait), and return device arrays:

    gemv(backend, x [M, K], weight, bias [N], residual [M, N], out_dtype, act=) -> [M, N]
    norm_gemv(backend, x, norm, weight, bias=, residual=, out_dtype=) -> [M, N]
    norm_gated_gemv(backend, x, norm, gate, up, act=, gate_bias=, up_bias=) -> [M, F]
    qkv_rope_write(backend, x, norm, q, k, v, caches, rope, ...) -> q [M, H, D]

`shared_refusal(...)` says why rows of x do not fit the device's shared memory, or None.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from boostr.backends.cupy.products.gemv_plan import (  # isort: skip
    C_TYPES, Array, Plan, choose, choose_for_block, padded_rows, shared_bytes, shared_refusal,
)  # fmt: skip
from boostr.backends.cupy.products.stored import SNIPPETS, Stored, Weight
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.quant.forms import Form, scheme_form
from boostr.quant.scheme import SCHEMES

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

ACTIVATIONS = {"silu": "SILU", "gelu": "GELU", "gelu_tanh": "GELU_TANH"}


class Norm(NamedTuple):
    """An RMS norm of x before the product: weight [K] float, eps, what is added to the weight."""

    weight: Array
    eps: float
    offset: float = 0.0


class Rope(NamedTuple):
    """cos, sin: float32 [S, R/2]; rows: int32 [T], the row of the tables of each token."""

    cos: Array
    sin: Array
    rows: Array
    interleaved: bool = False


class HeadNorm(NamedTuple):
    """RMS norms of the heads of q and k before rope: weights [D], eps."""

    q: Array
    k: Array
    eps: float


def _launch(
    backend: CupyBackend, family: str, plan: Plan, w: Stored, units: int, args: list, shared: int,
    blocks: int = 0, **defines: int | str,
) -> None:  # fmt: skip
    """`units` units of rows for all blocks, or for each of `blocks` blocks."""
    grid = blocks or max(1, min(backend.caps.sms * plan.blocks_per_sm, units))
    teams = plan.warps // plan.ksplit * (1 if blocks else grid)
    item = {"float": 4}.get(str(defines["X_T"]), 2)
    backend.launch(
        family, family, (grid,), (plan.warps * 32,), args, shared_bytes=shared,
        dependent=backend.early, KEEP=plan.keep(int(defines["ROWS"]), w.K),
        **plan.limits(w, units, teams), **plan.defines(w.form, item, w.pieces), **defines,
    )  # fmt: skip


def _floats(norm: Norm | None) -> tuple[float, float]:
    return (float(norm.eps), float(norm.offset)) if norm else (0.0, 0.0)


def _c_type(array: Array | None) -> str:
    return "float" if array is None else C_TYPES[array.dtype]


def _alike(plan: Plan, weights: tuple[Stored, ...], *arrays: Array | None) -> Plan:
    """The plan, slow if a weight or an array that is read 16 bytes at a time is not aligned."""
    off = any(a is not None and a.data.ptr % 16 for a in arrays)
    return replace(plan, slow=True) if off or not all(w.aligned for w in weights) else plan


# -- the products -----------------------------------------------------------------------------
def gemv(
    backend: CupyBackend, x: Array, weight: Weight, bias: Array | None = None,
    residual: Array | None = None, out_dtype: Any = None, *, plan: Plan | None = None,
    norm: Norm | None = None, out: Array | None = None, act: str | None = None,
) -> Array:  # fmt: skip
    """x weightᵀ + bias + residual in `out_dtype` (x's by default); under `norm` of normed x.

    act: one of ACTIVATIONS, for act(x weightᵀ + bias) · residual.
    """
    x = backend.dense(x)
    M, K = x.shape
    if M > 1 and plan is None and shared_refusal(backend, weight, M, x.dtype):
        return _halves(backend, x, weight, bias, residual, out_dtype, norm, out, act)
    w, rows = Stored.of(weight, backend), padded_rows(M)
    if out is None:
        out = backend.empty((M, w.N), np.dtype(out_dtype or x.dtype))
    plan = plan or choose(backend, w, rows, w.N, x.dtype.itemsize)
    plan = _alike(plan, (w,), x, norm and norm.weight)
    shared = shared_bytes(backend, plan, w, rows, x.dtype.itemsize)
    args = [
        x, *w.planes, bias, residual, out, norm and norm.weight, M, w.N, K, *_floats(norm),
    ]  # fmt: skip
    gated: dict[str, Any] = {"ACT": ACTIVATIONS[act]} if act else {}
    _launch(
        backend, "gemv", plan, w, -(-w.N // plan.unit_rows), args, shared, **gated,
        INPUT="RMS_NORM" if norm else "PLAIN", ROWS=rows, X_T=C_TYPES[x.dtype],
        OUT_T=_c_type(out), REST_T=_c_type(residual), BIAS_T=_c_type(bias),
        NORM_T=_c_type(norm and norm.weight),
    )  # fmt: skip
    return out


def _halves(
    backend: CupyBackend, x: Array, weight: Weight, bias: Array | None, residual: Array | None,
    out_dtype: Any, norm: Norm | None, out: Array | None, act: str | None,
) -> Array:  # fmt: skip
    """As gemv, half of the rows after the other: for rows that do not fit shared memory at once."""
    M = len(x)
    made = (
        backend.empty((M, weight.shape[0]), np.dtype(out_dtype or x.dtype)) if out is None else out
    )
    for part in (slice(0, (M + 1) // 2), slice((M + 1) // 2, M)):
        rest = None if residual is None else residual[part]
        gemv(backend, x[part], weight, bias, rest, out_dtype, norm=norm, out=made[part], act=act)
    return made


def norm_gemv(
    backend: CupyBackend, x: Array, norm: Norm, weight: Weight, *, bias: Array | None = None,
    residual: Array | None = None, out_dtype: Any = None, plan: Plan | None = None,
) -> Array:  # fmt: skip
    """rms_norm(x) weightᵀ + bias + residual; the head's logits with out_dtype float32."""
    return gemv(backend, x, weight, bias, residual, out_dtype, plan=plan, norm=norm)


def norm_gated_gemv(
    backend: CupyBackend,
    x: Array, norm: Norm | None, gate: Weight, up: Weight, *, act: str = "silu",
    gate_bias: Array | None = None, up_bias: Array | None = None, plan: Plan | None = None,
) -> Array:  # fmt: skip
    """act(h gateᵀ) · (h upᵀ) with h = rms_norm(x), or x without `norm`: [M, F] in x's dtype.

    act: one of ACTIVATIONS. gate and up [F, K] that are not stored alike take two kernels.
    """
    M, K = x.shape
    g, u, rows = Stored.of(gate, backend), Stored.of(up, backend), padded_rows(M)
    if (g.N, g.K) != (u.N, u.K):
        raise ValueError(f"norm_gated_gemv: gate and up are of two shapes: {gate!r}, {up!r}")
    if g.form != u.form:
        upper = gemv(backend, x, up, up_bias, None, np.float32, norm=norm, plan=plan)
        return gemv(backend, x, gate, gate_bias, upper, x.dtype, norm=norm, plan=plan, act=act)
    out = backend.empty((M, g.N), x.dtype)
    plan = plan or choose(backend, g, rows, 2 * g.N, x.dtype.itemsize, (4, 2))
    plan = _alike(plan, (g, u), x, norm and norm.weight)
    shared = shared_bytes(backend, plan, g, rows, x.dtype.itemsize)
    args = [
        x, *g.planes, gate_bias, *u.planes, up_bias, out, norm and norm.weight, M, g.N, K,
        *_floats(norm),
    ]  # fmt: skip
    units = -(-g.N // (plan.unit_rows // 2))
    _launch(
        backend, "gemv_gated", plan, g, units, args, shared, ROWS=rows, X_T=C_TYPES[x.dtype],
        INPUT="RMS_NORM" if norm else "PLAIN", ACT=ACTIVATIONS[act],
        BIAS_T=_c_type(gate_bias), NORM_T=_c_type(norm and norm.weight),
    )  # fmt: skip
    return out


def qkv_rope_write(
    backend: CupyBackend, x: Array, norm: Norm | None, weights: tuple[Weight, Weight, Weight],
    rope: Rope, k_cache: Array, v_cache: Array, slots: Array | None, *,
    head_norm: HeadNorm | None = None,
    biases: tuple[Array | None, Array | None, Array | None] = (None, None, None),
    plan: Plan | None = None,
) -> Array:  # fmt: skip
    """q, k, v of rms_norm(x) with rope; k and v into the caches at `slots`; returns q [M, H, D].

    Args:
        x: [M, K].   weights: of q [H D, K], k and v [KH D, K]; neighbours that are stored alike
            take one kernel.
        k_cache, v_cache: [NB, bs, KH, D] of x's dtype.   slots: int32 [M], negative: not written;
            None: row m goes to row m of them.
        head_norm: RMS norms of the heads of q and k.   biases: of q, k and v, of one dtype.
    """
    M, K = x.shape
    KH, D = k_cache.shape[2:]
    q, k, v = (Stored.of(w, backend) for w in weights)
    H, rows = q.N // D, padded_rows(M)
    out = backend.empty((M, H, D), x.dtype)
    bias = next((b for b in biases if b is not None), None)
    own = (head_norm.q, head_norm.k, float(head_norm.eps)) if head_norm else (None, None, 0.0)
    eps, offset = _floats(norm)
    first = 0
    for _, run in itertools.groupby((q, k, v), lambda w: w.form):
        alike = tuple(run)
        some, w = sum(w.N for w in alike) // D, alike[0]
        cut = plan or _qkv_plan(backend, w, rows, some, D, x.dtype.itemsize, head_norm is not None)
        cut = _alike(cut, alike, x, norm and norm.weight)
        values = rows * (D // cut.cluster) * 4 if head_norm else 0
        args = [
            x, *q.planes, biases[0], *k.planes, biases[1], *v.planes, biases[2], out, k_cache,
            v_cache, norm and norm.weight, *own[:2], rope.cos, rope.sin, rope.rows, slots, first,
            some, H, KH, D, rope.cos.shape[1], M, K, eps, offset, own[2],
        ]  # fmt: skip
        pairs = D // 2 // cut.cluster if head_norm else some * (D // 2)
        _launch(
            backend, "gemv_qkv", cut, w, -(-pairs // (32 // cut.lanes)), args,
            shared_bytes(backend, cut, w, rows, x.dtype.itemsize, values),
            some * cut.cluster if head_norm else 0, ROWS=rows, X_T=C_TYPES[x.dtype],
            INPUT="RMS_NORM" if norm else "PLAIN", BIAS_T=_c_type(bias),
            NORM_T=_c_type(norm and norm.weight), QK_NORM=int(bool(head_norm)),
            HEAD_NORM_T=_c_type(own[0]), INTERLEAVED=int(rope.interleaved), CLUSTER=cut.cluster,
        )  # fmt: skip
        first += some
    return out


def _qkv_plan(
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
def _variant(
    family: str, form: Form, rows: int = 1, least: int = 75, **defines: int | str
) -> Variant:
    x = {"f32": "float", "f16": "f16"}.get(form.codes, "bf16")
    plan = Plan(fetch=1 if least >= 80 else 0, packed=rows > 2 and form.codes != "f32")
    both = {
        "ROWS": rows,
        "X_T": x,
        "INPUT": "RMS_NORM",
        **plan.defines(form, 4 if x == "float" else 2),
        **defines,
    }
    return Variant(family, both, least)


def _form(scheme: str) -> Form:
    return scheme_form(SCHEMES[scheme])


BF16, F16 = Form("bf16"), Form("f16")
VARIANTS = [
    _variant("gemv", Form("f32"), least=80),
    *(_variant("gemv", _form(s), least=80) for s in ("int8-g32", "w8a8", "q4_0", "q4_1", "q6_k")),
    *(_variant("gemv", _form(s), 8, 80) for s in ("int8", "q8_0", "q6_k")),
    *(_variant("gemv", form, least=80) for form in SNIPPETS.values()),
    *(_variant("gemv", _form(s), least=80, X_T="float", DIGITS=0) for s in ("q4_1", "q6_k")),
    _variant("gemv", BF16, 8, 80),
    _variant("gemv", _form("q8_0"), least=80, PIECE=2),
    _variant("gemv", _form("q6_k")),
    _variant("gemv", _form("q6_k"), SLOW=1, DIGITS=0),
    _variant("gemv", BF16, least=80, KSPLIT=4, OUT_T="float"),
    _variant("gemv", BF16, INPUT="PLAIN", SLOW=1),
    _variant("gemv", _form("q6_k"), least=80, REST_T="float", ACT="GELU_TANH"),
    _variant("gemv_gated", BF16, least=80, WHOLE=1, SINGLE=1, FILLED=1, KEEP=1),
    _variant("gemv_gated", F16, ACT="GELU_TANH"),
    _variant("gemv_gated", _form("q4_1"), 4, 80),
    _variant("gemv_qkv", _form("int8"), least=80),
    _variant("gemv_qkv", _form("q4_1"), least=80),
    _variant("gemv_qkv", F16, INTERLEAVED=1, QK_NORM=1),
    replace(_variant("gemv_qkv", BF16, least=80, QK_NORM=1, CLUSTER=4), only="sm_90a"),
]
