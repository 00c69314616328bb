"""Launches of the norm kernels; see `shaders/wgsl/norm.wgsl`."""

from __future__ import annotations

import dataclasses
from typing import Any

from boostr.backends.base import Kernel
from boostr.backends.wgpu.device import Caps
from boostr.backends.wgpu.kernels import Variant
from boostr.backends.wgpu.rows import no_type, parts, plan, rows, run_length, type_of
from boostr.tensor import Tensor


def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    layer: bool,
    eps: float,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """(y, h): h only with a residual."""
    backend: Any = x.backend
    other = None if residual is None else backend.dense(residual.data)
    gains = [backend.dense(t.data) for t in (weight, bias) if t is not None]
    y = backend.empty(x.shape, x.dtype)
    h = None if residual is None else backend.empty(x.shape, x.dtype)
    if x.size:
        for piece in parts(backend, x.data, other, y, h):
            _launch(backend, piece, gains, layer, eps, offset)
    return Tensor.wrap(y, backend), None if h is None else Tensor.wrap(h, backend)


def _launch(
    backend: Any, arrays: list[Any], gains: list[Any], layer: bool, eps: float, offset: float
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
    out = [backend.offset(a) // run for a in (y, h or y)]
    backend.launch(
        "norm", "norm_forward", -(-count // share), reads, writes,
        (count, E // run, inner, stride // run, *at, *out, 1 / E, float(eps), float(offset)),
        X=type_of(x), W=type_of(gains[0]), ADD=int(h is not None), LAYER=int(layer),
        BIAS=len(gains) - 1, **shape,
    )  # fmt: skip


def _layer_supports(*args: Any) -> str | None:
    weight, bias = args[-3], args[-2]
    if bias is not None and bias.dtype != weight.dtype:
        return f"bias is {bias.dtype}, weight {weight.dtype}"
    return no_type(*args)


KERNELS = {
    "rms_norm": Kernel(
        lambda x, weight, eps, offset: _forward(x, None, weight, None, False, eps, offset)[0],
        no_type,
    ),
    "add_rms_norm": Kernel(
        lambda x, residual, weight, eps, offset: _forward(
            x, residual, weight, None, False, eps, offset
        ),
        no_type,
    ),
    "layer_norm": Kernel(
        lambda x, weight, bias, eps: _forward(x, None, weight, bias, True, eps)[0],
        _layer_supports,
    ),
    "add_layer_norm": Kernel(
        lambda x, residual, weight, bias, eps: _forward(x, residual, weight, bias, True, eps),
        _layer_supports,
    ),
}

_LARGE = Caps("", "", "", workgroup_threads=1024)
_SMALL = dataclasses.replace(_LARGE, workgroup_threads=256)
VARIANTS = [
    Variant("norm", {"X": x, "W": w, "ADD": add, "LAYER": layer, "BIAS": layer,
                     **plan(E, run, count, caps)},
            ("subgroup_max",) if caps is _LARGE else ())
    for x, w, run, E, count, add, layer, caps in (
        ("bf16", "bf16", 8, 64, 9999, 0, 0, _SMALL), ("bf16", "f32", 8, 576, 9999, 1, 1, _SMALL),
        ("bf16", "f32", 8, 8192, 9999, 0, 0, _SMALL), ("f16", "f16", 4, 100, 9, 1, 0, _SMALL),
        ("f32", "f32", 4, 576, 9, 1, 1, _SMALL), ("f32", "f32", 4, 8192, 9, 0, 1, _LARGE),
        ("f32", "bf16", 4, 40000, 9, 1, 1, _SMALL), ("f16", "f32", 1, 33, 9, 1, 1, _SMALL),
        ("f32", "f32", 1, 33, 9, 1, 0, _SMALL),
    )
]  # fmt: skip
