"""The fastest algorithm of cuBLASLt for a product, found by trying: what its heuristics name first
takes up to 1.18 times as long (a step of a 1B model, H200)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cupy

from boostr import env

if TYPE_CHECKING:
    from boostr.backends.cupy.products.blas import Blas, Plan

_TRIED, _ROUNDS, _EACH = 8, 2, 3  # algorithms; rounds, of so many products
_WORTH = 4e10  # operations; fewer take 60 us or less


def is_worth_tuning(plan: Plan) -> bool:
    """Whether it is large; not if results must be the same from run to run."""
    d, inner = plan.key.d, plan.key.a.rows if plan.key.a.transposed else plan.key.a.columns
    operations = 2.0 * d.rows * d.columns * inner * plan.key.batch
    return operations >= _WORTH and env.DETERMINISTIC.text() != "1"


def tune(blas: Blas, plan: Plan) -> None:
    """Let the plan have the fastest of the first algorithms, timed on memory and a stream of their
    own: so that others may run, and be recorded, meanwhile. Without room for it nothing changes."""
    found = plan.algorithms(blas.handle, _TRIED)
    operands = (plan.key.a, plan.key.b, plan.key.d)
    sizes = [o.ld * o.columns * o.dtype.itemsize + 256 for o in operands]
    pool = cupy.cuda.MemoryPool()  # which is given back at once
    try:
        memory = [pool.malloc(n) for n in (*sizes, blas.workspace_bytes)]
    except cupy.cuda.memory.OutOfMemoryError:
        return
    stream = cupy.cuda.Stream(non_blocking=True)
    for piece, size in zip(memory[:3], sizes, strict=True):
        cupy.cuda.runtime.memsetAsync(piece.ptr, 0x3C, size, stream.ptr)  # small numbers
    a, b, d, workspace = (piece.ptr for piece in memory)

    def seconds(algorithm: Any) -> float:
        plan.use(algorithm)
        times = []
        for _ in range(_ROUNDS):
            events = cupy.cuda.Event(), cupy.cuda.Event()
            events[0].record(stream)
            for _ in range(_EACH):
                blas.start(stream.ptr, plan, (a, b, d, d), workspace)
            events[1].record(stream)
            events[1].synchronize()
            times.append(cupy.cuda.get_elapsed_time(*events))
        return min(times)

    plan.use(min(found, key=seconds))
