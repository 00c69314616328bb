"""Launches of the norm kernels; see `shaders/wgsl/rows/norm.wgsl`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.wgpu.rows.rows import (
    parts,
    plan,
    rows,
    run_length,
    type_of,
)
from boostr.backends.wgpu.runtime.device import Caps
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.operands import Norm
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

_LEAST_GROUPS = 132  # workgroups of a gradient: one for each multiprocessor of a large GPU
_THREADS = 132 * 1024  # of a gradient


def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    layer: bool,
    eps: float,
    offset: float = 0.0,
    factor: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(y, h): h only with a residual before the norm; behind it and times `factor` if that is."""
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    other = None if residual is None else backend.dense(residual.data)
    gains = [backend.dense(t.data) for t in (weight, bias) if t is not None]
    y = backend.empty(x.shape, x.dtype)
    before = residual is not None and factor is None
    h = backend.empty(x.shape, x.dtype) if before else None
    if x.size:
        for piece in parts(backend, x.data, other, y, h):
            _launch(backend, piece, gains, layer, eps, offset, factor)
    return Tensor.wrap(y, backend), None if h is None else Tensor.wrap(h, backend)


def _launch(
    backend: WgpuBackend,
    arrays: list[Any],
    gains: list[Any],
    layer: bool,
    eps: float,
    offset: float,
    factor: float | None,
) -> None:
    x, other, y, h = arrays
    source, inner, stride = rows(backend, x)
    E = x.shape[-1]
    count = x.size // E
    reads = [a for a in (source, other, *gains) if a is not None]
    writes = [y] if h is None else [y, h]
    run = run_length(backend, (E, stride), *reads, *writes)
    shape = plan(E, run, count, backend.caps)
    share = shape["ROWS"] if run > 1 else 4 // x.dtype.itemsize
    at = [0 if a is None else backend.offset(a) // run for a in (source, other, *gains)]
    at += [0] * (4 - len(at))
    out = [backend.offset(a) // run for a in (y, y if h is None else h)]
    backend.launch(
        "norm", "norm_forward", -(-count // share), reads, writes,
        (count, E // run, inner, stride // run, *at, *out, 1 / E, float(eps), float(offset),
         *([] if factor is None else [float(factor)])),
        X=type_of(x), W=type_of(gains[0]), ADD=int(h is not None), AFTER=int(factor is not None),
        LAYER=int(layer), BIAS=len(gains) - 1, **shape,
    )  # fmt: skip


def backward_plan(E: int, run: int, caps: Any) -> dict[str, int]:
    """RUN, ITEMS, LANES, ROWS and EXACT of the gradient, whose threads have few elements, as they
    also keep their weights and sums."""
    many = 9999 if E > 4096 else 0  # 1024 threads have but 64 registers each
    shape = plan(E, run, many, caps, 32 // run)
    return shape if shape["ITEMS"] else plan(E, 1, 0, caps)


def _groups(count: int, shape: dict[str, int], share: int) -> int:
    """Workgroups that go over `count` rows, `share` of them at once: as many threads as measured
    best, unless they had so few rows that their sums would weigh more than these."""
    most = max(_LEAST_GROUPS, _THREADS // (shape["LANES"] * shape["ROWS"]))
    steps = -(-count // share)
    return min(steps, most, max(_LEAST_GROUPS, -(-steps // 4)))


def _backward(
    g: Tensor, passed: Tensor | None, x: Tensor, weight: Tensor, layer: bool, wants: bool,
    eps: float, offset: float = 0.0,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """(dh, dweight, dbias); the last only for a layer norm, neither if not wanted."""
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    reads = [backend.dense(t.data) for t in (g, x, weight, passed) if t is not None]
    dh = backend.empty(x.shape, x.dtype)
    E = x.shape[-1]
    count = x.size // max(E, 1)
    run = run_length(backend, (E,), *reads) if x.size else 1
    shape = backward_plan(E, run, backend.caps)
    run = shape["RUN"]
    share = shape["ROWS"] if run > 1 else 4 // x.dtype.itemsize
    groups = _groups(count, shape, share)
    teams = groups * shape["ROWS"]
    partial = backend.empty((1 + layer, teams, E), "float32") if wants else None
    places = [backend.offset(a) // run for a in reads] + [0] * (passed is None)
    backend.launch(
        "norm_backward", "norm_backward", (groups if E else 0, 1, 1), reads,
        [dh] if partial is None else [dh, partial],
        (count, E // run, groups, *places, 1 / max(E, 1), float(eps), float(offset)),
        X=type_of(x), W=type_of(weight), ADD=int(passed is not None), LAYER=int(layer),
        WANTS=int(wants), **shape,
    )  # fmt: skip
    if partial is None:
        return Tensor.wrap(dh, backend), None, None
    found = [backend.empty((E,), weight.dtype) for _ in range(1 + layer)]
    backend.launch(
        "norm_weights", "norm_weights", (-(-E // 16), len(found), 1), [partial], found,
        (teams, E), W=type_of(weight), SHARES=_shares(backend.caps), LAYER=int(layer),
    )  # fmt: skip
    dw, db = Tensor.wrap(found[0], backend), Tensor.wrap(found[-1], backend)
    return Tensor.wrap(dh, backend), dw, db if layer else None


def _shares(caps: Any) -> int:
    """Threads for each column of a weight's gradient."""
    return 4 if caps.kind == "software" else min(1024, caps.workgroup_threads) // 16


def _backward_supports(g: Tensor, passed: Tensor | None, x: Tensor, *args: Any) -> str | None:
    if x.nbytes > x.backend.caps.binding_bytes:  # type: ignore[attr-defined]
        return f"{x.nbytes} bytes are more than a binding holds"
    return refusals.norm_backward(g, passed, x, *args)


def normed(x: Tensor, norm: Norm) -> Tensor:
    """x under a norm operand, for kernels that follow it."""
    layer = norm.kind == "layer"
    return _forward(x, None, norm.weight, norm.bias, layer, norm.eps, norm.offset)[0]


def _add_norm(x: Tensor, norm: Norm, residual: Tensor, factor: float) -> Tensor:
    layer = norm.kind == "layer"
    return _forward(x, residual, norm.weight, norm.bias, layer, norm.eps, norm.offset, factor)[0]


KERNELS = {
    "add_norm": Kernel(_add_norm, refusals.add_norm),
    "rms_norm": Kernel(
        lambda x, weight, eps, offset: _forward(x, None, weight, None, False, eps, offset)[0],
        refusals.floats,
    ),
    "add_rms_norm": Kernel(
        lambda x, residual, weight, eps, offset: _forward(
            x, residual, weight, None, False, eps, offset
        ),
        refusals.floats,
    ),
    "layer_norm": Kernel(
        lambda x, weight, bias, eps: _forward(x, None, weight, bias, True, eps)[0],
        refusals.layer_norm,
    ),
    "add_layer_norm": Kernel(
        lambda x, residual, weight, bias, eps: _forward(x, residual, weight, bias, True, eps),
        refusals.layer_norm,
    ),
    "rms_norm_backward": Kernel(
        lambda g, passed, x, weight, eps, offset, wants: _backward(
            g, passed, x, weight, False, wants, eps, offset
        )[:2],
        _backward_supports,
    ),
    "layer_norm_backward": Kernel(
        lambda g, passed, x, weight, eps, wants: _backward(g, passed, x, weight, True, wants, eps),
        _backward_supports,
    ),
}

_SMALL = Caps("", "", "")
_SIZES = (
    ("bf16", "bf16", 8, 64, 9999, 0, 0, _SMALL), ("bf16", "f32", 8, 576, 9999, 1, 1, _SMALL),
    ("bf16", "f32", 8, 8192, 9999, 0, 0, _SMALL), ("f16", "f16", 4, 100, 9, 1, 0, _SMALL),
    ("f32", "f32", 4, 576, 9, 1, 1, _SMALL), ("f32", "f32", 4, 4096, 9, 0, 1, _SMALL),
    ("f32", "bf16", 4, 40000, 9, 1, 1, _SMALL), ("f16", "f32", 1, 33, 9, 1, 1, _SMALL),
    ("f32", "f32", 1, 33, 9, 1, 0, _SMALL),
)  # fmt: skip
VARIANTS = [
    *(
        Variant("norm", {"X": x, "W": w, "ADD": add, "AFTER": 1 - add, "LAYER": layer,
                         "BIAS": layer, **plan(E, run, count, caps)})
        for x, w, run, E, count, add, layer, caps in _SIZES
    ),
    *(
        Variant("norm_backward", {"X": x, "W": w, "ADD": add, "LAYER": layer,
                                  "WANTS": int(run != 4), **backward_plan(E, run, caps)})
        for x, w, run, E, _, add, layer, caps in _SIZES
    ),
    *(
        Variant("norm_weights", {"W": w, "SHARES": 16, "LAYER": layer})
        for w, layer in (("f32", 0), ("bf16", 1))
    ),
]  # fmt: skip
