"""Launches of the embedding kernels; see `shaders/cuda/rows/embedding.cu`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.cupy.products.stored import Stored, form_macros, form_refusal
from boostr.backends.cupy.rows.rows import TYPES, run_length
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.quant.forms import Form, form_of, scheme_form
from boostr.quant.scheme import SCHEMES, QuantizedTensor
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

IDS = {dtypes.int32: "int", dtypes.int64: "i64"}
_FEW = 16  # tokens of an id that one block adds up, as in the source


def packed_supports(weight: Tensor | QuantizedTensor, dtype: np.dtype) -> str | None:
    """Why the decoding kernels cannot read this weight, or write this dtype."""
    if dtype not in TYPES:
        return f"dtype {dtype} of the result"
    return form_refusal(form_of(weight))


def _supports(ids: Tensor, weight: Tensor | QuantizedTensor, dtype: np.dtype) -> str | None:
    if ids.dtype not in IDS:
        return f"ids are {ids.dtype}, not int32 or int64"
    parts = [weight] if isinstance(weight, Tensor) else weight.parts.values()
    if not all(part.data.flags.c_contiguous for part in parts):
        return "the table is not dense"
    return packed_supports(weight, dtype)


def _embedding(ids: Tensor, weight: Tensor | QuantizedTensor, dtype: np.dtype) -> Tensor:
    backend: CupyBackend = ids.backend  # type: ignore[assignment]
    V, E = weight.shape
    table = Stored.of(weight, backend)
    out = backend.empty((ids.size, E), dtype)
    if out.size and V:
        run = 8 if table.in_eights else 1
        chunks = -(-E // (256 * run))
        backend.launch(
            "embedding", "embedding", (ids.size * chunks,), (256,),
            [backend.dense(ids.data), *table.planes, out, V, E, chunks], dependent=True,
            ID=IDS[ids.dtype], O=backend.c_type(dtype), RUN=run, **form_macros(table.form),
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
        "ID": IDS[ids.dtype], "RUN": run,
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
        Variant("embedding", {**form_macros(form), "RUN": run, "O": out, "ID": ids})
        for form, run, out, ids in (
            (Form("bf16"), 8, "bf16", "int"), (Form("f32"), 1, "f16", "i64"),
            *((scheme_form(SCHEMES[scheme]), 8, "bf16", "int")
              for scheme in ("int8", "int8-g128", "q8_0", "q4_0", "q4_1", "q6_k")),
            (scheme_form(SCHEMES["int8-g32"]), 1, "float", "int"),
        )
    ),
    *(
        Variant("embedding", {"ID": ids, "RUN": run, "X": x, "O": out})
        for ids, run, x, out in (
            ("int", 8, "bf16", "bf16"), ("i64", 4, "float", "float"), ("int", 1, "f16", "float"),
        )
    ),
]  # fmt: skip
