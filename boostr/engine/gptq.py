"""GPTQ: rounding a weight so that what it makes of the inputs that were seen changes least.

Columns are rounded one after the other, and those that come after a column take up what it leaves,
as far as inputs occur together. Columns with the largest inputs go first, under scales that stand
before, so that no order has to be stored; a group's scale is that of the range, full or narrower,
that loses least, each input weighed by its square. Source: Frantar et al. 2022, "GPTQ"; act-order
with static groups as in github.com/IST-DASLab/gptq.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from boostr import dtypes
from boostr.quant.pack import pack_codes
from boostr.quant.scheme import OFFSETS, SCALES, Scheme

DAMP = 0.01  # of the mean square of inputs, added to each: for inputs that were hardly seen
_BLOCK = 128  # columns whose effect on later ones is applied at once
_RANGES = np.arange(1.0, 0.55, -0.05, dtype=np.float32)  # of a group's whole range


def can_round(scheme: Scheme) -> bool:
    """Whether the numbers of a scheme lie in equal steps, under scales of one level."""
    floats = ("", "f32", "f16", "bf16")
    return not (scheme.values or scheme.super_size) and scheme.offsets in floats


@dataclass(frozen=True)
class Inputs:
    """What was seen of the inputs of a weight [N, K].

    Attributes:
        squares: float32 [K], the mean square of each.   order: of columns, the largest first.
        factor: float32 [K, K], upper triangular, in that order; factorᵀ factor is the inverse of
            the damped mean of x xᵀ.
    """

    squares: np.ndarray
    order: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, gram: np.ndarray) -> Inputs:
        """From the mean of x xᵀ, float64 [K, K]."""
        squares = np.diag(gram)
        order = np.argsort(-squares, kind="stable")
        damped = gram[np.ix_(order, order)]
        damped[np.diag_indices(len(damped))] += DAMP * squares.mean() + 1e-12
        factor = np.linalg.cholesky(np.linalg.inv(damped)).T
        return cls(squares.astype(np.float32), order, factor.astype(np.float32))


def gptq(w: np.ndarray, inputs: Inputs, scheme: Scheme) -> dict[str, np.ndarray]:
    """The planes of a weight float32 [N, K] in a scheme (`can_round`) whose groups divide K."""
    N, K = w.shape
    group = scheme.group_size or K
    groups = w.reshape(N, K // group, group)
    weights = inputs.squares.reshape(K // group, group)
    scales, offsets = _scaled(groups, weights, scheme)
    steps, starts = (np.repeat(x.astype(np.float32), group, 1) for x in (scales, offsets))
    numbers = _columns(w, steps, starts, inputs, _limits(scheme))
    codes = (numbers + scheme.zero).astype(scheme.parts["codes"].dtype)
    planes = {"codes": codes} if scheme.bits == 8 else pack_codes(codes, scheme.bits)
    planes |= {"scales": scales} | ({"offsets": offsets} if scheme.offsets else {})
    return {name: planes[name] for name in scheme.parts}


def _limits(scheme: Scheme) -> tuple[int, int]:
    """The least and the greatest number, of which steps are counted."""
    if scheme.offsets:
        return 0, (1 << scheme.bits) - 1
    half = 1 << scheme.bits - 1
    return (-half + (scheme.bits == 8)), half - 1  # -127..127, as ops.quantize


def _scaled(
    groups: np.ndarray, weights: np.ndarray, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray]:
    """(scales, offsets) [N, G] as they are stored, of groups [N, G, group] under weights of their
    inputs [G, group]."""
    low, high = _limits(scheme)
    if scheme.offsets:
        ends = groups.min(2), groups.max(2)
    else:
        top = np.abs(groups).max(2)
        ends = -top, top
    spread = (ends[1] - ends[0]) / (high - low)
    kinds = SCALES[scheme.scale], OFFSETS.get(scheme.offsets, dtypes.float32)
    least = np.full(spread.shape, np.inf, np.float32)
    scales, offsets = np.zeros(spread.shape, kinds[0]), np.zeros(spread.shape, kinds[1])
    for part in _RANGES:
        scale = (spread * part).astype(kinds[0])
        offset = (ends[0] * part if scheme.offsets else np.zeros_like(spread)).astype(kinds[1])
        step, start = (x.astype(np.float32)[..., None] for x in (scale, offset))
        numbers = np.rint((groups - start) / np.where(step > 0, step, 1))
        wrong = np.clip(numbers, low, high) * step + start - groups
        error = np.einsum("ngk,gk->ng", wrong * wrong, weights)
        better = error < least
        least[better] = error[better]
        scales[better], offsets[better] = scale[better], offset[better]
    return scales, offsets


def _columns(
    w: np.ndarray, steps: np.ndarray, starts: np.ndarray, inputs: Inputs, limits: tuple[int, int]
) -> np.ndarray:
    """The numbers float32 [N, K] that columns are rounded to, each after those before it."""
    K = w.shape[1]
    order, factor = inputs.order, inputs.factor
    w, steps, starts = w[:, order], steps[:, order], starts[:, order]
    safe = np.where(steps > 0, steps, 1)
    numbers = np.empty_like(w)
    for first in range(0, K, _BLOCK):
        end = min(first + _BLOCK, K)
        left = np.empty((len(w), end - first), np.float32)
        for k in range(first, end):
            numbers[:, k] = np.clip(np.rint((w[:, k] - starts[:, k]) / safe[:, k]), *limits)
            made = numbers[:, k] * steps[:, k] + starts[:, k]
            left[:, k - first] = (w[:, k] - made) / factor[k, k]
            w[:, k:end] -= np.outer(left[:, k - first], factor[k, k:end])
        w[:, end:] -= left @ factor[first:end, end:]
    out = np.empty_like(numbers)
    out[:, order] = numbers
    return out
