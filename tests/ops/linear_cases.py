"""Weights of every stored form for products of many rows, what they should give, comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
from draws import normal
from ops.test_quant import BLOCKS, draw_blocks, group_of, packed
from tolerance import assert_close, rms

from boostr import Tensor, dtypes
from boostr.quant.scheme import QUANTIZABLE, SCHEMES, QuantizedTensor

FORMS = ("float", *QUANTIZABLE, *BLOCKS)


def weight(backend, rng, form: str, N: int, K: int, dtype: str, scale: float = 1.0) -> Any:
    """(a weight of that form, its values in float64)."""
    if form == "float":
        w = normal(rng, (N, K), dtype, scale)
        return Tensor(w, backend=backend), w.astype(np.float64)
    if form in BLOCKS:
        raw = draw_blocks(rng, form, N, K)
        return packed(backend, form, raw, K), BLOCKS[form](raw)
    q, s = oracles.quantize_int8(normal(rng, (N, K), scale=scale), group_of(form))
    parts = {"values": Tensor(q, backend=backend), "scales": Tensor(s, backend=backend)}
    truth = oracles.dequantize_int8(q, s, group_of(form))
    return QuantizedTensor(SCHEMES[form], (N, K), parts), truth


def product(x: np.ndarray, w: Any, truth: np.ndarray) -> np.ndarray:
    """What `linear` should give, float64."""
    if isinstance(w, QuantizedTensor) and w.scheme.activations_int8:
        q, s = (w.parts[name].numpy() for name in ("values", "scales"))
        return oracles.linear_w8a8(x.astype(np.float32), q, s)
    return x.astype(np.float64) @ truth.T


def close(got: Tensor, want: np.ndarray, x: np.ndarray, truth: np.ndarray, dtype: str) -> None:
    assert got.dtype == dtypes.parse(dtype)
    K = x.shape[-1]
    # one accumulator adds all K terms in the float32 kernels
    c = max(16.0, 2 * K**0.5) if dtype == "float32" else None
    assert_close(got.numpy(), want, dtype=dtype, reduce=K, scale=rms(x) * rms(truth), c=c)


def turned(backend, x: np.ndarray) -> Tensor:
    """x with its last two axes lying the other way round in memory."""
    return Tensor(np.ascontiguousarray(x.swapaxes(-1, -2)), backend=backend).transpose(-1, -2)
