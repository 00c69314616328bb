"""Launches of the embedding kernels; see `embedding.wgsl`, `embedding_backward.wgsl`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends.base import Kernel
from boostr.backends.refusals import FLOATS
from boostr.backends.wgpu.rows.rows import parts, run_length, type_of
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import NAMES
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

_THREADS = 256
_WHOLE_ROW = 30  # log2 of columns that share a scale
_FEW = 64  # tokens of an id beyond which many workgroups add its rows up, as in the source


def _supports(ids: Tensor, weight: Tensor | QuantizedTensor, dtype: np.dtype) -> str | None:
    if ids.dtype not in NAMES or ids.dtype.kind not in "iu":
        return f"ids are {ids.dtype}"
    if dtype not in FLOATS:
        return f"dtype {dtype} of the result"
    if isinstance(weight, Tensor):
        return None if weight.dtype in FLOATS else f"dtype {weight.dtype} of the table"
    if weight.scheme.is_block and weight.scheme.name not in ("q8_0", "q4_1"):
        return f"scheme {weight.scheme.name}"
    return None


def _table(
    backend: WgpuBackend, weight: Tensor | QuantizedTensor
) -> tuple[str, list[Any], int, int]:
    """(FORM, arrays, scales in a row, log2 of columns that share one)."""
    if isinstance(weight, Tensor):
        return "float", [backend.dense(weight.data)], 0, 0
    scheme = weight.scheme
    if scheme.is_block:
        blocks = backend.dense(weight.parts["blocks"].data)
        if blocks.offset % (4 if scheme.name == "q4_1" else 2):
            blocks = backend.copy(blocks)
        return scheme.name, [blocks], 0, 0
    found = [backend.dense(weight.parts[name].data) for name in ("values", "scales")]
    shift = scheme.group_size.bit_length() - 1 if scheme.group_size else _WHOLE_ROW
    return "int8", found, found[1].shape[1], shift


def _run(backend: WgpuBackend, form: str, table: Any, E: int, out: Any) -> int:
    """Elements of a thread: 8 or 4, or 1 where rows do not come in such runs."""
    at = 0 if form in ("q8_0", "q4_1") else backend.offset(table)
    narrow = form == "float" and table.dtype.itemsize == out.dtype.itemsize == 2
    most = (8, 4) if narrow else (4,)
    for run in most:
        if not (E % run or at % run or backend.offset(out) % run):
            return run
    return 1


def _embedding(ids: Tensor, weight: Tensor | QuantizedTensor, dtype: np.dtype) -> Tensor:
    backend: WgpuBackend = ids.backend  # type: ignore[assignment]
    V, E = weight.shape
    out = backend.empty((ids.size, E), dtype)
    if not (out.size and V):
        return Tensor.wrap(out, backend)
    form, arrays, scales, shift = _table(backend, weight)
    tokens = backend.dense(ids.data)
    for part, target in parts(backend, tokens, out):
        first = 0
        for piece in parts(backend, *arrays):
            _lookup(backend, form, part, piece, target, (V, first, scales, shift))
            first += piece[0].shape[0]
    return Tensor.wrap(out, backend)


def _lookup(
    backend: WgpuBackend, form: str, ids: Any, arrays: list[Any], out: Any, sizes: tuple[int, ...]
) -> None:
    """The tokens whose rows are among those of this piece of the table."""
    V, first, scales, shift = sizes
    T, E = out.shape
    table = arrays[0]
    run = _run(backend, form, table, E, out)
    step = run if form == "float" else 1
    at = [backend.offset(ids), backend.offset(table) // step]
    at += [backend.offset(arrays[1]) if len(arrays) > 1 else 0, backend.offset(out) // run]
    count = out.size // run if run > 1 else -(-out.size * out.dtype.itemsize // 4)
    backend.launch(
        "embedding", "embedding", -(-count // _THREADS), [ids, *arrays], [out],
        (T, E // run, V, first, table.shape[0], scales, shift, *at),
        FORM=form, W=type_of(table) if form == "float" else "", O=type_of(out), ID=type_of(ids),
        RUN=run,
    )  # fmt: skip


def _backward_supports(g: Tensor, ids: Tensor, rows: int, dtype: np.dtype) -> str | None:
    if ids.dtype not in NAMES or ids.dtype.kind not in "iu":
        return f"ids are {ids.dtype}"
    for name, each in (("gradient", g.dtype), ("table", dtype)):
        if each not in FLOATS:
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
        Variant("embedding", {"FORM": form, "W": w, "O": out, "ID": ids, "RUN": run})
        for form, w, out, ids, run in (
            ("float", "bf16", "bf16", "i32", 8), ("float", "f32", "f16", "u8", 4),
            ("float", "f16", "bf16", "i32", 1), ("int8", "", "bf16", "i32", 4),
            ("int8", "", "f16", "i32", 1), ("q8_0", "", "bf16", "i32", 4),
            ("q4_1", "", "f32", "u32", 4),
        )
    ),
    *(
        Variant("embedding_backward", {"STEP": step, "ID": "i32", "X": x, "O": out, "RUN": run})
        for step in ("clear", "count", "place", "fill", "gather", "gather_hot")
        for x, out, run in (("bf16", "bf16", 8), ("f32", "f32", 4), ("f16", "f32", 1))
        if step.startswith("gather") or run == 4
    ),
]  # fmt: skip
