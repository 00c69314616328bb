"""Products of 1..8 rows with a weight in its stored form, and what a decode step does around them.

`shaders/wgsl/products/gemv*.wgsl` say what is computed. All functions take and return device
arrays; `weight` is a Tensor [N, K] or a QuantizedTensor, and is bound in parts where it is larger
than a binding may be:

    gemv(backend, x [M, K], weight, bias=, residual=, out_dtype=, norm=) -> [M, N]
    combine_gemv(backend, partials, weight, dtype=, ...) -> [M, N]
    norm_gated_gemv(backend, x, norm, gate, up, act=, ...) -> [M, F]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends.wgpu.products.gemv_input import (
    Input,
    Norm,
    NormForm,
    base,
    name_or_none,
    norm_arrays,
    norm_bases,
    prepared,
    present,
    specialised,
    x_base,
)
from boostr.backends.wgpu.products.gemv_plan import Stored, Tile, stored, takes_digits
from boostr.backends.wgpu.products.planes import FORMS, PACKED, Weight, stored_form
from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import name_of
from boostr.quant.forms import Form, scheme_form
from boostr.quant.scheme import SCHEMES, QuantizedTensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

MOST_ROWS = 8  # of x that one launch takes
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2")


# -- the products --------------------------------------------------------------------------------
def gemv(
    backend: WgpuBackend, x: GpuArray, weight: Weight, bias: GpuArray | None = None,
    residual: GpuArray | None = None, out_dtype: Any = None, *, norm: Norm | None = None,
    act: str = "", factor: float = 1.0, tile: Tile | None = None,
) -> GpuArray:  # fmt: skip
    """factor (x Wᵀ + bias) + residual in `out_dtype` (x's by default); under `norm` of norm(x).

    act: one of ACTIVATIONS, for act(x Wᵀ + bias), times the residual if there is one.
    """
    w = stored(backend, weight, off=x.shape[1] % 8 != 0)
    given = prepared(backend, x, w, norm)
    out = np.dtype(out_dtype or x.dtype)
    bound = [given.x, *present(given.scales)]
    values = {"ACT": act}
    return product(backend, given, [w], bound, bias, residual, out, tile, values, factor)


def combine_gemv(
    backend: WgpuBackend,
    partials: GpuArray, weight: Weight, *, dtype: Any, bias: GpuArray | None = None,
    residual: GpuArray | None = None, factor: float = 1.0, tile: Tile | None = None,
) -> GpuArray:  # fmt: skip
    """The splits of attention combined to x [M, H D]; then as `gemv`, in `dtype`.

    partials: float32 [M, H, S, D + 4] of `attention_decode.partials`; D a multiple of 8.
    """
    M, _, S, pitch = partials.shape
    w = stored(backend, weight)
    dtype = np.dtype(dtype)
    narrow = dtype.itemsize == 2
    given = Input(partials, M, None, None, False, narrow, {"X": "f32", "XS": w.K})
    values = {"INPUT": "combine", "PARTS_S": S, "PARTS_DV": pitch - 4}
    return product(backend, given, [w], [partials], bias, residual, dtype, tile, values, factor)


def combine_refusal(weight: Weight, head_dim: int) -> str | None:
    """None if `combine_gemv` takes this weight behind heads of that size, else why not."""
    if isinstance(weight, QuantizedTensor) and weight.scheme.activations_int8:
        return "rounding needs all of x before the product"
    if head_dim % 8 or weight.shape[1] % 16:
        return f"head_dim {head_dim} or K {weight.shape[1]} is not a multiple of 8 and 16"
    return None


def product(
    backend: WgpuBackend, given: Input, weights: list[Stored], bound: list[GpuArray],
    bias: GpuArray | None, residual: GpuArray | None, out_dtype: np.dtype, tile: Tile | None,
    values: dict[str, Any], factor: float = 1.0,
) -> GpuArray:  # fmt: skip
    """x times weights side by side: [M, sum of their N]."""
    M, N = given.M, sum(w.N for w in weights)
    # words of 16-bit results would straddle rows of an odd length, or weights
    odd = any(w.N % 2 for w in weights) and (M > 1 or len(weights) > 1)
    made = np.dtype(np.float32) if odd else out_dtype
    out = backend.empty((M, N), made)
    bias = None if bias is None else backend.dense(bias)
    residual = None if residual is None else backend.dense(residual)
    values = {
        "ACT": "", **values, "OUT": name_of(made), "BIAS": name_or_none(bias),
        "RESIDUAL": name_or_none(residual), "SCALED": factor != 1.0,
    }  # fmt: skip
    scale = [] if factor == 1.0 else [float(factor)]
    eps = given.norm.eps if given.norm else 0.0
    before = 0
    for w in weights:
        cut, known = specialised(backend, w, given, N, 2, tile)
        known |= values
        for first, part in w.parts(backend):
            params = [
                M, part.N, before + first, N, x_base(backend, given),
                *part.bases(backend), base(backend, bias), base(backend, residual),
                *norm_bases(backend, given), base(backend, given.scales), float(eps), *scale,
            ]  # fmt: skip
            reads = [*bound, *part.planes, *norm_arrays(given), *present(bias, residual)]
            grid = -(-part.N // cut.group)
            backend.launch("gemv", "main", grid, reads, [out], params, **known)
        before += w.N
    return out if made == out_dtype else backend.cast(out, out_dtype)


def norm_gated_gemv(
    backend: WgpuBackend,
    x: GpuArray, norm: Norm | None, gate: Weight, up: Weight, *, act: str = "silu",
    gate_bias: GpuArray | None = None, up_bias: GpuArray | None = None, tile: Tile | None = None,
) -> GpuArray:  # fmt: skip
    """act(h gateᵀ) · (h upᵀ) with h = norm(x), or x without `norm`: [M, F] in x's dtype.

    act: one of ACTIVATIONS. gate and up [F, K] that are not stored alike take two kernels.
    """
    if stored_form(gate) != stored_form(up):
        upper = gemv(backend, x, up, up_bias, None, np.float32, norm=norm, tile=tile)
        return gemv(backend, x, gate, gate_bias, upper, x.dtype, norm=norm, act=act, tile=tile)
    off = x.shape[1] % 8 != 0
    g, u = stored(backend, gate, off), stored(backend, up, off)
    g, u = g._replace(slow=g.slow or u.slow), u._replace(slow=g.slow or u.slow)
    given, F = prepared(backend, x, g, norm), g.N
    M = given.M
    made = np.dtype(np.float32) if M > 1 and F % 2 else x.dtype
    out = backend.empty((M, F), made)
    cut, known = specialised(backend, g, given, 2 * F, 4, tile)
    bias, up_bias = (None if b is None else backend.dense(b) for b in (gate_bias, up_bias))
    values = {
        **known, "OUT": name_of(made), "BIAS": name_or_none(bias),
        "UP_BIAS": name_or_none(up_bias), "ACT": act,
    }  # fmt: skip
    for (first, g_part), (_, u_part) in zip(g.parts(backend), u.parts(backend), strict=True):
        params = [
            M, g_part.N, first, F, x_base(backend, given), *g_part.bases(backend),
            *u_part.bases(backend), base(backend, bias), base(backend, up_bias),
            *norm_bases(backend, given), base(backend, given.scales),
            float(given.norm.eps if given.norm else 0),
        ]  # fmt: skip
        reads = [
            *present(given.x, given.scales), *g_part.planes, *u_part.planes,
            *norm_arrays(given), *present(bias, up_bias),
        ]  # fmt: skip
        grid = -(-2 * g_part.N // cut.group)
        backend.launch("gemv_gated", "main", grid, reads, [out], params, **values)
    return out if made == x.dtype else backend.cast(out, x.dtype)


# -- what the compile gate builds ----------------------------------------------------------------
CODES = [form for form in FORMS if takes_digits(form)]
SMALL, LARGE = Tile(32, 8, 4, 0), Tile(256, 64, 4, 2)  # for subgroups of any size
KNOWN = Tile(96, 96, 4, 2, lanes=32)
# x in digits: two teams that take three batches; one team that takes one
TEAMS, DIGITS = Tile(64, 32, 12, 1, batch=4), Tile(96, 96, 8, 1, lanes=32, batch=8)
RMS, LAYER = NormForm(), NormForm(layer=True, offset=1.0, bias=True)

BF16, INT8 = Form("bf16"), scheme_form(SCHEMES["int8"])
ROUNDED = scheme_form(SCHEMES["w8a8"])


def variant(family: str, form: Form, M: int = 1, tile: Tile = SMALL, **values: Any) -> Variant:
    """A source for a weight of that form and M rows of x."""
    K = form.super or 224
    x = "f32" if form.codes == "f32" or form.rounds_input else "bf16"
    common = {
        "FORM": form, "SLOW": False, "K": K, "M": M, "NORM": "" if form.rounds_input else RMS,
        "INPUT": "plain", "X": x, "XS": K, "DIGITS": tile.batch > 0,
        **tile.values(), "OUT": x, "BIAS": "",
    }  # fmt: skip
    own = {
        "gemv": {"RESIDUAL": x, "ACT": "", "SCALED": False},
        "gemv_gated": {"UP_BIAS": "", "ACT": "silu"},
        "gemv_qkv": {
            "H": 3, "KH": 1, "D": 16, "ROT": 16, "INTERLEAVED": False, "CACHE": x, "SLOTS": True,
            "FACTORS": False,
        },
    }[family]  # fmt: skip
    needs = () if tile is SMALL else ("subgroup_max", *(("dot4",) if tile.batch else ()))
    return Variant(family, {**common, **own, **values}, needs)


ODD: dict[str, Any] = {"SLOW": True, "K": 33, "XS": 48}
_COMBINED: dict[str, Any] = {
    "INPUT": "combine", "PARTS_S": 4, "PARTS_DV": 16, "NORM": "", "X": "f32",
}  # fmt: skip
VARIANTS = [
    *(variant("gemv", form, 1 << i % 4) for i, form in enumerate(FORMS)),
    *(variant("gemv", form, 1, LARGE) for form in FORMS),
    *(variant("gemv", form, 2, KNOWN, X="f32", OUT="f32") for form in FORMS),
    *(variant("gemv", form, 1, TEAMS) for form in CODES),
    *(variant("gemv_gated", form, 1, DIGITS) for form in CODES),
    variant("gemv", INT8, 2, DIGITS, NORM=LAYER),
    variant("gemv", Form("c4", 0, 32, "i8", 256, "u8"), 4, TEAMS),
    variant("gemv", INT8, 1, DIGITS, NORM=""),
    *(variant("gemv", form, 2, **ODD) for form in FORMS if form.codes not in PACKED),
    variant("gemv", BF16, 1, LARGE, BIAS="f32", RESIDUAL="f32", ACT="gelu"),
    variant("gemv", BF16, 8, LARGE, OUT="f32", BIAS="f32", RESIDUAL=""),
    variant("gemv", INT8, 1, LARGE, X="f16", OUT="f16", BIAS="f16"),
    variant("gemv", BF16, 1, KNOWN, NORM=LAYER, RESIDUAL="", ACT="relu2"),
    variant("gemv", Form("c4", 8, 32, "f16"), 8, LARGE, NORM=LAYER._replace(offset=0.0)),
    variant("gemv", BF16, 1, LARGE, **_COMBINED),
    variant("gemv", INT8, 2, **_COMBINED, SCALED=True, BIAS="f32"),
    variant("gemv", INT8, 1, DIGITS, **_COMBINED),
    variant("gemv_gated", BF16, 1, LARGE, BIAS="f32", UP_BIAS="f32"),
    variant("gemv_gated", BF16, 2, KNOWN),
    variant("gemv_gated", INT8, 2, ACT="gelu", NORM=NormForm(offset=1.0)),
    variant("gemv_gated", BF16, 2, NORM=NormForm(layer=True), ACT="quick_gelu"),
    variant("gemv_gated", ROUNDED, 2, ACT="gelu_tanh"),
    variant("gemv_gated", Form("f32"), 1, **ODD, NORM=LAYER),
    *(variant("gemv_gated", form) for form in FORMS if form.codes in PACKED),
    *(
        Variant("gemv_quantize", {"X": x, "K": 33, "XS": 48, "THREADS": 256, "NORM": norm})
        for x, norm in (("f32", ""), ("bf16", RMS), ("f16", LAYER))
    ),
]
