"""Launches of the optimizer's kernels; see `kernels/rows/optim.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.kernels.runtime import layout_ops as at
from boostr.backends.numpy.rows.rows import not_float32
from boostr.tensor import Tensor

_GRAIN = 4
_KINDS = {np.dtype(np.float64): 0, dtypes.float32: 1, dtypes.int32: 2}


def _table(columns: dict[int, Sequence[np.ndarray]]) -> tuple[np.ndarray, int]:
    """(int64 [tensors, TENSOR_WORDS], items) of the tensors that have elements."""
    (first, *_) = columns.values()
    full = [i for i, x in enumerate(first) if x.size]
    table = np.zeros((len(full), at.TENSOR_WORDS), np.int64)
    for word, arrays in columns.items():
        table[:, word] = [address(arrays[i]) for i in full]
    table[:, at.LENGTH] = [first[i].size for i in full]
    ends = np.cumsum(-(-table[:, at.LENGTH] // at.OPTIM_CHUNK))
    table[1:, at.FIRST_ITEM] = ends[:-1]
    return table, int(ends[-1]) if full else 0


def _scalar(backend: NumpyBackend, value: Tensor | float) -> np.ndarray:
    """One number in memory: where it lies, if it is a tensor, or a float64 of its own."""
    return backend.dense(value.data) if isinstance(value, Tensor) else np.array([value], np.float64)


def _adamw(
    params, grads, ms, vs, masters, step, lr, grad_scale, beta1, beta2, eps, weight_decay
) -> None:
    backend: NumpyBackend = params[0].backend
    held = {word: [t.data for t in given]
            for word, given in ((at.PARAM, params), (at.MEAN, ms), (at.SQUARE, vs))}  # fmt: skip
    sources = [backend.dense(t.data) for t in grads]
    table, items = _table({**held, at.GRAD: sources})
    numbers = np.array([beta1, beta2, eps, weight_decay], np.float64)
    scalars = [_scalar(backend, value) for value in (step, lr, grad_scale)]
    words = [address(table), len(table), address(numbers)]
    for x in scalars:
        words += [address(x), _KINDS[x.dtype]]
    written = [x for arrays in held.values() for x in arrays]
    backend.launch(
        "optim.adamw", words, items=items, grain=_GRAIN,
        reads=[table, numbers, *scalars, *sources, *written], writes=written,
    )  # fmt: skip


def _adamw_supports(params, grads, ms, vs, masters, *rest) -> str | None:
    if masters is not None:
        return "16-bit parameters with float32 masters"
    return not_float32(*params, *grads)


def _global_norm(tensors: list[Tensor]) -> Tensor:
    backend: NumpyBackend = tensors[0].backend  # type: ignore[assignment]
    sources = [backend.dense(t.data) for t in tensors]
    table, items = _table({at.GRAD: sources})
    sums, norm = backend.empty((items,), np.float64), backend.empty(())
    backend.launch(
        "optim.square_sums", [address(table), len(table), address(sums)], items=items,
        grain=_GRAIN, reads=[table, *sources], writes=[sums],
    )  # fmt: skip
    backend.launch(
        "optim.root_of_sums", [address(sums), address(norm), items], items=1, grain=1,
        reads=[sums], writes=[norm],
    )  # fmt: skip
    return Tensor.wrap(norm, backend)


KERNELS = {
    "adamw": Kernel(_adamw, _adamw_supports),
    "global_norm": Kernel(_global_norm, lambda tensors: not_float32(*tensors)),
}
