"""Launches of the embedding kernels; see `shaders/cuda/rows/embedding.cu`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.cupy.rows.rows import TYPES, run_length
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

IDS = {dtypes.int32: "int", dtypes.int64: "i64"}
_WHOLE_ROW = 30  # log2 of columns that share a scale
_FEW = 16  # tokens of an id that one block adds up, as in the source


def packed_parts(weight: Tensor | QuantizedTensor) -> tuple[dict[str, Any], Any, Any, int, int]:
    """(macros of `packed.cuh`, table, scales, scales in a row, log2 of columns that share one)."""
    if isinstance(weight, Tensor):
        return {"FORM": 0, "W": TYPES[weight.dtype]}, weight.data, None, 0, 0
    scheme = weight.scheme
    if scheme.is_block:
        form = {"q8_0": 2, "q4_1": 3}[scheme.name]
        return {"FORM": form, "W": "float"}, weight.parts["blocks"].data, None, 0, 0
    scales = weight.parts["scales"].data
    shift = scheme.group_size.bit_length() - 1 if scheme.group_size else _WHOLE_ROW
    return {"FORM": 1, "W": "float"}, weight.parts["values"].data, scales, scales.shape[1], shift


def decode_run(form: int, table: Any, K: int) -> int:
    """Elements that a thread decodes at once: 8, or 1 where rows do not come in such runs."""
    least = {0: 16, 1: 8, 2: 2, 3: 4}[form]
    return 8 if K % 8 == 0 and table.data.ptr % least == 0 else 1


def packed_supports(weight: Tensor | QuantizedTensor, dtype: np.dtype) -> str | None:
    """Why the decoding kernels cannot read this weight, or write this dtype."""
    if dtype not in TYPES:
        return f"dtype {dtype} of the result"
    if isinstance(weight, Tensor):
        if weight.dtype not in TYPES:
            return f"dtype {weight.dtype} of the table"
        return None if weight.data.flags.c_contiguous else "the table is not dense"
    if not all(part.data.flags.c_contiguous for part in weight.parts.values()):
        return "the table is not dense"
    if weight.scheme.is_block and weight.scheme.name not in ("q8_0", "q4_1"):
        return f"scheme {weight.scheme.name}"
    if weight.scheme.is_block and weight.parts["blocks"].data.data.ptr % 4:
        return "the blocks do not begin at a multiple of 4 bytes"
    return None


def _supports(ids: Tensor, weight: Tensor | QuantizedTensor, dtype: np.dtype) -> str | None:
    if ids.dtype not in IDS:
        return f"ids are {ids.dtype}, not int32 or int64"
    return packed_supports(weight, dtype)


def _embedding(ids: Tensor, weight: Tensor | QuantizedTensor, dtype: np.dtype) -> Tensor:
    backend: CupyBackend = ids.backend  # type: ignore[assignment]
    macros, table, scales, G, shift = packed_parts(weight)
    V, E = weight.shape
    out = backend.empty((ids.size, E), dtype)
    if out.size and V:
        run = decode_run(macros["FORM"], table, E)
        chunks = -(-E // (256 * run))
        backend.launch(
            "embedding", "embedding", (ids.size * chunks,), (256,),
            [backend.dense(ids.data), table, scales, out, V, E, G, shift, chunks], dependent=True,
            ID=IDS[ids.dtype], O=backend.c_type(dtype), RUN=run, **macros,
        )  # fmt: skip
    return Tensor.wrap(out, backend)


def _backward_supports(g: Tensor, ids: Tensor, rows: int, dtype: np.dtype) -> str | None:
    if ids.dtype not in IDS:
        return f"ids are {ids.dtype}, not int32 or int64"
    for name, each in (("gradient", g.dtype), ("table", dtype)):
        if each not in TYPES:
            return f"dtype {each} of the {name}"
    return None


def _embedding_backward(g: Tensor, ids: Tensor, rows: int, dtype: np.dtype) -> Tensor:
    backend: CupyBackend = g.backend  # type: ignore[assignment]
    source, tokens = backend.dense(g.data), backend.dense(ids.data)
    T, E = g.shape
    table = backend.empty((rows, E), dtype)
    if not table.size:
        return Tensor.wrap(table, backend)
    counts, starts, number, present, order, totals = (
        backend.empty((n,), "int32") for n in (rows, rows, T, T, T, 3)
    )
    run = run_length((E,), source)
    macros = {
        "FORM": -1, "W": "float", "ID": IDS[ids.dtype], "RUN": run,
        "X": backend.c_type(g.dtype), "O": backend.c_type(dtype),
    }  # fmt: skip

    def launch(name: str, grid: tuple[int, ...], *args: Any) -> None:
        backend.launch("embedding", name, grid, (256,), args, dependent=True, **macros)

    whole = table.nbytes // 16
    tail = table.reshape(-1).view(np.uint8)[whole * 16 :] if table.nbytes % 16 else None
    launch("zero", (8 * backend.caps.sms,), table, np.int64(whole), tail, table.nbytes % 16,
           counts, totals, rows)  # fmt: skip
    blocks = (-(-T // 256),)
    launch("count", blocks, tokens, counts, number, T, rows)
    launch("place", blocks, tokens, counts, number, starts, present, totals, T)
    launch("fill", blocks, tokens, number, starts, order, T)
    launch("gather_few", (min(T, rows),), source, table, counts, starts, present, totals, order, E)
    many = min(T // (_FEW + 1), rows)
    launch("gather", (many, -(-E // (32 * run))), tokens, source, table, counts, starts, present,
           totals, order, T, E)  # fmt: skip
    return Tensor.wrap(table, backend)


KERNELS = {
    "embedding": Kernel(_embedding, _supports),
    "embedding_backward": Kernel(_embedding_backward, _backward_supports),
}

VARIANTS = [
    *(
        Variant("embedding", {"FORM": form, "W": w, "RUN": run, "O": out, "ID": ids})
        for form, w, run, out, ids in (
            (0, "bf16", 8, "bf16", "int"), (0, "float", 1, "f16", "i64"),
            (1, "float", 8, "bf16", "int"), (1, "float", 1, "float", "int"),
            (2, "float", 8, "bf16", "int"), (3, "float", 8, "float", "int"),
        )
    ),
    *(
        Variant("embedding", {"FORM": -1, "W": "float", "ID": ids, "RUN": run, "X": x, "O": out})
        for ids, run, x, out in (
            ("int", 8, "bf16", "bf16"), ("i64", 4, "float", "float"), ("int", 1, "f16", "float"),
        )
    ),
]  # fmt: skip
