"""Launches of the decode kernels: products of 1..8 rows with weights in their stored form.

`shaders/cuda/products/gemv*.cu` say what is computed. All functions take contiguous device arrays
(`weight`: a Tensor [N, K] or a QuantizedTensor), launch one kernel on the current stream, or one
for each way in which weights are stored (dependently inside `Backend.constant_weights`, as they
fetch weights before they wait), and return device arrays:

    gemv(backend, x [M, K], weight, bias [N], residual [M, N], out_dtype, act=) -> [M, N]
    norm_gemv(backend, x, norm, weight, bias=, residual=, out_dtype=) -> [M, N]
    norm_gated_gemv(backend, x, norm, gate, up, act=, gate_bias=, up_bias=) -> [M, F]

`shared_refusal(...)` says why rows of x do not fit the device's shared memory, or None.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from boostr.backends.cupy.products.gemv_plan import (  # isort: skip
    C_TYPES, Array, Plan, choose, padded_rows, shared_bytes, shared_refusal,
)  # fmt: skip
from boostr.backends.cupy.products.stored import SNIPPETS, Stored, Weight
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.quant.forms import Form, scheme_form
from boostr.quant.scheme import SCHEMES

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2")  # as ACT, in capitals


class Norm(NamedTuple):
    """A norm of x before the product: weight and bias [K] float, eps; see `operands.Norm`."""

    weight: Array
    eps: float
    offset: float = 0.0
    layer: bool = False
    bias: Array | None = None


def launch(
    backend: CupyBackend, family: str, plan: Plan, w: Stored, count: int, of_unit: int,
    args: list, shared: int, blocks: int = 0, **defines: int | str,
) -> None:  # fmt: skip
    """`count` rows, or pairs of them, `of_unit` of them in a unit, shared out to the blocks: half
    a unit for each at least, or to `blocks` blocks.
    """
    most = backend.caps.sms * plan.blocks_per_sm
    grid = blocks or min(most, -(-count // max(1, of_unit // 2)))
    units = math.ceil(math.ceil(count / grid) / of_unit)  # of a block
    item = {"float": 4}.get(str(defines["X_T"]), 2)
    backend.launch(
        family, family, (grid,), (plan.warps * 32,), args, shared_bytes=shared,
        dependent=backend.early,
        KEEP=plan.keep(int(defines["ROWS"]), w.K, plan.digits(w.form, item)),
        **plan.limits(w, units), **plan.defines(w.form, item, w.pieces), **defines,
    )  # fmt: skip


def floats(norm: Norm | None) -> tuple[float, float]:
    return (float(norm.eps), float(norm.offset)) if norm else (0.0, 0.0)


def vectors(norm: Norm | None) -> tuple[Array | None, Array | None]:
    return (norm.weight, norm.bias) if norm else (None, None)


def input_macros(norm: Norm | None) -> dict[str, Any]:
    """The macros of gemv_input.cuh."""
    kind = "PLAIN" if norm is None else "LAYER_NORM" if norm.layer else "RMS_NORM"
    return {"INPUT": kind, "NORM_T": c_type(norm and norm.weight)}


def c_type(array: Array | None) -> str:
    return "float" if array is None else C_TYPES[array.dtype]


def alike(plan: Plan, weights: tuple[Stored, ...], *arrays: Array | None) -> Plan:
    """The plan, slow if a weight or an array that is read 16 bytes at a time is not aligned."""
    off = any(a is not None and a.data.ptr % 16 for a in arrays)
    return replace(plan, slow=True) if off or not all(w.aligned for w in weights) else plan


# -- the products -----------------------------------------------------------------------------
def gemv(
    backend: CupyBackend, x: Array, weight: Weight, bias: Array | None = None,
    residual: Array | None = None, out_dtype: Any = None, *, plan: Plan | None = None,
    norm: Norm | None = None, out: Array | None = None, act: str | None = None,
    factor: float = 1.0,
) -> Array:  # fmt: skip
    """factor (x weightᵀ + bias) + residual in `out_dtype` (x's by default), or of norm(x).

    act: one of ACTIVATIONS, for act(x weightᵀ + bias), times the residual if there is one.
    """
    x = backend.dense(x)
    M, K = x.shape
    if M > 1 and plan is None and shared_refusal(backend, weight, M, x.dtype):
        return _halves(backend, x, weight, bias, residual, out_dtype, norm, out, act, factor)
    w, rows = Stored.of(weight, backend), padded_rows(M)
    if out is None:
        out = backend.empty((M, w.N), np.dtype(out_dtype or x.dtype))
    plan = plan or choose(backend, w, rows, w.N, x.dtype.itemsize)
    plan = alike(plan, (w,), x, *vectors(norm))
    shared = shared_bytes(backend, plan, w, rows, x.dtype.itemsize)
    args = [
        x, *w.planes, bias, residual, out, *vectors(norm), M, w.N, K, *floats(norm),
        float(factor),
    ]  # fmt: skip
    gated: dict[str, Any] = {"ACT": act.upper()} if act else {"SCALED": int(factor != 1.0)}
    launch(
        backend, "gemv", plan, w, w.N, plan.unit_rows, args, shared, **gated,
        **input_macros(norm), ROWS=rows, X_T=C_TYPES[x.dtype], OUT_T=c_type(out),
        REST_T=c_type(residual), BIAS_T=c_type(bias),
    )  # fmt: skip
    return out


def _halves(
    backend: CupyBackend, x: Array, weight: Weight, bias: Array | None, residual: Array | None,
    out_dtype: Any, norm: Norm | None, out: Array | None, act: str | None, factor: float,
) -> Array:  # fmt: skip
    """As gemv, half of the rows after the other: for rows that do not fit shared memory at once."""
    M = len(x)
    made = (
        backend.empty((M, weight.shape[0]), np.dtype(out_dtype or x.dtype)) if out is None else out
    )
    for part in (slice(0, (M + 1) // 2), slice((M + 1) // 2, M)):
        rest = None if residual is None else residual[part]
        gemv(
            backend, x[part], weight, bias, rest, out_dtype, norm=norm, out=made[part], act=act,
            factor=factor,
        )  # fmt: skip
    return made


def norm_gemv(
    backend: CupyBackend, x: Array, norm: Norm, weight: Weight, *, bias: Array | None = None,
    residual: Array | None = None, out_dtype: Any = None, plan: Plan | None = None,
) -> Array:  # fmt: skip
    """norm(x) weightᵀ + bias + residual; the head's logits with out_dtype float32."""
    return gemv(backend, x, weight, bias, residual, out_dtype, plan=plan, norm=norm)


def norm_gated_gemv(
    backend: CupyBackend,
    x: Array, norm: Norm | None, gate: Weight, up: Weight, *, act: str = "silu",
    gate_bias: Array | None = None, up_bias: Array | None = None, plan: Plan | None = None,
) -> Array:  # fmt: skip
    """act(h gateᵀ) · (h upᵀ) with h = norm(x), or x without `norm`: [M, F] in x's dtype.

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
    plan = alike(plan, (g, u), x, *vectors(norm))
    shared = shared_bytes(backend, plan, g, rows, x.dtype.itemsize)
    args = [
        x, *g.planes, gate_bias, *u.planes, up_bias, out, *vectors(norm), M, g.N, K,
        *floats(norm),
    ]  # fmt: skip
    launch(
        backend, "gemv_gated", plan, g, g.N, plan.unit_rows // 2, args, shared, ROWS=rows,
        X_T=C_TYPES[x.dtype], **input_macros(norm), ACT=act.upper(), BIAS_T=c_type(gate_bias),
    )  # fmt: skip
    return out


# -- what the compile gate builds -------------------------------------------------------------
def variant(
    family: str, form: Form, rows: int = 1, least: int = 75, **defines: int | str
) -> Variant:
    x = {"f32": "float", "f16": "f16"}.get(form.codes, "bf16")
    x = defines.get("X_T", x)
    plan = Plan(
        fetch=1 if least >= 80 else 0, packed=rows > 2 and form.codes != "f32",
        slow=bool(defines.get("SLOW")),
    )  # fmt: skip
    item = 4 if x == "float" else 2
    if plan.digits(form, item):
        plan = replace(plan, lanes=4)
    both = {"ROWS": rows, "X_T": x, "INPUT": "RMS_NORM", **plan.defines(form, item), **defines}
    return Variant(family, both, least)


def form_of_scheme(scheme: str) -> Form:
    return scheme_form(SCHEMES[scheme])


BF16, F16 = Form("bf16"), Form("f16")
VARIANTS = [
    variant("gemv", Form("f32"), least=80),
    *(
        variant("gemv", form_of_scheme(s), least=80)
        for s in ("int8-g32", "w8a8", "q4_0", "q4_1", "q6_k")
    ),
    *(variant("gemv", form_of_scheme(s), 8, 80) for s in ("int8", "q8_0", "q6_k")),
    *(variant("gemv", form, least=80) for form in SNIPPETS.values()),
    *(variant("gemv", form_of_scheme(s), least=80, KEEP=1) for s in ("int8", "q4_k", "q6_k")),
    *(variant("gemv", form_of_scheme(s), least=80, X_T="float") for s in ("q4_1", "q6_k")),
    variant("gemv", BF16, 8, 80),
    variant("gemv", form_of_scheme("q8_0"), least=80, PIECE=2),
    variant("gemv", form_of_scheme("q6_k")),
    variant("gemv", form_of_scheme("q6_k"), SLOW=1),
    variant("gemv", BF16, least=80, KSPLIT=4, OUT_T="float"),
    variant("gemv", BF16, INPUT="PLAIN", SLOW=1),
    variant("gemv", form_of_scheme("q6_k"), least=80, REST_T="float", ACT="GELU_TANH"),
    variant("gemv_gated", BF16, least=80, WHOLE=1, SINGLE=1, FILLED=1, KEEP=1),
    variant("gemv_gated", F16, ACT="GELU_TANH"),
    variant("gemv_gated", form_of_scheme("q4_1"), 4, 80),
    *(
        variant(family, form, rows, 80, INPUT="LAYER_NORM", KEEP=keep)
        for family in ("gemv", "gemv_gated")
        for form, rows, keep in ((BF16, 1, 2), (form_of_scheme("q4_1"), 8, 8))
    ),
    variant("gemv", form_of_scheme("w8a8"), least=80, INPUT="LAYER_NORM", ACT="RELU2"),
    variant("gemv", BF16, INPUT="LAYER_NORM", SLOW=1, ACT="QUICK_GELU"),
    variant("gemv", BF16, least=80, INPUT="PLAIN", SCALED=1),
]
