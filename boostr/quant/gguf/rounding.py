"""Floats as the nearest blocks of a GGUF type: scales are searched for, group by group.

A group is rounded under several scales near the one that reaches its extreme; of each the best
scale for the codes that come out (weighted least squares) is taken, and the one with the least
error kept. Under a superblock these scales become integers, and codes are rounded once more.
Source of the search: make_qx_quants and make_qkx2_quants of ggml-quants.c.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np

from boostr import env
from boostr.errors import NumericsError, OptionError
from boostr.quant.gguf import BLOCK_TYPES, Parts, blocks
from boostr.quant.pack import pack_codes
from boostr.quant.scheme import Scheme

# of types with a superblock: what a group's scale is at most, as an integer; -32 .. 31 and so on
# where there are no offsets
_LIMITS = {"q2_k": 15, "q3_k": 32, "q4_k": 63, "q5_k": 63, "q6_k": 128, "iq4_xs": 32}
_PIECE = 1 << 17  # weights that one thread rounds at a time: what caches hold
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
    step = max(1, _PIECE // max(x.shape[1], 1))
    pieces = [x[start : start + step] for start in range(0, len(x), step)]
    with ThreadPoolExecutor(env.num_threads()) as pool:
        return np.concatenate(list(pool.map(partial(_blocks, kind), pieces)))


def _blocks(kind: str, x: np.ndarray) -> np.ndarray:
    scheme = BLOCK_TYPES[kind].scheme
    groups = x.reshape(len(x), -1, scheme.group_size)
    with np.errstate(over="ignore", invalid="ignore"):
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
    nearest = _nearest(scheme)
    if scheme.bits == 8:  # no search: what all writers of Q8_0 do
        scales = np.abs(x).max(2) / np.float32(127)
    else:
        scales = _best_scales(x, scheme)
    if not scheme.super_size:
        scales = scales.astype(np.float16)
        codes = nearest.codes(_divided(x, scales.astype(np.float32)))
        return {**_packed(scheme, codes), "scales": scales}
    limit = _LIMITS[scheme.name]
    whole = scales.reshape(len(x), -1, scheme.super_size // scheme.group_size)
    supers = _extreme(whole) / np.float32(-limit)
    supers = supers.astype(np.float16).astype(np.float32)
    small = np.clip(np.rint(_divided(whole, supers)), -limit, limit - 1)
    final = (small * supers[..., None]).reshape(scales.shape)
    codes = nearest.codes(_divided(x, final))
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
    nearest = _nearest(scheme)
    top = np.abs(x).max(2)
    first = np.floor(np.log2(np.where(top > 0, top, 1))) - 2
    best, codes, scales = np.full(top.shape, np.inf), np.zeros(x.shape, np.uint8), first * 0
    for exponent in (first - 1, first, first + 1):
        exponent = np.clip(exponent, -126, 126)
        scale = np.exp2(exponent).astype(np.float32) * np.float32(scheme.factor)
        found = nearest.codes(x / scale[..., None])
        error = ((scale[..., None] * nearest.numbers[found] - x) ** 2).sum(2)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, exponent + 127, scales)
        codes = np.where(better[..., None], found, codes)
    return {**_packed(scheme, codes), "scales": scales.astype(np.uint8)}


def _best_scales(x: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The scale of each group [N, G] of x [N, G, group], so that scale · number is nearest to x."""
    nearest = _nearest(scheme)
    lowest = float(nearest.numbers.min())
    step = 0.0125 * lowest if nearest.is_even else lowest / 127
    extreme, x = _extreme(x), _turned(x)
    shape, extreme = extreme.shape, extreme.reshape(-1)
    weights = _weights(x)
    products, t, found = weights * x, np.empty_like(x), np.empty_like(x)
    best, scales = np.zeros_like(extreme), np.zeros_like(extreme)
    for i in range(-9, 10):
        inverse = _divided(np.full_like(extreme, lowest + i * step), extreme)
        nearest.found(np.multiply(x, 2 * inverse, out=t), found)
        product = _sum(np.multiply(products, found, out=t))
        square = _sum(np.multiply(np.multiply(weights, found, out=t), found, out=t))
        gain = _divided(product * product, square)
        better = gain > best
        best = np.where(better, gain, best)
        scales = np.where(better, _divided(product, square), scales)
    return scales.reshape(shape)


def _best_affine(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(scale, least number, which is 0 or less) of each group, for codes 0 .. top."""
    shape, x = x.shape[:2], _turned(x)
    w, least = _weights(x), np.minimum(x.min(0), 0)
    above, span = x - least, x.max(0) - least
    codes, t, u = (np.empty_like(x) for _ in range(3))
    total, sums = _sum(w), _sum(np.multiply(w, x, out=t))
    best, scales, offsets = np.full_like(span, np.inf), span / np.float32(top), least
    for i in range(-10, 11):
        inverse = _divided(np.full_like(span, top + 0.1 * i), span)
        np.rint(np.multiply(above, inverse, out=codes), out=codes)
        np.minimum(codes, np.float32(top), out=codes)
        one = _sum(np.multiply(w, codes, out=t))
        two, cross = (_sum(np.multiply(t, other, out=u)) for other in (codes, x))
        minor = total * two - one * one
        scale = _divided(total * cross - sums * one, minor)
        offset = _divided(two * sums - one * cross, minor)
        over = offset > 0
        scale, offset = np.where(over, _divided(cross, two), scale), np.where(over, 0, offset)
        np.multiply(codes, scale, out=t)
        t += offset
        t -= x
        error = _sum(np.multiply(w, np.multiply(t, t, out=t), out=t))
        better = (error < best) & (minor > 0)
        best = np.where(better, error, best)
        scales, offsets = np.where(better, scale, scales), np.where(better, offset, offsets)
    scales = np.maximum(scales, 0).astype(np.float32)
    return scales.reshape(shape), offsets.astype(np.float32).reshape(shape)


def _turned(x: np.ndarray) -> np.ndarray:
    """Groups [N, G, group] as [group, N · G]: what is done to all groups runs along memory."""
    return np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T)


def _sum(x: np.ndarray) -> np.ndarray:
    """Over groups [group, M]: eight sums of every eighth number, then these in pairs."""
    eight = x.reshape(-1, 8, x.shape[1]).sum(0)
    four = eight[::2] + eight[1::2]
    two = four[::2] + four[1::2]
    return two[0] + two[1]


def _weights(x: np.ndarray) -> np.ndarray:
    """How much the error of each number of groups [group, M] counts: more for large ones."""
    return np.sqrt(_sum(x * x) / np.float32(len(x))) + np.abs(x)


def _extreme(x: np.ndarray) -> np.ndarray:
    """The number farthest from 0 along the last axis, with its sign."""
    at = np.abs(x).argmax(-1)[..., None]
    return np.take_along_axis(x, at, -1)[..., 0]


def _divided(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    """x / by, and 0 where `by` is; `by` may lack the last axis."""
    by = by if by.ndim == x.ndim else by[..., None]
    return np.divide(x, by, out=np.zeros_like(x), where=by != 0)


class _Nearest:
    """Of the whole numbers that codes stand for, the one nearest to a float; of two the lower.

    Attributes:
        numbers: float32, by code, the zero taken off.   is_even: whether their steps are alike.
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        self.is_even = len(set(np.diff(ordered))) == 1
        self._first, self._last = ordered[0], ordered[-1]
        # twice the middles between neighbours are whole: twice a float, rounded up, says enough
        edges = ordered[1:] + ordered[:-1]
        self._edges = edges[0], edges[-1] + 1
        rank = np.searchsorted(edges, np.arange(edges[0], edges[-1] + 2))
        self._codes, self._found = order[rank].astype(np.uint8), ordered[rank]

    def found(self, twice: np.ndarray, out: np.ndarray) -> None:
        """The numbers nearest to floats that come doubled, and are overwritten."""
        np.ceil(twice, out=twice)
        if self.is_even:
            np.floor(np.multiply(twice, np.float32(0.5), out=twice), out=out)
            np.clip(out, self._first, self._last, out=out)
        else:
            np.take(self._found, self._index(twice), out=out, mode="clip")

    def codes(self, x: np.ndarray) -> np.ndarray:
        """The codes uint8 of the numbers nearest to floats."""
        return self._codes[self._index(np.ceil(2 * x))]

    def _index(self, halves: np.ndarray) -> np.ndarray:
        low, high = self._edges
        return (np.clip(halves, low, high) - low).astype(np.intp)


@cache
def _nearest(scheme: Scheme) -> _Nearest:
    if scheme.values:
        return _Nearest(np.array(scheme.values, np.float32))
    if scheme.bits == 8:
        return _Nearest(np.arange(-128, 128, dtype=np.float32))
    return _Nearest(np.arange(1 << scheme.bits, dtype=np.float32) - scheme.zero)


def _packed(scheme: Scheme, codes: np.ndarray) -> Parts:
    codes = codes.reshape(len(codes), -1)
    if scheme.bits == 8:
        return {"codes": (codes ^ 128).view(np.int8)}
    return pack_codes(codes, scheme.bits)
