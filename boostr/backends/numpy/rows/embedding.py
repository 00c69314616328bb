"""Launches of the embedding kernels; see `kernels/rows/embedding.py`."""

from __future__ import annotations

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.products.planes import Weight, place, stored_form, why_not
from boostr.backends.numpy.rows.rows import not_float32
from boostr.tensor import Tensor

_PARTS = 64  # of a table's gradient, each of which looks at all ids


def _supports(ids: Tensor, weight: Weight, dtype: np.dtype) -> str | None:
    if dtype != dtypes.float32:
        return f"dtype {dtype} of the result is not float32"
    if ids.dtype not in (dtypes.int32, dtypes.int64):
        return f"ids are {ids.dtype}, not int32 or int64"
    return why_not(weight)


def _embedding(ids: Tensor, weight: Weight, dtype: np.dtype) -> Tensor:
    backend: NumpyBackend = ids.backend  # type: ignore[assignment]
    words, planes = place(weight, backend)
    tokens = backend.dense(ids.data)
    V, E = weight.shape
    out = backend.empty((ids.size, E))
    p = words + [0] * (layout.TABLE_PARAMS - layout.PLANE_WORDS)
    p[layout.IDS], p[layout.TABLE_ROWS] = address(tokens), V
    p[layout.OUT], p[layout.WIDTH] = address(out), E
    backend.launch(
        "embedding.gather", p, items=ids.size, grain=4, reads=[tokens, *planes], writes=[out],
        form=stored_form(weight), wide_ids=ids.dtype == dtypes.int64,
    )  # fmt: skip
    return Tensor.wrap(out, backend)


def _backward_supports(g: Tensor, ids: Tensor, rows: int, dtype: np.dtype) -> str | None:
    if dtype != dtypes.float32:
        return f"dtype {dtype} of the result is not float32"
    if ids.dtype not in (dtypes.int32, dtypes.int64):
        return f"ids are {ids.dtype}, not int32 or int64"
    return not_float32(g)


def _embedding_backward(g: Tensor, ids: Tensor, rows: int, dtype: np.dtype) -> Tensor:
    backend: NumpyBackend = g.backend  # type: ignore[assignment]
    source, tokens = backend.dense(g.data), backend.dense(ids.data)
    T, E = g.shape
    table = backend.empty((rows, E))
    size = max(1, -(-rows // _PARTS))
    params = [*(address(a) for a in (source, tokens, table)), T, rows, E, size]
    backend.launch(
        "embedding.gradient", params, items=-(-rows // size), grain=1, reads=[source, tokens],
        writes=[table], wide_ids=ids.dtype == dtypes.int64,
    )  # fmt: skip
    return Tensor.wrap(table, backend)


KERNELS = {
    "embedding": Kernel(_embedding, _supports),
    "embedding_backward": Kernel(_embedding_backward, _backward_supports),
}
