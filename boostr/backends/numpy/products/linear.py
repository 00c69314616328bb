"""Launches of the linear kernels: GEMV for few rows of x, packed GEMM for many. See
`linear.py` and `gemm.py` in `kernels/products/`; weights are read in their stored form."""

from __future__ import annotations

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.runtime import jit
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

Weight = Tensor | QuantizedTensor

_LEAST_ITEMS = 16  # pieces of work of a GEMM, so that threads finish together
_GRAIN = 32  # rows of w that a thread takes at the least
_DEPTH = 576  # columns of a weight panel that are decoded at a time; they stay in the L2 cache
_INT8_DEPTH = 2048  # the same for int8 weights
FEW = 8  # rows of x up to which the weights' bandwidth, not arithmetic, decides
_FLOAT_FORMS = {dtypes.float32: "f32", dtypes.bfloat16: "bf16", dtypes.float16: "f16"}
_GROUP_SHIFTS = {32: 0, 64: 1, 128: 2}  # blocks of 32 -> groups


def _form(weight: Weight) -> str | None:
    """The kernels' name for how a weight is stored; None if they do not read it."""
    if isinstance(weight, Tensor):
        return _FLOAT_FORMS.get(weight.dtype)
    scheme = weight.scheme
    if scheme.is_block:
        return scheme.name
    if scheme.activations_int8:
        return "w8a8"
    return "i8g" if scheme.group_size else "i8"


def _supports(
    x: Tensor, weight: Weight, bias: Tensor | None, residual: Tensor | None, dtype: np.dtype
) -> str | None:
    for part in (x, bias, residual):
        if part is not None and part.dtype != dtypes.float32:
            return f"dtype {part.dtype} is not float32"
    if dtype != dtypes.float32:
        return f"result dtype {dtype} is not float32"
    if _form(weight) is None:
        return f"no kernel for {weight!r}"
    if weight.shape[1] == 0:
        return "K is 0"
    return None


def _stored(weight: Weight, backend: NumpyBackend) -> tuple[np.ndarray, np.ndarray | None, int]:
    """(the stored rows, their scales or None, log2 of the blocks of 32 that share a scale)."""
    if isinstance(weight, Tensor):
        return backend.dense(weight.data), None, 0
    if weight.scheme.is_block:
        return backend.dense(weight.parts["blocks"].data), None, 0
    values, scales = (backend.dense(weight.parts[n].data) for n in ("values", "scales"))
    return values, scales, _GROUP_SHIFTS.get(weight.scheme.group_size, 0)


def _linear(
    x: Tensor, weight: Weight, bias: Tensor | None, residual: Tensor | None, dtype: np.dtype
) -> Tensor:
    backend: NumpyBackend = x.backend  # type: ignore[assignment]
    N, K = weight.shape
    out = backend.empty((*x.shape[:-1], N))
    source = backend.dense(x.data)
    rows, scales, shift = _stored(weight, backend)
    extra = [backend.dense(t.data) if t is not None else None for t in (bias, residual)]
    M = out.size // N if N else 0
    p = [0] * layout.LINEAR_PARAMS
    p[layout.X], p[layout.LDX] = address(source), K
    p[layout.W], p[layout.ROW_BYTES] = address(rows), rows.strides[0]
    if scales is not None:
        p[layout.SCALES], p[layout.SCALES_PER_ROW] = address(scales), scales.shape[1]
    p[layout.SHIFT], p[layout.Y], p[layout.LDY] = shift, address(out), N
    p[layout.M], p[layout.N], p[layout.K] = M, N, K
    if extra[0] is not None:
        p[layout.BIAS] = address(extra[0])
    if extra[1] is not None:
        p[layout.RESIDUAL], p[layout.LDR] = address(extra[1]), N
    reads = [a for a in (source, rows, scales, *extra) if a is not None]
    form = _form(weight)
    assert form is not None
    if M <= FEW:
        _gemv(backend, p, form, (M, N, K), reads, out)
    elif M:
        _gemm(backend, p, form, (M, N, K), reads, out)
    return Tensor.wrap(out, backend)


def _gemv(backend: NumpyBackend, p: list[int], form: str, sizes, reads, out) -> None:
    M, N, K = sizes
    columns = next(c for c in (1, 2, 4, 8) if c >= M)
    kernel, constants = "linear.gemv", {"form": form, "columns": columns}
    if form in _PACKED_X:
        kernel, constants = _PACKED_X[form][1], {"columns": columns}
        packed = _pack(backend, p, form, M, K, reads[0])
        p[layout.PACKED] = address(packed)
        reads = [*reads, packed]
    backend.launch(kernel, p, items=N, grain=_GRAIN, reads=reads, writes=[out], **constants)


def _digit_bytes(M: int, K: int) -> tuple[int, int]:
    lanes = jit.target().lanes
    blocks, step = K // 32, lanes // 4
    steps = -(-blocks // step)
    return M * steps * layout.digit_record(lanes), M * steps * step


def _record_bytes(M: int, K: int) -> tuple[int, int]:
    return M * (64 + -(-K // 32) * 64), M


# Forms whose kernels want x in integers: (kernel that makes them, kernel that uses them, function
# of M and K that gives the bytes they take and the items that make them).
_PACKED_X = {
    "q4_1": ("digits.split", "digits.gemv", _digit_bytes),
    "w8a8": ("int8.quantize_rows", "int8.gemv", _record_bytes),
}


def _pack(
    backend: NumpyBackend, p: list[int], form: str, M: int, K: int, x: np.ndarray
) -> np.ndarray:
    """x in the integers that kernels of `form` multiply; a program makes them once for each x."""
    maker, _, size = _PACKED_X[form]
    recorder = backend.recorder
    known = recorder.derived(maker, x) if recorder is not None else None
    if known is not None:
        return known
    nbytes, items = size(M, K)
    packed = backend.empty((nbytes,), np.uint8)
    q = [*p]
    q[layout.PACKED] = address(packed)
    backend.launch(maker, q, items=items, grain=8, reads=[x], writes=[packed])
    if recorder is not None:
        recorder.remember(maker, x, packed)
    return packed


def _gemm(backend: NumpyBackend, p: list[int], form: str, sizes, reads, out) -> None:
    M, N, K = sizes
    if form == "w8a8" and jit.target().int8_dot:
        _gemm_int8(backend, p, sizes, reads, out)
        return
    if form == "w8a8":  # x rounded, then the product of form i8
        rounded = backend.empty((M, K))
        q = [*p]
        q[layout.PACKED] = address(rounded)
        backend.launch("int8.round_rows", q, items=M, grain=8, reads=reads, writes=[rounded])
        p[layout.X], p[layout.LDX], form = address(rounded), K, "i8"
        reads = [*reads, rounded]
    target = jit.target()
    tile_rows, columns = target.tile[0], target.tile[1] * target.lanes
    tiles, depth = -(-M // tile_rows), -(-K // 32) * 32
    packed = backend.empty((tiles * depth * tile_rows,))
    p[layout.PACKED] = address(packed)
    items = _share_out(p, tiles, -(-N // columns))
    backend.launch("gemm.pack", p, items=tiles, grain=2, reads=reads, writes=[packed])
    backend.launch(
        "gemm.gemm", p, items=items, grain=1, reads=[*reads, packed], writes=[out],
        form=form, depth=_DEPTH,
    )  # fmt: skip


def _share_out(p: list[int], tiles: int, panels: int) -> int:
    """Sets how many tiles an item takes against its panel, which is decoded once for each item."""
    groups = min(tiles, max(1, _LEAST_ITEMS // panels))
    p[layout.TILES_PER_ITEM] = -(-tiles // groups)
    return panels * -(-tiles // p[layout.TILES_PER_ITEM])


def _gemm_int8(backend: NumpyBackend, p: list[int], sizes, reads, out) -> None:
    M, N, K = sizes
    target = jit.target()
    tile_rows, columns = target.tile[0], target.tile[1] * target.lanes
    tiles, group = -(-M // tile_rows), layout.int8_group(target.int8_dot)
    size = layout.int8_tile(K, tile_rows, group * target.lanes, group)
    packed = backend.empty((tiles * size,), np.uint8)
    p[layout.PACKED] = address(packed)
    items = _share_out(p, tiles, -(-N // columns))
    backend.launch("int8_gemm.pack", p, items=tiles, grain=1, reads=reads, writes=[packed])
    backend.launch(
        "int8_gemm.product", p, items=items, grain=1, reads=[*reads, packed], writes=[out],
        depth=_INT8_DEPTH,
    )  # fmt: skip


KERNELS = {"linear": Kernel(_linear, _supports)}
