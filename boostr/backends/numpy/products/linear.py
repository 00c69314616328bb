"""Launches of the linear kernels: GEMV for few rows of x, a tiled product for more. See
`linear.py` and `gemm.py` in `kernels/products/`; weights are read in their stored form."""

from __future__ import annotations

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.products.planes import Weight, place, stored_form, why_not
from boostr.backends.numpy.runtime import jit, threads
from boostr.quant.forms import Form
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

_LEAST_ITEMS = 4  # pieces of work of a GEMM for each thread, so that they finish together
_GRAIN = 32  # rows of w that a thread takes at the least
DEPTH = 576  # columns of a weight panel that are decoded at a time; they stay in the L2 cache
_INT8_DEPTH = 2048  # the same of w8a8
_INTEGER_DEPTH = 2048  # the same of products of codes and integers
# by whether an instruction dots bytes: the product in integers, and the bytes of a block of its x
INTEGERS = {True: ("gemm_digits", layout.digit_block), False: ("gemm_words", layout.word_block)}
_L1 = 32 << 10  # bytes, of most processors
FEW = 8  # rows of x up to which the weights' bandwidth, not arithmetic, decides
_FEW_UNDER_WORDS = 4  # the same where `gemm_words` is the tiled product


def _supports(
    x: Tensor, weight: Weight, bias: Tensor | None, residual: Tensor | None, dtype: np.dtype,
    rounded: bool = False,
) -> str | None:  # fmt: skip
    for part in (x, bias, residual):
        if part is not None and part.dtype != dtypes.float32:
            return f"dtype {part.dtype} is not float32"
    if dtype != dtypes.float32:
        return f"result dtype {dtype} is not float32"
    return "K is 0" if weight.shape[1] == 0 else why_not(weight)


def _linear(
    x: Tensor, weight: Weight, bias: Tensor | None, residual: Tensor | None, dtype: np.dtype,
    rounded: bool = False,
) -> Tensor:  # fmt: skip
    backend: NumpyBackend = x.backend  # type: ignore[assignment]
    N, K = weight.shape
    out = backend.empty((*x.shape[:-1], N))
    source = backend.dense(x.data)
    words, planes = place(weight, backend)
    extra = [backend.dense(t.data) if t is not None else None for t in (bias, residual)]
    M = out.size // N if N else 0
    p = words + [0] * (layout.LINEAR_PARAMS - layout.PLANE_WORDS)
    p[layout.X], p[layout.LDX] = address(source), K
    p[layout.Y], p[layout.LDY] = address(out), N
    p[layout.M], p[layout.N], p[layout.K] = M, N, K
    if extra[0] is not None:
        p[layout.BIAS] = address(extra[0])
    if extra[1] is not None:
        p[layout.RESIDUAL], p[layout.LDR] = address(extra[1]), N
    reads = [source, *planes, *(a for a in extra if a is not None)]
    rounds = isinstance(weight, QuantizedTensor) and weight.scheme.activations_int8
    form = stored_form(weight)
    if M:
        product = _gemv if few_rows(form, K, rounds) >= M else _gemm
        product(backend, p, form, rounds, (M, N, K), reads, out)
    return Tensor.wrap(out, backend)


def few_rows(form: Form, K: int, rounds: bool) -> int:
    """The rows of x up to which a GEMV is faster than the tiled product."""
    if rounds:
        return 4 if jit.target().int8_dot else FEW
    if not tiles_integers(form, K):
        return FEW
    return _few_in_digits(form)


def tiles_integers(form: Form, K: int) -> bool:
    """Whether the tiled product meets codes of a form with integers of x."""
    return bool(jit.target().int8_dot) and has_integers(form, K)


def _gemv(backend: NumpyBackend, p: list[int], form: Form, rounds: bool, sizes, reads, out) -> None:
    M, N, K = sizes
    columns = next(c for c in (1, 2, 4, 8) if c >= M)
    digits = 0 if rounds else digits_of(form, columns, K)
    if rounds:
        kernel, constants = "int8.gemv", {"columns": columns}
        packed = pack(backend, p, "int8.quantize_rows", M * _record_bytes(K), M, reads[0])
    elif digits:
        kernel = "gemv_digits.gemv"
        constants = {"form": form, "columns": columns, "digits": digits}
        blocks = M * _steps(K) * (jit.target().lanes // 4)
        nbytes = M * _steps(K) * layout.digit_record(jit.target().lanes, digits)
        packed = pack(backend, p, "digits.split", nbytes, blocks, reads[0], digits=digits)
    else:
        kernel, constants, packed = "linear.gemv", {"form": form, "columns": columns}, None
        if columns <= _most_columns(form) and columns * K * 4 >= _L1:
            constants["rows"] = 4  # which share what they load of x
    if packed is not None:
        p[layout.PACKED], reads = address(packed), [*reads, packed]
    backend.launch(kernel, p, items=N, grain=_GRAIN, reads=reads, writes=[out], **constants)


def _most_columns(form: Form) -> int:
    """The rows of x that four rows of floats may meet at once: their sums and, of 16 bits, what
    they are decoded to must stay in registers."""
    if not form.is_float:
        return 0
    return 4 if form.codes == "f32" or jit.target().registers == 32 else 2


def digits_of(form: Form, rows: int, K: int) -> int:
    """The digits of x (`digits.py`); 0 where they do not know the form, or where decoding the
    weights once for all rows of x is faster.

    Two are a fifth faster than three where arithmetic decides: more than two rows, and codes of
    fewer than 8 bits. Where words are multiplied in place of bytes (`pmaddwd`), bytes and tables
    have one, of 16 bits; so have all codes where no instruction adds pairs of products of bytes.
    """
    if not has_integers(form, K) or rows > _few_in_digits(form):
        return 0
    target, wide = jit.target(), form.codes == "c8" or form.table
    if target.int8_dot == "pmaddwd":
        return 1 if wide or not target.adds_pairs else 2
    return 3 if wide and rows <= 2 else 2


def _few_in_digits(form: Form) -> int:
    """The rows of x up to which `gemv_digits.py` is fastest: fewer where it has more to do for each
    of them than what else there is: two scales a block, a table, or bytes that no instruction dots.
    Beside `gemm_words` as many for every form."""
    target = jit.target()
    if target.int8_dot == "pmaddwd":
        return _FEW_UNDER_WORDS
    if form.codes == "c8":
        return 4 if target.dots_bytes else 2
    return 2 if (form.table or form.group == 16) and target.dots_bytes else 4


def has_integers(form: Form, K: int) -> bool:
    """Whether `steps.py` gives codes of a form as integers."""
    target = jit.target()
    if form.codes[0] != "c" or K % 32 or form.super % (8 * target.lanes):
        return False
    return not form.table or (target.shuffles_bytes and all(map(_is_byte, form.table)))


def _is_byte(value: float) -> bool:
    return value % 1 == 0 and -128 <= value <= 127


def _steps(K: int) -> int:
    """Steps of a row in `gemv_digits.py`."""
    return -(-K // (8 * jit.target().lanes))


def _record_bytes(K: int) -> int:
    """Of a row of x as `int8.quantize_rows` writes it."""
    return 64 + -(-K // 32) * 64


def pack(
    backend: NumpyBackend, p: list[int], maker: str, nbytes: int, items: int, x: np.ndarray,
    grain: int = 8, **constants: int,
) -> np.ndarray:  # fmt: skip
    """x in the integers that a kernel multiplies; a program makes them once for each x."""
    recorder, key = backend.recorder, f"{maker} {constants}"
    known = recorder.derived(key, x) if recorder is not None else None
    if known is not None:
        return known
    packed = backend.empty((nbytes,), np.uint8)
    q = [*p]
    q[layout.PACKED] = address(packed)
    backend.launch(maker, q, items=items, grain=grain, reads=[x], writes=[packed], **constants)
    if recorder is not None:
        recorder.remember(key, x, packed)
    return packed


def _gemm(backend: NumpyBackend, p: list[int], form: Form, rounds: bool, sizes, reads, out) -> None:
    M, N, K = sizes
    if rounds and jit.target().int8_dot:
        _gemm_int8(backend, p, sizes, reads, out)
        return
    if rounds:  # x rounded, then the product as of other int8 weights
        rounded = backend.empty((M, K))
        q = [*p]
        q[layout.PACKED] = address(rounded)
        backend.launch("int8.round_rows", q, items=M, grain=8, reads=reads, writes=[rounded])
        p[layout.X], p[layout.LDX] = address(rounded), K
        reads = [rounded, *reads[1:]]
    target, integers = jit.target(), tiles_integers(form, K)
    family, depth, block = "gemm", DEPTH, layout.float_block
    if integers:
        family, block = INTEGERS[target.dots_bytes]
        depth = _INTEGER_DEPTH
    rows = target.tile_rows(M, integers)
    vectors = (target.digit_tile if integers else target.tile)[1]
    tiles, panels, blocks = -(-M // rows), -(-N // (vectors * target.lanes)), -(-K // 32)
    nbytes = tiles * blocks * block(rows)
    packed = pack(backend, p, f"{family}.pack", nbytes, tiles, reads[0], grain=2, rows=rows)
    p[layout.PACKED] = address(packed)
    backend.launch(
        f"{family}.product", p, items=share_out(p, tiles, panels), grain=1,
        reads=[*reads, packed], writes=[out], form=form, depth=depth, rows=rows,
    )  # fmt: skip


def share_out(p: list[int], tiles: int, panels: int) -> int:
    """Sets how many tiles an item takes against its panel, which is decoded once for each item."""
    groups = min(tiles, max(1, _LEAST_ITEMS * threads.pool().threads // panels))
    p[layout.TILES_PER_ITEM] = -(-tiles // groups)
    return panels * -(-tiles // p[layout.TILES_PER_ITEM])


def _gemm_int8(backend: NumpyBackend, p: list[int], sizes, reads, out) -> None:
    M, N, K = sizes
    target = jit.target()
    rows, columns = target.tile_rows(M, digits=False), target.tile[1] * target.lanes
    tiles, group = -(-M // rows), layout.int8_group(target.int8_dot)
    size = layout.int8_tile(K, rows, group * target.lanes, group)
    packed = backend.empty((tiles * size,), np.uint8)
    p[layout.PACKED] = address(packed)
    items = share_out(p, tiles, -(-N // columns))
    backend.launch(
        "int8_gemm.pack", p, items=tiles, grain=1, reads=reads, writes=[packed], rows=rows
    )
    backend.launch(
        "int8_gemm.product", p, items=items, grain=1, reads=[*reads, packed], writes=[out],
        depth=_INT8_DEPTH, rows=rows,
    )  # fmt: skip


KERNELS = {"linear": Kernel(_linear, _supports)}
