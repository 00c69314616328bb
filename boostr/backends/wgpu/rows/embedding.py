"""Launches of the embedding kernels; see `embedding.wgsl`, `embedding_backward.wgsl`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.wgpu.products.planes import (
    FORMS,
    PACKED,
    Planes,
    Weight,
    bases,
    planes_of,
    refusal,
    stored_form,
)
from boostr.backends.wgpu.rows.rows import parts, run_length, type_of
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import NAMES
from boostr.quant.forms import Form
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

_THREADS = 256
_FEW = 64  # tokens of an id beyond which many workgroups add its rows up, as in the source


def _supports(ids: Tensor, weight: Weight, dtype: np.dtype) -> str | None:
    if ids.dtype not in NAMES or ids.dtype.kind not in "iu":
        return f"ids are {ids.dtype}"
    if dtype not in dtypes.MODEL_FLOATS:
        return f"dtype {dtype} of the result"
    return refusal(weight)


def _run(backend: WgpuBackend, form: Form, table: Any, E: int, out: Any) -> int:
    """Elements of a thread: 8 or 4, or 1 where rows do not come in such runs."""
    at = 0 if form.codes in PACKED else backend.offset(table)  # those begin where loads do
    narrow = form.is_float and table.dtype.itemsize == out.dtype.itemsize == 2
    most = (8, 4) if narrow else (4,)
    for run in most:
        if not (E % run or at % run or backend.offset(out) % run):
            return run
    return 1


def _embedding(ids: Tensor, weight: Weight, dtype: np.dtype) -> Tensor:
    backend: WgpuBackend = ids.backend  # type: ignore[assignment]
    V, E = weight.shape
    out = backend.empty((ids.size, E), dtype)
    if not (out.size and V):
        return Tensor.wrap(out, backend)
    form, planes = stored_form(weight), planes_of(backend, weight)
    tokens = backend.dense(ids.data)
    for part, target in parts(backend, tokens, out):
        first = 0
        for piece in parts(backend, *planes):
            _lookup(backend, form, part, tuple(piece), target, V, first)
            first += piece[0].shape[0]
    return Tensor.wrap(out, backend)


def _lookup(
    backend: WgpuBackend, form: Form, ids: Any, planes: Planes, out: Any, V: int, first: int
) -> None:
    """The tokens whose rows are among those of this piece of the table, which begins at `first`."""
    T, E = out.shape
    run = _run(backend, form, planes[0], E, out)
    load = run * planes[0].dtype.itemsize if form.is_float or run == 1 else 4
    at = [backend.offset(ids), *bases(backend, form, planes, load), backend.offset(out) // run]
    count = out.size // run if run > 1 else -(-out.size * out.dtype.itemsize // 4)
    backend.launch(
        "embedding", "embedding", -(-count // _THREADS), [ids, *planes], [out],
        (T, E // run, V, first, planes[0].shape[0], *at),
        FORM=form, O=type_of(out), ID=type_of(ids), RUN=run,
    )  # fmt: skip


def _backward_supports(g: Tensor, ids: Tensor, rows: int, dtype: np.dtype) -> str | None:
    if ids.dtype not in NAMES or ids.dtype.kind not in "iu":
        return f"ids are {ids.dtype}"
    for name, each in (("gradient", g.dtype), ("table", dtype)):
        if each not in dtypes.MODEL_FLOATS:
            return f"dtype {each} of the {name}"
    if g.nbytes > g.backend.caps.binding_bytes:  # type: ignore[attr-defined]
        return f"the gradient's {g.nbytes} bytes are more than a binding holds"
    return None


def _embedding_backward(g: Tensor, ids: Tensor, rows: int, dtype: np.dtype) -> Tensor:
    backend: WgpuBackend = g.backend  # type: ignore[assignment]
    source, tokens = backend.dense(g.data), backend.dense(ids.data)
    E = g.shape[1]
    run = run_length(backend, (E,), source)
    if run == 1 and dtype.itemsize == 2:  # rows would share words
        wide = _embedding_backward(g, ids, rows, np.dtype(np.float32))
        return Tensor.wrap(backend.cast(wide.data, dtype), backend)
    table = backend.empty((rows, E), dtype)
    first = 0
    for (piece,) in parts(backend, table) if table.size else ():
        _add_up(backend, source, tokens, piece, run, first)
        first += piece.shape[0]
    return Tensor.wrap(table, backend)


def _add_up(backend: WgpuBackend, g: Any, ids: Any, table: Any, run: int, first: int) -> None:
    """The rows of `table`, which are those from `first` of the whole."""
    T, (V, E) = ids.size, table.shape
    counts, starts, number, order, hot, totals = (
        backend.empty((n,), "uint32") for n in (V, V, T, T, T // _FEW + 1, 2)
    )
    params = (T, V, first, E // run, backend.offset(ids), backend.offset(g) // run,
              backend.offset(table) // run)  # fmt: skip

    def step(name: str, grid: Any, reads: list[Any], writes: list[Any]) -> None:
        values = {"X": "f32", "O": "f32", "RUN": 4}  # of no account to the counting steps
        if name.startswith("gather"):
            values = {"X": type_of(g), "O": type_of(table), "RUN": run}
        backend.launch(
            "embedding_backward", name, grid, reads, writes, params, STEP=name, ID=type_of(ids),
            **values,
        )  # fmt: skip

    groups = -(-T // _THREADS)
    step("clear", -(-max(V, 2) // _THREADS), [], [counts, totals])
    step("count", groups, [ids], [counts, number])
    step("place", groups, [ids, counts, number], [starts, hot, totals])
    step("fill", groups, [ids, number, starts], [order])
    step("gather", V, [counts, starts, order, g], [table])
    most = min(T // (_FEW + 1), V, 65535)
    grid = (most, -(-(E // run) // 32), 1)
    step("gather_hot", grid, [ids, counts, starts, order, hot, totals, g], [table])


KERNELS = {
    "embedding": Kernel(_embedding, _supports),
    "embedding_backward": Kernel(_embedding_backward, _backward_supports),
}

VARIANTS = [
    *(
        Variant("embedding", {"FORM": form, "O": out, "ID": ids, "RUN": run})
        for form in FORMS
        for out, ids, run in (("bf16", "i32", 4), ("f32", "u8", 4), ("f16", "u32", 1))
        if run > 1 or form.codes not in PACKED
    ),
    Variant("embedding", {"FORM": Form("bf16"), "O": "bf16", "ID": "i32", "RUN": 8}),
    *(
        Variant("embedding_backward", {"STEP": step, "ID": "i32", "X": x, "O": out, "RUN": run})
        for step in ("clear", "count", "place", "fill", "gather", "gather_hot")
        for x, out, run in (("bf16", "bf16", 8), ("f32", "f32", 4), ("f16", "f32", 1))
        if step.startswith("gather") or run == 4
    ),
]  # fmt: skip
