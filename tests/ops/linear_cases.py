"""Weights of every stored form for products of many rows, what they should give, comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import packed
from draws import normal
from tolerance import assert_close, term_rms

from boostr import Tensor, dtypes
from boostr.quant.scheme import QuantizedTensor

FORMS = ("float", *packed.FORMS)


def weight(backend, rng, form: str, N: int, K: int, dtype: str, scale: float = 1.0) -> Any:
    """(a weight of that form, its values in float64); K as `packed.fitted` gives it."""
    if form == "float":
        w = normal(rng, (N, K), dtype, scale)
        return Tensor(w, backend=backend), w.astype(np.float64)
    return packed.draw(backend, rng, form, N, K, scale)


def product(x: np.ndarray, w: Any, truth: np.ndarray) -> np.ndarray:
    """What `linear` should give, float64."""
    if isinstance(w, QuantizedTensor) and w.scheme.activations_int8:
        q, s = (w.parts[name].numpy() for name in ("codes", "scales"))
        return oracles.linear_w8a8(x.astype(np.float32), q, s)
    return x.astype(np.float64) @ truth.T


def close(
    got: Tensor, want: np.ndarray, x: np.ndarray, truth: np.ndarray, dtype: str, *added: np.ndarray
) -> None:
    """`added`: bias and residual, which are terms of the sums too."""
    assert got.dtype == dtypes.parse(dtype)
    K = x.shape[-1]
    # one accumulator adds all K terms in the float32 kernels
    c = max(16.0, 2 * K**0.5) if dtype == "float32" else None
    # rows of weights differ in size: their scales are drawn one by one
    scale = term_rms(x, truth) + sum(np.abs(a.astype(np.float64)) for a in added) / K**0.5
    assert_close(got.numpy(), want, dtype=dtype, reduce=K, scale=scale, c=c)


def turned(backend, x: np.ndarray) -> Tensor:
    """x with its last two axes lying the other way round in memory."""
    return Tensor(np.ascontiguousarray(x.swapaxes(-1, -2)), backend=backend).transpose(-1, -2)
