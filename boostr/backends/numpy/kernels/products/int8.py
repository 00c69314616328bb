"""w8a8: both sides in int8, products summed exactly in int32.

    y[m, n] = s[m] t[n] sum over k of q[m, k] w[n, k]   (+ bias) (+ residual)

q[m] = rint(x[m] / s[m]) with s[m] = max|x[m]| / 127, halves to even; w int8 [N, K] with scales t
[N]. The sum fits int32 for K < 133000. q is kept as int16, which is what `vpmaddwd` (or `vpdpwssd`)
multiplies with sign-extended weights, two products to a lane.

`quantize_rows` writes for each row of x a record: s as f32 in 64 bytes, then K int16 filled up with
zeros to whole blocks. `round_rows` writes s q as f32 [M, K] instead: with that, `gemm.py` of
form i8 is the same product for many rows, up to f32 rounding of the sum; for processors on which
`int8_gemm.py` has nothing to offer.
"""

from llvmlite import ir
from numba import float32, float64, types

from boostr.backends.numpy.kernels.products.ahead import rows_ahead
from boostr.backends.numpy.kernels.products.codes import BLOCK
from boostr.backends.numpy.kernels.products.linear import finish
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.kernels.runtime.memory import (
    count_mask,
    emit_read,
    f32,
    float_param,
    i32,
    load_n,
    prefetch,
    put,
    spread,
    stack,
    store_n,
)
from boostr.backends.numpy.kernels.runtime.simd import (
    I8,
    I16,
    I32,
    I64,
    LANES,
    bits_i32,
    call,
    divide,
    fill,
    inline,
    intrinsic,
    maximum,
    minimum,
    rint,
    signature,
    to_i32,
)
from boostr.backends.numpy.kernels.runtime.vmath import largest_bits, reduce_add
from boostr.backends.numpy.runtime import jit

X, LDX, CODES, SCALES = layout.X, layout.LDX, layout.CODES, layout.SCALES
M, K, PACKED = layout.M, layout.K, layout.PACKED
HEAD = 64  # bytes before the int16 of a record
_VI, _VS, _VB = (ir.VectorType(e, n) for e, n in ((I32, LANES), (I16, 2 * LANES), (I8, 2 * LANES)))


@intrinsic
def store_i16(typingctx, address, value):
    """Writes an i32 vector as int16."""

    def codegen(context, builder, sig, args):
        narrow = ir.VectorType(I16, LANES)
        where = builder.inttoptr(args[0], ir.PointerType(narrow))
        builder.store(builder.trunc(args[1], narrow), where, align=2)
        return context.get_dummy_value()

    return signature(types.none, address, value), codegen


@inline
def row_scale(x, length):
    """max|x| / 127 of a row, nan if an element is: as bits, nan is above infinity."""
    return float32(float64(float_param(largest_bits(x, 0, length))) / 127.0)


@inline
def _whole(x, k, length, scale):
    """The values of LANES elements; a row of zeros has scale 0 and stays zero."""
    divisor = scale if scale > 0 else float32(1.0)
    return maximum(minimum(rint(divide(load_n(x, k, length - k), divisor)), 127.0), -127.0)


@inline
def record_bytes(length):
    """Bytes of the record of one row."""
    return HEAD + (length + BLOCK - 1) // BLOCK * BLOCK * 2


def quantize_rows():
    """Item m is row m of x; writes its record at PACKED."""

    def kernel(params, start, stop):
        length = params[K]
        size = record_bytes(length)
        for m in range(start, stop):
            x, record = f32(params[X]) + m * params[LDX], params[PACKED] + m * size
            scale = row_scale(x, length)
            f32(record)[0] = scale
            for k in range(0, (length + BLOCK - 1) // BLOCK * BLOCK, LANES):
                store_i16(record + HEAD + k * 2, to_i32(_whole(x, k, length, scale)))

    return kernel


def round_rows():
    """Item m is row m of x; writes it rounded, f32 [K], to PACKED + 4 K m."""

    def kernel(params, start, stop):
        length = params[K]
        for m in range(start, stop):
            x = f32(params[X]) + m * params[LDX]
            y = f32(params[PACKED]) + m * length
            scale = row_scale(x, length)
            for k in range(0, length, LANES):
                store_n(y, k, _whole(x, k, length, scale) * scale, length - k)

    return kernel


def _madd(builder, total, a, b):
    """total += a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1] for int16 vectors of 2 LANES."""
    here = jit.target()
    if here.vnni and LANES == 16:
        words = [builder.bitcast(value, _VI) for value in (a, b)]
        return call(builder, "llvm.x86.avx512.vpdpwssd.512", _VI, [total, *words])
    name = {
        16: "llvm.x86.avx512.pmaddw.d.512" if here.has("avx512bw") else None,
        8: "llvm.x86.avx2.pmadd.wd" if here.has("avx2") else None,
        4: "llvm.x86.sse2.pmadd.wd" if here.has("sse2") else None,
    }[LANES]
    if name:
        return builder.add(total, call(builder, name, _VI, [a, b]))
    wide = ir.VectorType(I32, 2 * LANES)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    for part in range(2):
        order = ir.Constant(_VI, [2 * i + part for i in range(LANES)])
        total = builder.add(total, builder.shuffle_vector(products, products, order))
    return total


def _multiply(rows, records, offset, acc, count=None):
    """(signature, code) of a step of BLOCK elements at element `offset`."""

    def codegen(context, builder, sig, args):
        out = [builder.extract_value(args[3], i) for i in range(len(acc))]
        for part in range(0, BLOCK, 2 * LANES):
            at = builder.add(args[2], I64(part))
            mask = None
            if count is not None:
                mask = count_mask(builder, builder.sub(args[4], I64(part)), 2 * LANES)
            xs = []
            for c in range(len(records)):
                where = builder.add(builder.extract_value(args[1], c), builder.mul(at, I64(2)))
                xs.append(builder.load(builder.inttoptr(where, ir.PointerType(_VS)), align=2))
            for r in range(len(rows)):
                where = builder.add(builder.extract_value(args[0], r), at)
                raw = emit_read(builder, builder.inttoptr(where, ir.PointerType(_VB)), _VB, mask)
                wide = builder.sext(raw, _VS)
                for c, x in enumerate(xs):
                    i = r * len(records) + c
                    out[i] = _madd(builder, out[i], wide, x)
        return context.make_tuple(builder, acc, out)

    tail = () if count is None else (types.int64,)
    return signature(acc, rows, records, types.int64, acc, *tail), codegen


@intrinsic
def multiply(typingctx, rows, records, offset, acc):
    """acc[r, m] += products of the 32 elements from `offset` on."""
    return _multiply(rows, records, offset, acc)


@intrinsic
def multiply_n(typingctx, rows, records, offset, acc, count):
    """`multiply` of which only `count` elements of w exist."""
    return _multiply(rows, records, offset, acc, count)


def gemv(columns: int, rows: int = 2):
    """Item n is row n of w; `columns` >= M quantized rows of x; `rows` rows of w at a time."""
    tile, step = rows * columns, BLOCK * rows

    def kernel(params, start, stop):
        length, count = params[K], params[M]
        whole, size = length // BLOCK * BLOCK, record_bytes(length)
        xs = spread(columns, params[PACKED] + HEAD, size, 0, count - 1)
        results = i32(stack(tile))
        far = rows_ahead(params, rows) * params[CODES + 1]
        for n in range(start, stop, rows):
            ws = spread(rows, params[CODES], params[CODES + 1], n, stop - 1)
            acc = bits_i32(fill(tile, 0.0))
            for k in range(0, whole, BLOCK):
                prefetch(ws[0] + far + k * rows, step, 2)
                acc = multiply(ws, xs, k, acc)
            if whole < length:
                acc = multiply_n(ws, xs, whole, acc, length - whole)
            put(results, reduce_add(acc))
            for r in range(min(rows, stop - n)):
                for m in range(count):
                    scale = f32(params[SCALES])[n + r] * f32(params[PACKED] + m * size)[0]
                    finish(params, float32(results[r * columns + m]) * scale, m, n + r)

    return kernel
