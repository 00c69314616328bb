"""Schemes that the table might have, one of every kind: random planes, and what they mean in
float64. Kernels are tested with them, whatever formats the readers know."""

from __future__ import annotations

import numpy as np
from draws import normal

from boostr.quant.scheme import Scheme

FP4 = tuple(sign * v for sign in (1.0, -1.0) for v in (0.0, 1, 2, 3, 4, 6, 8, 12))
NF4 = tuple(np.float32(np.tanh((i - 7.3) / 6)).item() for i in range(16))
INTEGERS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
K_QUANT = {"scale": "i8", "super_size": 256, "offsets": "u8", "multiple": 256}
TOYS = (
    Scheme("int8-g8", 8),
    Scheme("int8-bf16", 32, scale="bf16"),
    Scheme("int8-g96", 96, scale="f16"),
    Scheme("int8-offsets", 64, offsets="f16"),
    Scheme("int8-f16-row", 0, scale="f16"),
    Scheme("int8-zeros", 128, scale="f16", offsets="zeros"),
    Scheme("uint8-offsets", 64, zero=-128, scale="bf16", offsets="bf16"),
    Scheme("e4m3", 0, values="e4m3"),
    Scheme("e4m3-g128", 128, values="e4m3"),
    Scheme("e4m3-e8m0", 32, values="e4m3", scale="e8m0"),
    Scheme("int6-g32", 32, bits=6, zero=32, scale="f16", multiple=32),
    Scheme("int6-g16-offsets", 16, bits=6, offsets="f16", multiple=32),
    Scheme("int6-row", 0, bits=6, zero=32, multiple=32),
    Scheme("int5-g32", 32, bits=5, zero=16, scale="f16", multiple=32),
    Scheme("int5-offsets", 32, bits=5, scale="f16", offsets="f16", multiple=32),
    Scheme("int5-floors", 32, bits=5, **K_QUANT),
    Scheme("int4-row", 0, bits=4, zero=8, multiple=32),
    Scheme("int4-g16", 16, bits=4, zero=8, scale="f16", multiple=32),
    Scheme("int4-g64", 64, bits=4, zero=8, scale="f16", multiple=64),
    Scheme("int4-g96", 96, bits=4, zero=8, scale="bf16", multiple=32),
    Scheme("int4-g96-zeros", 96, bits=4, scale="f16", offsets="zeros", multiple=32),
    Scheme("int4-g128-offsets", 128, bits=4, scale="f16", offsets="f16", multiple=128),
    Scheme("int4-g128-zeros", 128, bits=4, scale="bf16", offsets="zeros", multiple=128),
    Scheme("int4-zero-3-offsets", 32, bits=4, zero=3, offsets="f32", multiple=32),
    Scheme("int4-supers", 32, bits=4, zero=8, scale="i8", super_size=256, multiple=256),
    Scheme("int4-floors", 32, bits=4, **K_QUANT),
    Scheme("fp4-e8m0", 32, bits=4, values=FP4, scale="e8m0", factor=0.5, multiple=32),
    Scheme(
        "fp4-e4m3", 16, bits=4, values=FP4, scale="e4m3", factor=0.5, super_size=256, multiple=32
    ),
    Scheme("table4-supers", 32, bits=4, values=FP4, scale="i8", super_size=256, multiple=256),
    Scheme("table4-integers", 32, bits=4, values=INTEGERS, scale="f16", multiple=32),
    Scheme("nf4", 64, bits=4, values=NF4, multiple=64),
    Scheme("int3-g32-zeros", 32, bits=3, scale="f16", offsets="zeros", multiple=32),
    Scheme("int3-supers", 16, bits=3, zero=4, scale="i8", super_size=256, multiple=256),
    Scheme("table3-supers", 16, bits=3, values=FP4[4:12], scale="i8", super_size=256, multiple=256),
    Scheme("table3-integers", 16, bits=3, values=INTEGERS[4:12], scale="f16", multiple=32),
    Scheme("int2-floors", 16, bits=2, **K_QUANT),
    Scheme("int2-g64", 64, bits=2, zero=1, scale="f16", multiple=64),
    Scheme("int2-g256", 256, bits=2, zero=1, scale="f16", multiple=256),
)


def drawn(rng, scheme, N, K):
    """Random planes."""
    parts = {}
    for name, part in scheme.parts.items():
        shape = (N, part.columns(K))
        if name == "scales" and scheme.scale == "e8m0":
            parts[name] = rng.integers(119, 125, shape).astype(np.uint8)
        elif name == "scales" and scheme.scale == "e4m3":
            parts[name] = rng.integers(1, 0x7F, shape).astype(np.uint8)
        elif part.dtype.kind in "iu":
            parts[name] = rng.integers(0, 256, shape).astype(np.uint8).view(part.dtype)
        else:
            parts[name] = normal(rng, shape, part.dtype, 0.05)
    if scheme.values == "e4m3":
        nan = (parts["codes"] & 0x7F) == 0x7F
        parts["codes"][nan] ^= 1
    return parts


def bits_of(plane, bits, k):
    """Field k of a plane of so many bits: 32 inputs lie together."""
    group, i = divmod(k, 32)
    size = 4 * bits
    return plane[:, size * group + i % size] >> bits * (i // size) & (1 << bits) - 1


def byte_float(raw, kind):
    """The number of an 8-bit float: exponent and fraction taken apart. OCP 8-bit floating point."""
    raw = raw.astype(np.int64)
    if kind == "e8m0":
        return np.ldexp(1.0, raw - 127)
    exponent, fraction = raw >> 3 & 15, raw & 7
    size = np.where(exponent == 0, np.ldexp(fraction, -9), np.ldexp(8 + fraction, exponent - 10))
    return np.where(raw & 128, -size, size)


def number_of(scheme, parts, k):
    """What code k of each row stands for."""
    if scheme.bits == 8:
        raw = parts["codes"][:, k]
        return byte_float(raw, "e4m3") if scheme.values else raw.astype(np.float64)
    low, *high = {6: (4, 2), 5: (4, 1), 4: (4,), 3: (2, 1), 2: (2,)}[scheme.bits]
    code = bits_of(parts["codes"], low, k)
    if high:
        code = code | bits_of(parts["high"], high[0], k) << low
    return np.array(scheme.values)[code] if scheme.values else code.astype(np.float64)


def meaning(scheme, parts, K):
    """factor scale (number - zero) + offset in float64, one column at a time."""
    out = []
    for k in range(K):
        g = k // scheme.group_size if scheme.group_size else 0
        scale = parts["scales"][:, g]
        eighths = scheme.scale in ("e8m0", "e4m3")
        scale = byte_float(scale, scheme.scale) if eighths else scale.astype(np.float64)
        scale = scale * scheme.factor
        if scheme.super_size:
            scale = scale * parts["supers"][:, k // scheme.super_size]
        zero = parts["zeros"][:, g].astype(np.float64) if "zeros" in parts else 0
        offset = parts["offsets"][:, g].astype(np.float64) if "offsets" in parts else 0
        if "floors" in parts:
            offset = offset * parts["floors"][:, k // scheme.super_size]
        out.append(scale * (number_of(scheme, parts, k) - scheme.zero - zero) + offset)
    return np.stack(out, 1)
