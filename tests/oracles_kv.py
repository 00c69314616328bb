"""Packed keys and values in plain numpy: what planes mean, and what rounding owes."""

import ml_dtypes
import numpy as np


def _bf16(x):
    return x.astype(np.float32).astype(ml_dtypes.bfloat16)


def numbers(codes, scales):
    """float64 [..., D] of int8 codes [..., D] and scales [..., 1], or of nibbles uint8 [..., D / 2]
    and bfloat16 pairs [..., 2 G] of scale and floor."""
    if codes.dtype == np.int8:
        return codes.astype(np.float64) * scales.astype(np.float64)
    pairs = scales.astype(np.float64).reshape(*scales.shape[:-1], -1, 2)
    groups = codes.reshape(*pairs.shape[:-1], 16)
    groups = np.concatenate([groups % 16, groups // 16], -1).astype(np.float64)
    return (groups * pairs[..., :1] + pairs[..., 1:]).reshape(*codes.shape[:-1], -1)


def packed(x, form):
    """(codes, scales) of rows [..., D]."""
    x = x.astype(np.float64)
    if form == "int8":
        scales = (np.abs(x).max(-1, keepdims=True) / 127).astype(np.float32)
        codes = np.rint(x / np.where(scales > 0, scales, 1))
        return np.clip(codes, -127, 127).astype(np.int8), scales
    groups = x.reshape(*x.shape[:-1], -1, 32)
    floor = _bf16(groups.min(-1, keepdims=True))
    above = floor.astype(np.float64)
    scale = _bf16((groups.max(-1, keepdims=True) - above) / 15)
    step = scale.astype(np.float64)
    codes = np.clip(np.rint((groups - above) / np.where(step > 0, step, 1)), 0, 15).astype(np.uint8)
    scales = np.concatenate([scale, floor], -1).reshape(*x.shape[:-1], -1)
    return (codes[..., :16] | codes[..., 16:] << 4).reshape(*x.shape[:-1], -1), scales


def drawn(rng, shape, form):
    """(codes, scales) of random rows [..., D] whose numbers, about 1 large, have 8 bits or fewer:
    as bfloat16 or float16 they are what they were."""
    *lead, D = shape
    if form == "int8":
        codes = rng.integers(-127, 128, shape).astype(np.int8)
        return codes, 2.0 ** rng.integers(-8, -5, (*lead, 1)).astype(np.float32)
    codes = rng.integers(0, 256, (*lead, D // 2)).astype(np.uint8)
    scale = 2.0 ** rng.integers(-4, -1, (*lead, D // 32, 1))
    pairs = np.concatenate([scale, -scale * rng.integers(0, 16, scale.shape)], -1)
    return codes, _bf16(pairs.reshape(*lead, -1))


def check_rounded(got, x, form):
    """Planes that a backend made of rows x: scales as they must be, numbers to half a step."""
    codes, scales = got
    _, want = packed(x, form)
    # a quotient may fall on either side of where two bfloat16 meet
    near = {"int8": 1e-6, "int4": 2.0**-7}[form]
    np.testing.assert_allclose(scales.astype(np.float64), want.astype(np.float64), rtol=near)
    if form == "int8":
        allowed = want.astype(np.float64) * (0.5 + 1e-4)
    else:  # what the rounding of scale and floor cuts off besides
        pairs = want.astype(np.float64).reshape(*want.shape[:-1], -1, 2)
        step = pairs[..., 0] * (0.5 + 15 * 2.0**-8) + np.abs(pairs[..., 1]) * 2.0**-8
        allowed = np.repeat(step, 32, -1)
    error = np.abs(numbers(codes, scales) - x.astype(np.float64))
    assert np.all(error <= allowed), f"off by {np.nanmax(error / allowed)} of what is allowed"
