"""Launches of shaders/cuda/rows/pointwise.cu, in place of CuPy's kernels, which take an element a
thread: of 16 bits they move a quarter of what memory could."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

OPS = {"add": 0, "sub": 1, "mul": 2}
_THREADS, _RUN, _UNROLL = 256, 8, 2  # _RUN: of `convert`
_LEAST = 1 << 15  # elements; fewer take as long as a launch


def _is_flat(x: Any) -> bool:
    return x.dtype in dtypes.MODEL_FLOATS and x.flags.c_contiguous and x.data.ptr % 16 == 0


def combines(name: str, a: Any, b: Any, dtype: np.dtype) -> bool:
    """Whether `combine` makes a OP b of this dtype."""
    return (
        name in OPS
        and hasattr(a, "shape")  # either may be a number
        and hasattr(b, "shape")
        and a.shape == b.shape
        and a.size >= _LEAST
        and a.dtype == b.dtype == dtype
        and _is_flat(a)
        and _is_flat(b)
    )


def combine(backend: CupyBackend, name: str, a: Any, b: Any) -> Any:
    """a OP b."""
    out, grid = backend.empty(a.shape, a.dtype), _grid(a.size, 16 // a.itemsize)
    backend.launch(
        "pointwise", "combine", grid, (_THREADS,), [a, b, out, np.int64(a.size)], dependent=True,
        X=backend.c_type(a.dtype), OPERATION=OPS[name], UNROLL=_UNROLL,
    )  # fmt: skip
    return out


def converts(x: Any, dtype: np.dtype) -> bool:
    """Whether `convert` makes x of this dtype."""
    return dtype != x.dtype and dtype in dtypes.MODEL_FLOATS and x.size >= _LEAST and _is_flat(x)


def convert(backend: CupyBackend, x: Any, dtype: np.dtype, factor: Any = None) -> Any:
    """x · factor (a float32 scalar in memory, or None: 1), of `dtype`."""
    out, grid = backend.empty(x.shape, dtype), _grid(x.size, _RUN)
    backend.launch(
        "pointwise", "convert", grid, (_THREADS,), [x, factor, out, np.int64(x.size)],
        dependent=True, X=backend.c_type(x.dtype), O=backend.c_type(dtype), UNROLL=_UNROLL,
    )  # fmt: skip
    return out


def _grid(size: int, run: int) -> tuple[int]:
    return (max(1, -(-size // (_THREADS * run * _UNROLL))),)


def _times(x: Tensor, factor: Tensor, dtype: np.dtype) -> Tensor:
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    source = backend.dense(x.data)
    if source.data.ptr % 16:
        source = backend.copy(source)
    return Tensor.wrap(convert(backend, source, dtype, factor.data), backend)


def _times_supports(x: Tensor, factor: Tensor, dtype: np.dtype) -> str | None:
    if dtype not in dtypes.MODEL_FLOATS or factor.dtype != dtypes.float32:
        return f"a product of {factor.dtype}, of {dtype}"
    return refusals.only_floats(x)


KERNELS = {"times": Kernel(_times, _times_supports)}
VARIANTS = [
    *(
        Variant("pointwise", {"X": x, "OPERATION": op, "UNROLL": _UNROLL})
        for x, op in (("bf16", 0), ("f16", 1), ("float", 2))
    ),
    *(
        Variant("pointwise", {"X": x, "O": out, "UNROLL": _UNROLL})
        for x, out in (("float", "bf16"), ("bf16", "float"), ("float", "f16"), ("f16", "f16"))
    ),
]
