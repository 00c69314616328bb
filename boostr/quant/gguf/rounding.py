"""Floats as the nearest blocks of a GGUF type: scales are searched for, group by group.

A group is rounded under several scales near the one that reaches its extreme; of each the best
scale for the codes that come out (weighted least squares) is taken, and the one with the least
error kept. Under a superblock these scales become integers, and codes are rounded once more.
Source of the search: make_qx_quants and make_qkx2_quants of ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from boostr.errors import NumericsError, OptionError
from boostr.quant.gguf import BLOCK_TYPES, Parts, blocks
from boostr.quant.pack import pack_codes
from boostr.quant.scheme import Scheme

# of types with a superblock: what a group's scale is at most, as an integer; -32 .. 31 and so on
# where there are no offsets
_LIMITS = {"q2_k": 15, "q3_k": 32, "q4_k": 63, "q5_k": 63, "q6_k": 128, "iq4_xs": 32}
ROUNDED = (
    "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS", "MXFP4",
)  # fmt: skip


def round_blocks(kind: str, x: np.ndarray) -> np.ndarray:
    """Rows float32 [N, K] as blocks uint8 [N, bytes] of a type in ROUNDED.

    Raises:
        OptionError: a type that is not written, or rows that are no whole number of blocks.
        NumericsError: numbers that are nan or infinite, or too large for the type's scales.
    """
    if kind not in ROUNDED:
        raise OptionError(f"GGUF type {kind!r} is not written; known: {', '.join(ROUNDED)}")
    block = BLOCK_TYPES[kind]
    if x.shape[1] % block.size:
        raise OptionError(f"{kind}: rows must be multiples of {block.size}, got {x.shape[1]}")
    if not np.isfinite(x).all():
        raise NumericsError(f"{kind}: the weights have numbers that are nan or infinite")
    scheme = block.scheme
    groups = x.reshape(len(x), -1, scheme.group_size)
    with np.errstate(over="ignore"):
        made = _parts(scheme, groups)
    wrong = [n for n, p in made.items() if p.dtype.kind == "f" and not np.isfinite(p).all()]
    if wrong:
        raise NumericsError(f"{kind}: the weights are too large, {', '.join(wrong)} are infinite")
    return blocks(kind, made)


def _parts(scheme: Scheme, x: np.ndarray) -> Parts:
    if scheme.scale == "e8m0":
        return _exponents(scheme, x)
    if scheme.offsets:
        return _affine_parts(scheme, x)
    numbers = _numbers(scheme)
    if scheme.bits == 8:  # no search: what all writers of Q8_0 do
        scales = np.abs(x).max(2) / np.float32(127)
    else:
        scales = _best_scales(x, numbers)
    if not scheme.super_size:
        scales = scales.astype(np.float16)
        codes = _nearest(_divided(x, scales.astype(np.float32)), numbers)
        return {**_packed(scheme, codes), "scales": scales}
    limit = _LIMITS[scheme.name]
    whole = scales.reshape(len(x), -1, scheme.super_size // scheme.group_size)
    supers = _extreme(whole) / np.float32(-limit)
    supers = supers.astype(np.float16).astype(np.float32)
    small = np.clip(np.rint(_divided(whole, supers)), -limit, limit - 1)
    final = (small * supers[..., None]).reshape(scales.shape)
    codes = _nearest(_divided(x, final), numbers)
    small = small.reshape(scales.shape).astype(np.int8)
    return {**_packed(scheme, codes), "scales": small, "supers": supers}


def _affine_parts(scheme: Scheme, x: np.ndarray) -> Parts:
    scales, least = _best_affine(x, (1 << scheme.bits) - 1)
    parts: Parts = {}
    if scheme.super_size:
        for name, above, wanted in (("scales", "supers", scales), ("offsets", "floors", -least)):
            whole = wanted.reshape(len(x), -1, scheme.super_size // scheme.group_size)
            limit = _LIMITS[scheme.name]
            top = (whole.max(2) / np.float32(limit)).astype(np.float16).astype(np.float32)
            small = np.clip(np.rint(_divided(whole, top)), 0, limit)
            final = (small * top[..., None]).reshape(wanted.shape)
            parts[name] = small.reshape(wanted.shape).astype(
                np.int8 if name == "scales" else np.uint8
            )
            parts[above] = top if name == "scales" else -top
            scales, least = (final, least) if name == "scales" else (scales, -final)
    else:
        parts = {"scales": scales.astype(np.float16), "offsets": least.astype(np.float16)}
        scales, least = (parts[name].astype(np.float32) for name in ("scales", "offsets"))
    found = np.rint(_divided(x - least[..., None], scales))
    codes = np.clip(found, 0, (1 << scheme.bits) - 1).astype(np.uint8)
    return {**_packed(scheme, codes), **parts}


def _exponents(scheme: Scheme, x: np.ndarray) -> Parts:
    """MXFP4: of the three powers of two around the largest number the one with the least error."""
    numbers = _numbers(scheme)
    top = np.abs(x).max(2)
    first = np.floor(np.log2(np.where(top > 0, top, 1))) - 2
    best, codes, scales = np.full(top.shape, np.inf), np.zeros(x.shape, np.uint8), first * 0
    for exponent in (first - 1, first, first + 1):
        exponent = np.clip(exponent, -126, 126)
        scale = np.exp2(exponent).astype(np.float32) * np.float32(scheme.factor)
        found = _nearest(x / scale[..., None], numbers)
        error = ((scale[..., None] * numbers[found] - x) ** 2).sum(2)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, exponent + 127, scales)
        codes = np.where(better[..., None], found, codes)
    return {**_packed(scheme, codes), "scales": scales.astype(np.uint8)}


def _best_scales(x: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The scale of each group [N, G] of x [N, G, group], so that scale · number is nearest to x."""
    weights, extreme = _weights(x), _extreme(x)
    lowest = numbers.min()
    step = 0.0125 * lowest if len(set(np.diff(numbers))) == 1 else lowest / 127
    best, scales = np.zeros(extreme.shape, np.float32), np.zeros(extreme.shape, np.float32)
    for i in range(-9, 10):
        inverse = _divided(np.full_like(extreme, lowest + i * step), extreme)
        found = numbers[_nearest(x * inverse[..., None], numbers)]
        product, square = (weights * x * found).sum(2), (weights * found * found).sum(2)
        gain = _divided(product * product, square)
        better = gain > best
        best = np.where(better, gain, best)
        scales = np.where(better, _divided(product, square), scales)
    return scales


def _best_affine(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(scale, least number, which is 0 or less) of each group, for codes 0 .. top."""
    w = _weights(x)
    least = np.minimum(x.min(2), 0)
    span = x.max(2) - least
    total, sums = w.sum(2), (w * x).sum(2)
    best, scales, offsets = np.full(span.shape, np.inf), span / np.float32(top), least
    for i in range(-10, 11):
        inverse = _divided(np.full_like(span, top + 0.1 * i), span)
        codes = np.clip(np.rint((x - least[..., None]) * inverse[..., None]), 0, top)
        one, two, cross = (w * codes).sum(2), (w * codes * codes).sum(2), (w * codes * x).sum(2)
        minor = total * two - one * one
        scale = _divided(total * cross - sums * one, minor)
        offset = _divided(two * sums - one * cross, minor)
        above = offset > 0
        scale, offset = np.where(above, _divided(cross, two), scale), np.where(above, 0, offset)
        error = (w * (scale[..., None] * codes + offset[..., None] - x) ** 2).sum(2)
        better = (error < best) & (minor > 0)
        best = np.where(better, error, best)
        scales, offsets = np.where(better, scale, scales), np.where(better, offset, offsets)
    return np.maximum(scales, 0).astype(np.float32), offsets.astype(np.float32)


def _weights(x: np.ndarray) -> np.ndarray:
    """How much the error of each number counts: more for large ones."""
    return np.sqrt((x * x).mean(2, keepdims=True)) + np.abs(x)


def _extreme(x: np.ndarray) -> np.ndarray:
    """The number farthest from 0 along the last axis, with its sign."""
    at = np.abs(x).argmax(-1)[..., None]
    return np.take_along_axis(x, at, -1)[..., 0]


def _divided(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    """x / by, and 0 where `by` is; `by` may lack the last axis."""
    by = by if by.ndim == x.ndim else by[..., None]
    return np.divide(x, by, out=np.zeros_like(x), where=by != 0)


def _numbers(scheme: Scheme) -> np.ndarray:
    """What codes stand for, the zero taken off: by code."""
    if scheme.values:
        return np.array(scheme.values, np.float32)
    if scheme.bits == 8:
        return np.arange(-128, 128, dtype=np.float32)
    return np.arange(1 << scheme.bits, dtype=np.float32) - scheme.zero


def _nearest(x: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The codes uint8 of the numbers that are nearest."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    middles = (ordered[1:] + ordered[:-1]) / 2
    return order.astype(np.uint8)[np.searchsorted(middles, x)]


def _packed(scheme: Scheme, codes: np.ndarray) -> Parts:
    codes = codes.reshape(len(codes), -1)
    if scheme.bits == 8:
        return {"codes": (codes ^ 128).view(np.int8)}
    return pack_codes(codes, scheme.bits)
