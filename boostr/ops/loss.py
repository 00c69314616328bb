"""Losses on logits."""

from __future__ import annotations

import numpy as np

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import DTypeError, OptionError, ShapeError
from boostr.ops import core
from boostr.ops.norm import wide
from boostr.tensor import Tensor, arange

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(logits)[target], in float32 or wider.

    Args:
        logits: [T, V] float.   targets: integer [T]; rows whose target is `ignore_index` do not
            count.
        reduction: "mean" over the rows that count (nan if none does), "sum" or "none".
        label_smoothing: s in [0, 1]: (1 - s) · loss + s · mean over the vocabulary of -log softmax.
    Returns:
        a scalar, or [T] for "none".
    Gradient: logits.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ShapeError(
            f"cross_entropy: expected logits [T, V] and targets [T], got {list(logits.shape)} and "
            f"{list(targets.shape)}"
        )
    check_loss("cross_entropy", "logits", logits, targets, reduction, label_smoothing)
    return cross_entropy_parts(logits, targets, ignore_index, label_smoothing, reduction)[0]


def check_loss(
    op: str, name: str, x: Tensor, targets: Tensor, reduction: str, smoothing: float
) -> None:
    """Raise where a loss of float x, called `name`, and integer targets is asked for otherwise."""
    if not dtypes.is_float(x.dtype) or targets.dtype.kind not in "iu":
        raise DTypeError(
            f"{op}: expected float {name} and integer targets, got {x.dtype} and {targets.dtype}"
        )
    if reduction not in REDUCTIONS:
        raise OptionError(f"{op}: reduction must be in {REDUCTIONS}, got {reduction!r}")
    if not 0 <= smoothing <= 1:
        raise OptionError(f"{op}: label_smoothing must be in 0..1, got {smoothing}")


def _composite(
    logits: Tensor, targets: Tensor, ignore_index: int, smoothing: float, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(the loss, lse [T] = log sum exp(logits), how many rows count): what the gradient needs."""
    x = wide(logits)
    counts = core.ne(targets, ignore_index)
    highest = core.max(x, 1, keepdims=True)
    shifted = x - highest
    log_sum = core.log(core.sum(core.exp(shifted), 1))
    chosen = core.take_along(shifted, core.where(counts, targets, 0).unsqueeze(1), 1)
    loss = (log_sum - chosen.squeeze(1)) * (1 - smoothing)
    if smoothing:
        loss = loss + (log_sum - core.mean(shifted, 1)) * smoothing
    loss = core.where(counts, loss, 0.0)
    rows = core.sum(core.cast(counts, loss.dtype))
    if reduction != "none":
        loss = core.sum(loss) if reduction == "sum" else core.sum(loss) / rows
    return loss, log_sum + highest.squeeze(1), rows


def _vjp(given, outputs, logits, targets, ignore_index, smoothing, reduction):
    _, lse, rows = outputs
    dx = cross_entropy_backward(
        given[0], lse, rows, logits, targets, ignore_index, smoothing, reduction, logits.dtype
    )
    return dx, None, None, None, None


def _backward_composite(
    g: Tensor,
    lse: Tensor,
    rows: Tensor,
    logits: Tensor,
    targets: Tensor,
    ignore_index: int,
    smoothing: float,
    reduction: str,
    dtype: np.dtype,
) -> Tensor:
    """softmax(logits) - (1 - s) · onehot - s / V, times the row's gradient; of `dtype`."""
    V = logits.shape[1]
    p = core.exp(wide(logits) - lse.unsqueeze(1))
    ids = core.cast(arange(V, backend=logits.backend), targets.dtype).unsqueeze(0)
    hot = core.cast(core.eq(ids, targets.unsqueeze(1)), p.dtype)
    slope = p - hot * (1 - smoothing) - smoothing / V
    scale = g / rows if reduction == "mean" else g
    scale = core.where(core.ne(targets, ignore_index), scale, 0.0).unsqueeze(1)
    return core.cast(slope * scale, dtype)


cross_entropy_parts = Op("cross_entropy", _composite, vjp=_vjp, saves=("logits", "targets", 1, 2))
cross_entropy_backward = Op("cross_entropy_backward", _backward_composite)
