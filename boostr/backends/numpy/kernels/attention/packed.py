"""Packed keys and values (see `boostr/quant/kv.py`): rows of one head, rounded and read back.

Attention reads tiles of keys and values through tables of row addresses. Packed rows have numbers
instead, and `reader` turns a tile of one head into floats beside a table of where these are.
"""

from numba import float32, float64

from boostr.backends.numpy.kernels.runtime import layout_ops as at
from boostr.backends.numpy.kernels.runtime.memory import (
    bf16,
    f32,
    float_param,
    i8,
    i64,
    load,
    load_n,
    store,
    store_n,
    u8,
)
from boostr.backends.numpy.kernels.runtime.simd import (
    LANES,
    bits_i32,
    inline,
    maximum,
    minimum,
    rint,
    to_f32,
    to_i32,
)
from boostr.backends.numpy.kernels.runtime.vmath import largest_bits, reduce_max, reduce_min

KV_HEADS, WIDTH, V_WIDTH = at.KV_HEADS, at.WIDTH, at.V_WIDTH
K_CODES, K_SCALES, V_CODES, V_SCALES = at.K_CODES, at.K_SCALES, at.V_CODES, at.V_SCALES
GROUP = 32  # of int4
INFINITE = 0x7F800000  # bits of infinity; those of nan are more
NAN = float("nan")


# -- reading ---------------------------------------------------------------------------------------
@inline
def _read_int8(codes, scales, row, D, to):
    source, scale = i8(codes) + row * D, f32(scales)[row]
    whole = D - D % LANES
    for d in range(0, whole, LANES):
        store(to, d, load(source, d) * scale)
    if whole < D:
        store_n(to, whole, load_n(source, whole, D - whole) * scale, D - whole)


@inline
def _read_int4(codes, scales, row, D, to):
    source, pairs = u8(codes) + row * (D // 2), bf16(scales) + row * (D // 16)
    for d in range(0, D, GROUP):
        scale, floor = pairs[d // 16], pairs[d // 16 + 1]
        for e in range(0, 16, LANES):
            both = to_i32(load(source, d // 2 + e))
            store(to, d + e, to_f32(both & 15) * scale + floor)
            store(to, d + e + 16, to_f32(both >> 4) * scale + floor)


def reader(form: str, tile: int):
    """An inline tile(params, keys, values, n, kv, room) for head `kv` of n <= `tile` rows.

    Gives the tables that n keys and their values are read through, and the elements at which the
    head begins in these rows. `room`: where as many floats are as `room_of` says.
    """
    if form == "float":

        @inline
        def plain(params, keys, values, n, kv, room):
            return keys, values, kv * params[WIDTH], kv * params[V_WIDTH]

        return plain
    read = _read_int8 if form == "int8" else _read_int4

    @inline
    def unpacked(params, keys, values, n, kv, room):
        K, D, Dv = params[KV_HEADS], params[WIDTH], params[V_WIDTH]
        wide_keys, wide_values = i64(room), i64(room) + tile
        key = room + 16 * tile
        value = key + 4 * tile * D
        for j in range(n):
            read(params[K_CODES], params[K_SCALES], keys[j] * K + kv, D, f32(key))
            read(params[V_CODES], params[V_SCALES], values[j] * K + kv, Dv, f32(value))
            wide_keys[j], wide_values[j] = key, value
            key, value = key + 4 * D, value + 4 * Dv
        for j in range(n, tile):
            wide_keys[j] = wide_keys[0]
        return wide_keys, wide_values, 0, 0

    return unpacked


def room_of(form: str, tile: int, widths: int) -> int:
    """Floats that a `reader` wants for heads of so many numbers, those of keys and values."""
    return 1 if form == "float" else tile * (4 + widths)


# -- writing ---------------------------------------------------------------------------------------
@inline
def _code(x, inverse, least, most):
    # from float64, where a product with the inverse is near enough to the quotient
    quotient = rint(float32(float64(x) * inverse))
    return int(min(max(quotient, float32(least)), float32(most)))


@inline
def _write_int8(x, codes, scales, row, D):
    to, top = i8(codes) + row * D, largest_bits(x, 0, D)
    scale = float32(float64(float_param(top)) / 127.0)
    f32(scales)[row] = scale if top < INFINITE else float32(NAN)
    inverse = 1.0 / float64(scale) if 0 < top < INFINITE else 0.0
    for d in range(D):
        to[d] = _code(x[d], inverse, -127.0, 127.0)


@inline
def _put_bf16(pairs, i, x):
    """Writes x, rounded, as element i of bf16 bytes; gives what was written."""
    bits = bits_i32(float32(x))
    high = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    pairs[2 * i] = high & 255
    pairs[2 * i + 1] = (high >> 8) & 255
    return float_param(high << 16)


@inline
def _write_int4(x, codes, scales, row, D):
    to, pairs = u8(codes) + row * (D // 2), u8(scales) + row * (D // 8)
    for d in range(0, D, GROUP):
        low, high = load(x, d), load(x, d)
        for e in range(d, d + GROUP, LANES):
            low, high = minimum(low, load(x, e)), maximum(high, load(x, e))
        if largest_bits(x, d, d + GROUP) < INFINITE:
            floor = _put_bf16(pairs, d // 16 + 1, reduce_min(low))
            step = float64(reduce_max(high) - floor) / 15.0
            scale = _put_bf16(pairs, d // 16, step)
        else:
            floor = _put_bf16(pairs, d // 16 + 1, 0.0)
            scale = float32(0.0)
            pairs[d // 8], pairs[d // 8 + 1] = 0xC0, 0x7F
        inverse = 1.0 / float64(scale) if scale > 0 else 0.0
        for e in range(16):
            first = _code(x[d + e] - floor, inverse, 0.0, 15.0)
            second = _code(x[d + e + 16] - floor, inverse, 0.0, 15.0)
            to[d // 2 + e] = first | (second << 4)


WRITERS = {"int8": _write_int8, "int4": _write_int4}
