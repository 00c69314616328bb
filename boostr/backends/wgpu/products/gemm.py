"""Products with many rows: `gemm.wgsl` (tiles in shared memory), `gemm_direct.wgsl` (software
adapters, tiny products) and `gemm_finish.wgsl`; `gemm_matrix.py` has those on tensor cores."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.wgpu.products import gemm_matrix
from boostr.backends.wgpu.products.gemm_ends import Ends, finish, parameters
from boostr.backends.wgpu.products.gemm_operands import Operand
from boostr.backends.wgpu.products.gemm_plan import (
    DIRECT,
    LARGE,
    TILES,
    TWICE,
    WIDE,
    Plan,
    Tile,
    choose,
)
from boostr.backends.wgpu.products.gemv_input import quantized_rows
from boostr.backends.wgpu.products.planes import Weight, refusal
from boostr.backends.wgpu.runtime import wgsl
from boostr.backends.wgpu.runtime.array import GpuArray, contiguous_strides
from boostr.quant.forms import W8A8
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend


def supports(
    x: Tensor, weight: Weight, bias: Tensor | None, residual: Tensor | None,
    dtype: np.dtype | None = None, rounded: bool = False,
) -> str | None:  # fmt: skip
    """None if `linear` multiplies these, else why not."""
    for part in (t for t in (x, bias, residual) if t is not None):
        if part.dtype not in dtypes.MODEL_FLOATS:
            return f"dtype {part.dtype} is none of float32, float16, bfloat16"
    if dtype is not None and dtype not in dtypes.MODEL_FLOATS:
        return f"result dtype {dtype} is none of float32, float16, bfloat16"
    return refusal(weight) if weight.shape[1] else "K is 0"


def linear(
    backend: WgpuBackend, x: Any, weight: Weight, bias: Any = None, residual: Any = None,
    dtype: Any = None, plan: Plan | None = None,
) -> GpuArray:  # fmt: skip
    """x [..., K] times weight [N, K] transposed, plus bias [N] and residual [..., N].

    x, bias and residual: arrays or tensors of any strides. A weight whose bytes one binding cannot
    hold is multiplied in parts of its rows, x in parts of its own.
    """
    x, bias, residual = (t.data if isinstance(t, Tensor) else t for t in (x, bias, residual))
    N, K = weight.shape
    lead, M = x.shape[:-1], math.prod(x.shape[:-1])
    kind = x.dtype if dtype is None else np.dtype(dtype)
    out = backend.empty((M, N), kind)
    w = Operand.of_weight(weight, backend)
    if M and N:
        if x.ndim != 2 or min(x.strides) < 0:
            x = backend.dense(x)
            x = x.view(shape=(M, K), strides=(K, 1))
        bias, residual = (None if a is None else backend.dense(a) for a in (bias, residual))
        if w.form.rounds_input:
            x, x_scale = quantized_rows(backend, x)
            left = Operand(x, W8A8, M, K, x.shape[1])
            ends = Ends(bias, residual, x_scale)
        else:
            left, ends = Operand.of_matrix(backend, x), Ends(bias, residual)
        _bands(backend, left, w, ends, out, plan)
    return out.view(shape=(*lead, N), strides=contiguous_strides((*lead, N)))


def matmul(backend: WgpuBackend, a: GpuArray, b: GpuArray, dtype: Any = None) -> GpuArray:
    """a [..., M, K] @ b [..., K, N], leading axes broadcast, of any strides; f32 sums.

    a and b may be of two float types; `dtype` of the result: a's by default.
    """
    M, K, N = a.shape[-2], a.shape[-1], b.shape[-1]
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = backend.empty((*lead, M, N), a.dtype if dtype is None else dtype)
    batches = math.prod(lead)
    if not out.size:
        return out
    if K == 0:
        return backend.full((*lead, M, N), 0, out.dtype)
    turned = b.view(
        shape=(*b.shape[:-2], N, K), strides=(*b.strides[:-2], b.strides[-1], b.strides[-2])
    )
    left, right = _flat(backend, a, lead), _flat(backend, turned, lead)
    if right.batch == 0 and left.batch == M * left.line and not left.across and batches > 1:
        # matrices that lie behind each other, times one: a single product
        left = Operand(left.array, left.form, batches * M, K, left.line)
        M, batches = batches * M, 1
    flat = out.view(shape=(batches, M, N), strides=(M * N, N, 1))
    most = backend.caps.binding_bytes
    small = max(left.seen(), right.seen(), M * N * batches * 4) <= most
    if small and batches <= backend.caps.workgroups // 16:
        _launch(backend, left, right, Ends(), flat, N, 0, None)
        return out
    for i in range(batches):
        one = flat.view(shape=(M, N), strides=(N, 1), offset=flat.offset + i * M * N)
        x, w = (s.matrix(i) if s.batch or batches > 1 else s for s in (left, right))
        _bands(backend, x, w, Ends(), one, None)
    return out


def _flat(backend: WgpuBackend, x: GpuArray, lead: tuple[int, ...]) -> Operand:
    """x's matrices as [batches, rows, inputs], its leading axes broadcast to `lead`."""
    *_, rows, inputs = x.shape
    own = (0,) * (len(lead) - x.ndim + 2) + tuple(
        0 if n == 1 else stride for n, stride in zip(x.shape[:-2], x.strides[:-2], strict=True)
    )
    axes = [(n, stride) for n, stride in zip(lead, own, strict=True) if n > 1]
    regular = all(outer[1] == inner[0] * inner[1] for outer, inner in pairwise(axes))
    if not regular:
        return _flat(backend, backend.copy(x.view(
            shape=(*lead, rows, inputs), strides=(*own, *x.strides[-2:]))), lead)  # fmt: skip
    step = axes[-1][1] if axes else 0
    shape, strides = (math.prod(lead), rows, inputs), (step, *x.strides[-2:])
    return Operand.of_matrix(backend, x.view(shape=shape, strides=strides))


def _bands(
    backend: WgpuBackend, x: Operand, w: Operand, ends: Ends, out: GpuArray, plan: Plan | None
) -> None:
    """One product, in as many parts as the windows of bindings ask for."""
    most, (M, N) = backend.caps.binding_bytes, out.shape
    if (x.across and x.seen() > most) or (w.across and w.seen() > most):
        _contracted(backend, x, w, out)
        return
    widest = max(x.line * x.array.dtype.itemsize, N * 4)
    rows = M if max(x.seen(), M * N * 4) <= most else max(most // widest // 8, 1) * 8
    columns = N if w.seen() <= most else max(most // (w.line * w.array.dtype.itemsize), 4) // 4 * 4
    for m in range(0, M, rows):
        stop = min(m + rows, M)
        y = out.view(shape=(1, stop - m, N), strides=(0, N, 1), offset=out.offset + m * N)
        band = ends.rows(m, stop, N)
        if columns >= N:
            _launch(backend, x.part(m, stop), w, band, y, N, 0, plan)
        else:
            _columns(backend, x.part(m, stop), w, columns, band, y, plan)


def _columns(
    backend: WgpuBackend,
    x: Operand,
    w: Operand,
    columns: int,
    ends: Ends,
    y: GpuArray,
    plan: Plan | None,
) -> None:
    """y [1, M, N] in bands of the weight's rows, each in one dispatch."""
    N, wide = y.shape[-1], y
    if N % 4 and y.dtype != dtypes.float32:
        wide = backend.empty(y.shape, np.float32)  # words of 16-bit rows would be shared
    for n in range(0, N, columns):
        stop = min(n + columns, N)
        band = ends.columns(n, stop)
        one = plan or choose(backend.caps, x.rows, stop - n, x.inputs, 1, 1)  # not split
        _launch(backend, x, w.part(n, stop), band, wide, stop - n, n, one)
    if wide is not y:
        backend.assign(y, wide)


def _contracted(backend: WgpuBackend, x: Operand, w: Operand, out: GpuArray) -> None:
    """A product whose inputs are shared out, since lines across do not fit a binding."""
    most, K = backend.caps.binding_bytes, x.inputs
    widest = max(s.line * s.array.dtype.itemsize for s in (x, w) if s.across)
    step = max(most // widest, 4) // 4 * 4
    sums = None
    for k in range(0, K, step):
        stop = min(k + step, K)
        y = out if stop == K else backend.empty(out.shape, np.float32)
        part = x.contraction(k, stop), w.contraction(k, stop)
        _bands(backend, *part, Ends(residual=sums), y, None)
        sums = y


def _launch(
    backend: WgpuBackend, x: Operand, w: Operand, ends: Ends, y: GpuArray, N: int, column: int,
    plan: Plan | None, guard: GpuArray | None = None,
) -> None:  # fmt: skip
    """Columns `column` to `column + N` of y [batches, M, all columns], whose windows all fit."""
    batches, M, width = y.shape
    again = Plan(next(t for t in reversed(TILES) if t.BM >= M or t == LARGE))

    def repeat(flag: GpuArray) -> None:
        _launch(backend, x, w, ends, y, N, column, again, flag)

    if plan is None and gemm_matrix.takes(backend, x, w, y) is None:
        gemm_matrix.product(backend, x, w, ends, y, N, column, repeat)
        return
    integers = x.form.rounds_input
    units = -(-x.inputs // 4) if integers else x.inputs
    room = min(backend.caps.binding_bytes // (4 * batches * M * width), 16)
    floats = x.name == w.name == "f32"
    if plan is None:
        plan = choose(backend.caps, M, N, units, batches, room)
        best = WIDE if floats else TWICE if integers else LARGE
        if plan.tile == LARGE and best.shared_bytes <= backend.caps.workgroup_bytes:
            plan = Plan(best, plan.splits)
    tile = plan.tile
    direct = tile == DIRECT
    depth = 16 if direct else tile.BK
    steps = -(-units // depth)
    share = -(-steps // plan.splits)
    splits = -(-steps // share)
    ragged = width % 4 != 0 and y.dtype != dtypes.float32
    split = splits > 1 or ragged
    result = dtypes.int32 if integers else dtypes.float32
    part = backend.empty((splits * batches * M, width), result) if split else y
    scales = [] if ends.x_scale is None or (integers and split) else [ends.x_scale]
    values = {
        **x.values("X"), **w.values("W"), **({} if direct else tile.values()), "SPLIT": split,
        "OUT": wgsl.name_of(part.dtype),
        "OUT_WHOLE": (width | N | column | backend.offset(part)) % 4 == 0,
        **ends.values(not split), "GUARD": guard is not None,
        "FULL": units % depth == 0 and not direct and not floats,
    }  # fmt: skip
    reads = [x.array, *w.reads(), *scales, *([] if split else ends.tail())]
    grid = (-(-M // tile.BM), -(-N // tile.BN), batches * splits)
    backend.launch(
        "gemm_direct" if direct else "gemm", "gemm", grid, reads + ([guard] if guard else []),
        [part],
        parameters(backend, x, w, 4 if w.whole() else 1, ends, part,
                   (N, units, share, splits, column)),
        **values,
    )  # fmt: skip
    if split:
        finish(backend, part, ends, y, splits, w.row_scales)


__all__ = ["DIRECT", "LARGE", "TILES", "Plan", "Tile", "choose", "linear", "matmul", "supports"]
