"""Gradients of linear: dx = g · weight, dweight = gᵀ · x, by the tiled product of
`kernels/products/gemm_rows.py`, with float32 sums."""

from __future__ import annotations

import math

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.products.linear import DEPTH, pack, share_out
from boostr.backends.numpy.products.planes import Weight
from boostr.backends.numpy.rows.rows import not_float32
from boostr.backends.numpy.runtime import jit
from boostr.tensor import Tensor

_ROWS = 512  # of a, whose packed tiles stay in the cache
_CODES = {dtypes.float32: "f32", dtypes.bfloat16: "bf16", dtypes.float16: "f16"}


def _product(
    backend: NumpyBackend, a: np.ndarray, turned: bool, b: np.ndarray, into: np.ndarray | None
) -> np.ndarray:
    """a b, or aᵀ b if `turned`: [M, N] of float32 rows a and float rows b [K, N]; or added to
    `into`."""
    (K, N), M = b.shape, a.shape[1 if turned else 0]
    out = backend.empty((M, N)) if into is None else into
    if out.size == 0:
        return out
    p = [0] * layout.LINEAR_PARAMS
    p[layout.X], p[layout.LDX] = address(a), a.shape[1]
    p[layout.Y], p[layout.LDY] = address(out), N
    p[layout.CODES], p[layout.CODES + 1] = address(b), b.strides[0]
    p[layout.M], p[layout.N], p[layout.K] = M, N, K
    if into is not None:
        p[layout.RESIDUAL], p[layout.LDR] = address(into), N
    rows, columns = jit.target().tile_rows(M, digits=False), jit.target().tile[1]
    tiles, panels = -(-M // rows), -(-N // (columns * jit.target().lanes))
    maker = "gemm_rows.pack_columns" if turned else "gemm.pack"
    nbytes = tiles * -(-K // 32) * 128 * rows
    packed = pack(backend, p, maker, nbytes, tiles, a, grain=2, rows=rows)
    p[layout.PACKED] = address(packed)
    share_out(p, tiles, panels)
    p[layout.TILES_PER_ITEM] = per_item = min(p[layout.TILES_PER_ITEM], _ROWS // rows)
    for first in range(0, max(K, 1), DEPTH):
        p[layout.FIRST_INPUT] = first
        backend.launch(
            "gemm_rows.product", p, items=-(-tiles // per_item) * panels, grain=1,
            reads=[packed, b, out], writes=[out], codes=_CODES[b.dtype], depth=DEPTH, rows=rows,
        )  # fmt: skip
    return out


def _matrix(backend: NumpyBackend, x: Tensor) -> np.ndarray:
    """x [..., K] as dense rows [T, K]."""
    return backend.dense(x.data).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _wrong_result(dtype: np.dtype, into: Tensor | None) -> str | None:
    if dtype != dtypes.float32:
        return f"the result is {dtype}"
    if into is None:
        return None
    contiguous = into.backend.is_contiguous(into.data)
    return not_float32(into) or (None if contiguous else "what it adds to is not contiguous")


def _input_supports(g: Tensor, weight: Weight, dtype: np.dtype, into: Tensor | None) -> str | None:
    if not isinstance(weight, Tensor):
        return f"the weight is packed ({weight.scheme.name})"
    if weight.dtype not in _CODES:
        return f"the weight is {weight.dtype}, not float32, bfloat16 or float16"
    return not_float32(g) or _wrong_result(dtype, into)


def _weight_supports(g: Tensor, x: Tensor, dtype: np.dtype, into: Tensor | None) -> str | None:
    return not_float32(g, x) or _wrong_result(dtype, into)


def _result(a: Tensor, turned: bool, b: Tensor, into: Tensor | None) -> Tensor:
    """a b or aᵀ b of a [..., M or K] as rows and b [..., N] as rows; or added to `into`."""
    backend: NumpyBackend = a.backend  # type: ignore[assignment]
    target = None if into is None else _matrix(backend, into)
    made = _product(backend, _matrix(backend, a), turned, _matrix(backend, b), target)
    if into is None:
        return Tensor.wrap(made, backend)
    into.written()
    return into


def _input_gradient(g: Tensor, weight: Tensor, dtype: np.dtype, into: Tensor | None) -> Tensor:
    dx = _result(g, False, weight, into)
    return dx if into is not None else dx.reshape(*g.shape[:-1], weight.shape[1])


def _weight_gradient(g: Tensor, x: Tensor, dtype: np.dtype, into: Tensor | None) -> Tensor:
    return _result(g, True, x, into)


KERNELS = {
    "linear_input_gradient": Kernel(_input_gradient, _input_supports),
    "linear_weight_gradient": Kernel(_weight_gradient, _weight_supports),
}
