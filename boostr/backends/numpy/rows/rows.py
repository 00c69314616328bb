"""How kernels address rows: one stride between blocks of rows that lie densely together."""

from __future__ import annotations

import math

import numpy as np

from boostr import dtypes
from boostr.backends.numpy.backend import NumpyBackend
from boostr.tensor import Tensor


def rows(backend: NumpyBackend, x: np.ndarray) -> tuple[np.ndarray, int, int]:
    """(x or a dense copy, inner, stride): where the rows of x's last axis, of E elements, begin.

    Row r begins at element (r // inner) * stride + (r % inner) * E. So a slice of the columns of a
    fused product, such as q [T, H, D] out of [T, (H + 2K) D], is read where it lies.
    """
    if x.ndim < 2 or x.size == 0:
        return backend.dense(x), 1, x.shape[-1] if x.ndim else 1
    inner = math.prod(x.shape[1:-1])
    if x[0].flags.c_contiguous and x.strides[0] % x.itemsize == 0:
        return x, inner, x.strides[0] // x.itemsize
    return backend.dense(x), inner, inner * x.shape[-1]


def not_float32(*args, **options) -> str | None:
    """The `supports` of kernels whose tensors must all be float32."""
    for x in args:
        if isinstance(x, Tensor) and x.dtype != dtypes.float32:
            return f"dtype {x.dtype} is not float32"
    return None
