"""Launches of shaders/cuda/rows/optim.cu: AdamW over many tensors, and their norm."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

TENSORS = 64  # of one launch: their table is a kernel argument, and these end at 4 KiB
THREADS = 256
ROUNDS = 1
CHUNK = THREADS * 8 * ROUNDS  # elements of a block
_BEYOND = 2**31 - 1


def _tables(columns: Sequence[Sequence[int]], lengths: Sequence[int]) -> Iterator[tuple]:
    """(packed table, blocks) of `struct Table` for each launch; a column is addresses by tensor."""
    for start in range(0, len(lengths), TENSORS):
        part = slice(start, start + TENSORS)
        count = len(lengths[part])
        room = [0] * (TENSORS - count)
        words = [word for column in columns for word in (*column[part], *room)]
        first, blocks = [], 0
        for n in lengths[part]:
            first.append(blocks)
            blocks += -(-n // CHUNK)
        packed = struct.pack(
            f"{6 * TENSORS}q{TENSORS}i",
            *words, *lengths[part], *room, *first, *(_BEYOND for _ in room),
        )  # fmt: skip
        yield packed, blocks


def _scalar(value: Tensor | float) -> bytes:
    """`struct Scalar`: a number, or the address of one on the device."""
    if isinstance(value, Tensor):
        kind = 2 if value.dtype == dtypes.int32 else 1
        return struct.pack("Qfi", value.data.data.ptr, 0.0, kind)
    return struct.pack("Qfi", 0, value, 0)


def _groups(keys: Sequence[Any]) -> dict[Any, list[int]]:
    """Positions by key."""
    found: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return found


def _adamw(
    params, grads, ms, vs, masters, step, lr, grad_scale, beta1, beta2, eps, weight_decay
) -> None:
    backend: CupyBackend = params[0].backend
    log1, log2 = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
    numbers = struct.pack("6f", log1, log2, 1 - beta1, 1 - beta2, eps, weight_decay)
    tail = b"".join(map(_scalar, (step, lr, grad_scale))) + numbers
    sources = [backend.dense(g.data) for g in grads]
    for (param, grad), at in _groups([(p.dtype, g.dtype) for p, g in zip(params, grads)]).items():  # noqa: B905
        at = [i for i in at if params[i].size]
        columns = [
            [params[i].data.data.ptr for i in at],
            [sources[i].data.ptr for i in at],
            [ms[i].data.data.ptr for i in at],
            [vs[i].data.data.ptr for i in at],
            [0 if masters is None else masters[i].data.data.ptr for i in at],
        ]
        for table, blocks in _tables(columns, [params[i].size for i in at]):
            backend.launch(
                "optim", "adamw", (blocks,), (THREADS,), [table + tail],
                PARAM=backend.c_type(param), GRAD=backend.c_type(grad),
                MASTER=int(masters is not None), THREADS=THREADS, ROUNDS=ROUNDS,
            )  # fmt: skip


def _adamw_supports(params, grads, ms, vs, masters, *rest) -> str | None:
    return refusals.only_floats(*params, *grads)


def _global_norm(tensors: list[Tensor]) -> Tensor:
    backend: CupyBackend = tensors[0].backend  # type: ignore[assignment]
    full = [x for x in tensors if x.size]
    sources = [backend.dense(x.data) for x in full]
    total = sum(-(-x.size // CHUNK) for x in full)
    partial = backend.empty((max(total, 1),), np.float32)
    norm = backend.empty((), np.float32)
    first = 0
    for dtype, at in _groups([x.dtype for x in full]).items():
        none = [0] * len(at)
        columns = [none, [sources[i].data.ptr for i in at], none, none, none]
        for table, blocks in _tables(columns, [full[i].size for i in at]):
            backend.launch(
                "optim", "square_sums", (blocks,), (THREADS,), [table, partial, first],
                PARAM="float", GRAD=backend.c_type(dtype), MASTER=0, THREADS=THREADS,
                ROUNDS=ROUNDS,
            )  # fmt: skip
            first += blocks
    backend.launch(
        "optim", "root_of_sums", (1,), (1024,), [partial, norm, first], dependent=True,
        PARAM="float", GRAD="float", MASTER=0, THREADS=THREADS, ROUNDS=ROUNDS,
    )  # fmt: skip
    return Tensor.wrap(norm, backend)


def _norm_supports(tensors: list[Tensor]) -> str | None:
    return refusals.only_floats(*tensors)


KERNELS = {
    "adamw": Kernel(_adamw, _adamw_supports),
    "global_norm": Kernel(_global_norm, _norm_supports),
}
VARIANTS = [
    Variant(
        "optim",
        {"PARAM": param, "GRAD": grad, "MASTER": master, "THREADS": THREADS, "ROUNDS": ROUNDS},
    )
    for param, grad, master in (
        ("float", "float", 0), ("f16", "f16", 1), ("bf16", "bf16", 0), ("bf16", "bf16", 1),
        ("bf16", "float", 1),
    )
]  # fmt: skip
