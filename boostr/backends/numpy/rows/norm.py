"""Launches of the norm kernels; see `norm.py` and `norm_backward.py` in `kernels/rows/`."""

from __future__ import annotations

import numpy as np

from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.rows.rows import not_float32, rows
from boostr.backends.numpy.runtime import jit
from boostr.operands import Norm
from boostr.tensor import Tensor

# Rows whose part of the weights' gradients is added up in one go: at least, and at most so many.
_GROUP, _GROUPS = 16, 64


def _launch(
    kernel: str,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    offset: float = 0.0,
    after: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(y, h): h only with a residual that is added before; with `after` one is added after, to
    after · y."""
    backend: NumpyBackend = x.backend  # type: ignore[assignment]
    source, inner, stride = rows(backend, x.data)
    parts = [None if t is None else backend.dense(t.data) for t in (residual, weight, bias)]
    y = backend.empty(x.shape)
    add = residual is not None and after is None
    h = backend.empty(x.shape) if add else None
    arrays: list[np.ndarray | None] = [source, *parts, y, h]
    E = x.shape[-1]
    params = [0 if a is None else address(a) for a in arrays]
    floats = (eps, offset, 1.0 if after is None else after)
    params += [E, max(inner, 1), stride, *map(jit.float_bits, floats)]
    backend.launch(
        f"norm.{kernel}", params, items=x.size // max(E, 1), grain=8,
        reads=[a for a in arrays[:4] if a is not None],
        writes=[a for a in (y, h) if a is not None], add=add, after=after is not None,
    )  # fmt: skip
    return Tensor.wrap(y, backend), None if h is None else Tensor.wrap(h, backend)


def _rms_norm(x, weight, eps: float, weight_offset: float):
    return _launch("rms_norm", x, None, weight, None, eps, weight_offset)[0]


def _add_rms_norm(x, residual, weight, eps: float, weight_offset: float):
    return _launch("rms_norm", x, residual, weight, None, eps, weight_offset)


def _layer_norm(x, weight, bias, eps: float):
    return _launch("layer_norm", x, None, weight, bias, eps)[0]


def _add_layer_norm(x, residual, weight, bias, eps: float):
    return _launch("layer_norm", x, residual, weight, bias, eps)


def _add_norm(x: Tensor, norm: Norm, residual: Tensor, factor: float) -> Tensor:
    kernel = f"{norm.kind}_norm"
    return _launch(kernel, x, residual, norm.weight, norm.bias, norm.eps, norm.offset, factor)[0]


def _add_norm_supports(x: Tensor, norm: Norm, residual: Tensor, factor: float) -> str | None:
    if x.shape != residual.shape:
        return f"x is {list(x.shape)}, the residual {list(residual.shape)}"
    if norm.kind == "rms" and norm.bias is not None:
        return "an RMS norm with a bias"
    return not_float32(x, norm.weight, norm.bias, residual)


def _backward(
    g: Tensor, passed: Tensor | None, h: Tensor, weight: Tensor, layer: bool, wants: bool,
    eps: float, offset: float = 0.0,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """(dh, dweight, dbias); the last only for a layer norm, neither if not wanted."""
    backend: NumpyBackend = h.backend  # type: ignore[assignment]
    parts = [None if t is None else backend.dense(t.data) for t in (g, passed, h, weight)]
    dh = backend.empty(h.shape)
    E = h.shape[-1]
    count = h.size // max(E, 1)
    size = max(_GROUP, -(-count // _GROUPS))
    groups = -(-count // size)
    sums = backend.empty((groups, 1 + layer, E)) if wants else None
    arrays = [*parts, dh, sums]
    params = [0 if a is None else address(a) for a in arrays] + [count, size, E]
    backend.launch(
        "norm_backward.rows", [*params, jit.float_bits(eps), jit.float_bits(offset)], items=groups,
        grain=1, reads=[a for a in parts if a is not None],
        writes=[a for a in (dh, sums) if a is not None], layer=layer, passed=passed is not None,
        wants=wants,
    )  # fmt: skip
    if sums is None:
        return Tensor.wrap(dh, backend), None, None
    found, width = backend.empty((1 + layer, E)), (1 + layer) * E
    backend.launch(
        "norm_backward.weights", [address(sums), address(found), groups, width],
        items=-(-width // jit.target().lanes), grain=8, reads=[sums], writes=[found],
    )  # fmt: skip
    dw, db = Tensor.wrap(found[0], backend), Tensor.wrap(found[-1], backend)
    return Tensor.wrap(dh, backend), dw, db if layer else None


def _rms_norm_backward(g, passed, h, weight, eps: float, weight_offset: float, wants: bool):
    return _backward(g, passed, h, weight, False, wants, eps, weight_offset)[:2]


def _layer_norm_backward(g, passed, h, weight, eps: float, wants: bool):
    return _backward(g, passed, h, weight, True, wants, eps)


KERNELS = {
    "add_norm": Kernel(_add_norm, _add_norm_supports),
    "rms_norm": Kernel(_rms_norm, not_float32),
    "add_rms_norm": Kernel(_add_rms_norm, not_float32),
    "layer_norm": Kernel(_layer_norm, not_float32),
    "add_layer_norm": Kernel(_add_layer_norm, not_float32),
    "rms_norm_backward": Kernel(_rms_norm_backward, not_float32),
    "layer_norm_backward": Kernel(_layer_norm_backward, not_float32),
}
