"""Losses on logits."""

from __future__ import annotations

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import DTypeError, OptionError, ShapeError
from boostr.ops import core
from boostr.ops.activation import log_softmax
from boostr.ops.norm import wide
from boostr.tensor import Tensor

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
    if not dtypes.is_float(logits.dtype) or targets.dtype.kind not in "iu":
        raise DTypeError(
            f"cross_entropy: expected float logits and integer targets, got {logits.dtype} and "
            f"{targets.dtype}"
        )
    if reduction not in REDUCTIONS:
        raise OptionError(f"cross_entropy: reduction must be in {REDUCTIONS}, got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise OptionError(f"cross_entropy: label_smoothing must be in 0..1, got {label_smoothing}")
    counts = core.ne(targets, ignore_index)
    losses = _losses(logits, core.where(counts, targets, 0), counts, label_smoothing)
    if reduction == "none":
        return losses
    total = core.sum(losses)
    return total if reduction == "sum" else total / core.sum(core.cast(counts, losses.dtype))


def _composite(logits: Tensor, targets: Tensor, counts: Tensor, smoothing: float) -> Tensor:
    log_p = log_softmax(wide(logits))
    loss = -core.take_along(log_p, targets.unsqueeze(1), 1).squeeze(1) * (1 - smoothing)
    if smoothing:
        loss = loss - core.mean(log_p, 1) * smoothing
    return core.where(counts, loss, 0.0)


def _vjp(g, losses, logits, targets, counts, smoothing):
    """softmax(logits) - (1 - s) · onehot - s / V, times the row's gradient."""
    V = logits.shape[1]
    p = core.exp(log_softmax(wide(logits)))
    ids = core.reshape(
        core.cast(
            Tensor.wrap(logits.backend.arange(0, V, 1, dtypes.int32), logits.backend), targets.dtype
        ),
        (1, V),
    )
    hot = core.cast(core.eq(ids, targets.unsqueeze(1)), p.dtype)
    slope = p - hot * (1 - smoothing) - smoothing / V
    rows = core.where(counts, g, 0.0).unsqueeze(1)
    return core.cast(slope * rows, logits.dtype), None, None, None


_losses = Op("cross_entropy", _composite, vjp=_vjp)
