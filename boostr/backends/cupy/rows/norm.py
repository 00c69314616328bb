"""Launches of the norm kernels; see `shaders/cuda/rows/norm.cu`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.cupy.rows.rows import plan, power_of_two, rows, run_length
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.operands import Norm
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

_IN_FLIGHT = 7000  # elements of a gradient's rows, for each multiprocessor


def _launch(
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
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    source, inner, stride = rows(backend, x.data)
    other = None if residual is None else backend.dense(residual.data)
    w = backend.dense(weight.data)
    b = None if bias is None else backend.dense(bias.data)
    y = backend.empty(x.shape, x.dtype)
    before = residual is not None and factor is None
    h = backend.empty(x.shape, x.dtype) if before else None
    E = x.shape[-1]
    if x.size:
        count = x.size // E
        arrays = [a for a in (source, other, w, b) if a is not None]
        run = run_length((E, stride), *arrays)
        busy = count > 4 * backend.caps.sms
        shape = plan(E, run, busy)
        backend.launch(
            "norm", "norm_forward", (-(-count // shape["ROWS"]),),
            (shape["LANES"] * shape["ROWS"],),
            [source, other, w, b, y, h, count, E, inner, np.int64(stride), float(eps),
             float(offset), float(factor or 0.0)],
            dependent=True, X=backend.c_type(x.dtype), W=backend.c_type(weight.dtype),
            ADD=int(h is not None), AFTER=int(factor is not None), LAYER=int(layer),
            BIAS=int(b is not None), EARLY=int(not busy), **shape,
        )  # fmt: skip
    return Tensor.wrap(y, backend), None if h is None else Tensor.wrap(h, backend)


@cache
def backward_plan(E: int, run: int) -> tuple[dict[str, int], int]:
    """(macros, blocks for each multiprocessor) of the gradient; the widths are as measured.

    A thread has few elements, as it also keeps their weights and sums. More than some 7000
    elements on their way to a multiprocessor slow the memory down.
    """
    if run == 1 or E > 8192:
        shape = plan(E, run, True) if run == 1 else plan(E, run, True, most=0)
    else:
        lanes = max(4, power_of_two(-(-E // (32 if E > 4096 and run == 8 else 16))))
        lanes = 32 if lanes == 64 and E <= 768 else lanes
        items = -(-E // (run * lanes))
        exact = int(lanes * items * run == E)
        shape = {"VEC": run, "ITEMS": items, "LANES": lanes,
                 "ROWS": 128 // lanes if lanes <= 32 else 1, "EXACT": exact}  # fmt: skip
    if not shape["ITEMS"]:
        return shape, max(1, 1024 // (shape["LANES"] * shape["ROWS"]))
    return shape, max(1, round(_IN_FLIGHT / (E * shape["ROWS"])))


def _backward(
    g: Tensor, passed: Tensor | None, x: Tensor, weight: Tensor, layer: bool, wants: bool,
    eps: float, offset: float = 0.0,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """(dh, dweight, dbias); the last only for a layer norm, neither if not wanted."""
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    arrays = [backend.dense(t.data) for t in (g, x, weight)]
    added = None if passed is None else backend.dense(passed.data)
    dh = backend.empty(x.shape, x.dtype)
    E = x.shape[-1]
    count = x.size // max(E, 1)
    run = run_length((E,), *arrays, *(() if added is None else (added,)))
    shape, share = backward_plan(E, run)
    blocks = min(-(-count // shape["ROWS"]), share * backend.caps.sms)
    groups = blocks if shape["ITEMS"] else blocks * shape["ROWS"]
    macros = {
        "X": backend.c_type(x.dtype), "W": backend.c_type(weight.dtype),
        "ADD": int(added is not None), "LAYER": int(layer),
    }  # fmt: skip
    partial = backend.empty((1 + layer, groups, E), "float32") if wants else None
    if x.size:
        backend.launch(
            "norm_backward", "norm_backward", (blocks,), (shape["LANES"] * shape["ROWS"],),
            [arrays[0], added, arrays[1], arrays[2], dh, partial, count, E, float(eps),
             float(offset)],
            dependent=True, **macros, **shape,
        )  # fmt: skip
    if partial is None:
        return Tensor.wrap(dh, backend), None, None
    found = [backend.empty((E,), weight.dtype) for _ in range(1 + layer)]
    backend.launch(
        "norm_weights", "norm_weights", (-(-E // 32), 1 + layer), (1024,),
        [partial, found[0], found[-1], groups, E], dependent=True, W=macros["W"],
    )  # fmt: skip
    dw, db = Tensor.wrap(found[0], backend), Tensor.wrap(found[-1], backend)
    return Tensor.wrap(dh, backend), dw, db if layer else None


def normed(x: Tensor, norm: Norm) -> Tensor:
    """x under a norm operand, for kernels that follow it."""
    layer = norm.kind == "layer"
    return _launch(x, None, norm.weight, norm.bias, layer, norm.eps, norm.offset)[0]


def _add_norm(x: Tensor, norm: Norm, residual: Tensor, factor: float) -> Tensor:
    layer = norm.kind == "layer"
    return _launch(x, residual, norm.weight, norm.bias, layer, norm.eps, norm.offset, factor)[0]


def _rms_norm(x, weight, eps: float, weight_offset: float):
    return _launch(x, None, weight, None, False, eps, weight_offset)[0]


def _add_rms_norm(x, residual, weight, eps: float, weight_offset: float):
    return _launch(x, residual, weight, None, False, eps, weight_offset)


def _layer_norm(x, weight, bias, eps: float):
    return _launch(x, None, weight, bias, True, eps)[0]


def _add_layer_norm(x, residual, weight, bias, eps: float):
    return _launch(x, residual, weight, bias, True, eps)


def _rms_norm_backward(g, passed, x, weight, eps: float, weight_offset: float, wants: bool):
    return _backward(g, passed, x, weight, False, wants, eps, weight_offset)[:2]


def _layer_norm_backward(g, passed, x, weight, eps: float, wants: bool):
    return _backward(g, passed, x, weight, True, wants, eps)


KERNELS = {
    "add_norm": Kernel(_add_norm, refusals.add_norm),
    "rms_norm": Kernel(_rms_norm, refusals.floats),
    "add_rms_norm": Kernel(_add_rms_norm, refusals.floats),
    "layer_norm": Kernel(_layer_norm, refusals.layer_norm),
    "add_layer_norm": Kernel(_add_layer_norm, refusals.layer_norm),
    "rms_norm_backward": Kernel(_rms_norm_backward, refusals.norm_backward),
    "layer_norm_backward": Kernel(_layer_norm_backward, refusals.norm_backward),
}


def _variants(x: str, w: str, run: int, E: int, add: int, layer: int) -> list[Variant]:
    """The forward and the gradient."""
    macros = {"X": x, "W": w, "ADD": add, "LAYER": layer}
    return [
        Variant(
            "norm", {**macros, "AFTER": 1 - add, "BIAS": layer, "EARLY": 0, **plan(E, run, True)}
        ),
        Variant("norm_backward", {**macros, **backward_plan(E, run)[0]}),
    ]


VARIANTS = [
    *(v for E in (64, 576, 8192) for v in _variants("bf16", "bf16", 8, E, 0, 0)),
    *(v for E in (2048, 8192) for v in _variants("bf16", "float", 8, E, 1, 1)),
    *(v for E in (576, 8192) for v in _variants("float", "float", 4, E, 1, 1)),
    *(v for E in (576, 2048, 4096, 8192) for v in _variants("bf16", "bf16", 8, E, 1, 0)),
    *_variants("f16", "float", 1, 33, 1, 1),
    *_variants("bf16", "bf16", 8, 100000, 1, 1),
    *(
        Variant("norm", {"X": "bf16", "W": "float", "ADD": add, "AFTER": 1 - add, "LAYER": 0,
                         "BIAS": 0, "EARLY": 1, **plan(2048, 8, False)})
        for add in (0, 1)
    ),
    Variant("norm_weights", {"W": "bf16"}),
]  # fmt: skip
