"""Log probabilities of the chosen token and of the likeliest ones, from rows of logits on the
device: what an answer reports of the distribution that it was drawn from."""

from __future__ import annotations

import math

import numpy as np

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import DTypeError, OptionError, ShapeError
from boostr.ops import core
from boostr.tensor import Tensor, arange, full

MOST = 20  # of the likeliest


def top_logprobs(logits: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """log softmax(logits), at ids and at the k largest of each row.

    Args:
        logits: [B, V] float.   ids: int32 [B]; one outside of 0..V-1 gives nan.
        k: 0 to 20, at most V.
    Returns:
        float32 [B], of ids; int32 [B, k], the likeliest tokens, ties by rising id; float32 [B, k],
        theirs. A row with a nan, or whose largest logit is infinite, gives nan, and ids -1. No
        gradient.
    """
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ShapeError(
            f"top_logprobs: logits must be [B, V] with V > 0, got {list(logits.shape)}"
        )
    if not dtypes.is_float(logits.dtype):
        raise DTypeError(f"top_logprobs: logits must be a float tensor, got {logits.dtype}")
    if ids.shape != logits.shape[:1]:
        raise ShapeError(
            f"top_logprobs: ids must be [B] = {list(logits.shape[:1])}, got {list(ids.shape)}"
        )
    if ids.dtype != dtypes.int32:
        raise DTypeError(f"top_logprobs: ids must be int32, got {ids.dtype}")
    most = min(MOST, logits.shape[1])
    if not 0 <= k <= most:
        raise OptionError(f"top_logprobs: k must be 0 to {most}, got {k}")
    return _top_logprobs(logits.detach(), ids, k)


def _composite(logits: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    x = core.cast(logits, dtypes.float32)
    top = core.max(x, 1, keepdims=True)
    finite = core.abs(top) < math.inf
    away = x - core.where(finite, top, 0.0)
    logs = away - core.log(core.sum(core.exp(away), 1, keepdims=True))
    logs = core.where(finite, logs, math.nan)
    known = ((ids >= 0) & (ids < x.shape[1])).unsqueeze(1)
    token = core.where(known, ids.unsqueeze(1), 0)
    chosen = core.where(known, core.take_along(logs, token, 1), math.nan).squeeze(1)
    best = _largest(x, k)
    return chosen, core.where(finite, best, -1), core.take_along(logs, best, 1)


def _largest(x: Tensor, k: int) -> Tensor:
    """int32 [B, k], where the k largest of each row are, ties by rising id."""
    if not k:
        return full((x.shape[0], 0), 0, dtypes.int32, x.backend)
    place, found = arange(x.shape[1], backend=x.backend), []
    bits = core.bitcast(core.where(core.eq(x, 0), 0.0, x), dtypes.int32)
    order = core.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers that rise as the floats do
    for _ in range(k):
        found.append(core.argmax(order, 1).unsqueeze(1))
        order = core.where(core.eq(place, found[-1]), np.iinfo(np.int32).min, order)
    return core.concat(found, 1)


_top_logprobs = Op("top_logprobs", _composite)
