"""Launch of the embedding kernel; see `kernels/rows/embedding.py`."""

from __future__ import annotations

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.products.planes import Weight, place, stored_form, why_not
from boostr.tensor import Tensor


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


KERNELS = {"embedding": Kernel(_embedding, _supports)}
