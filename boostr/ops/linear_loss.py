"""Losses on what logits are made of, a chunk of rows at a time, so that memory never holds [T, V].

The gradients of a chunk are computed with its loss, while its logits are there: the factor that
"mean" has is known before. Losses of each row get theirs later, from logits that are made anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from boostr import autograd
from boostr.dispatch import Op
from boostr.errors import OptionError, ShapeError
from boostr.ops import core
from boostr.ops.linear import Weight, linear, linear_input_gradient, linear_weight_gradient
from boostr.ops.loss import check_loss, cross_entropy, cross_entropy_backward, cross_entropy_parts
from boostr.ops.norm import wide
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor, full

_LOGIT_BYTES = 256 << 20  # of one chunk, in float32; but
_LEAST_ROWS = 2048  # with fewer, adding to the gradient of the weight costs more than computing it


@dataclass(frozen=True)
class _Head:
    """What happens to the product, and how its rows are judged; see `linear_cross_entropy`."""

    scale: float
    softcap: float | None
    smoothing: float
    ignore_index: int

    def logits(self, h: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        logits = linear(h, weight, bias, dtype=wide(h).dtype)
        if self.scale != 1.0:
            logits = logits * self.scale
        cap = self.softcap
        return logits if cap is None else core.tanh(logits / cap) * cap

    @property
    def is_plain(self) -> bool:
        """Whether logits are the product itself."""
        return self.scale == 1.0 and self.softcap is None

    def backward(self, d: Tensor, logits: Tensor) -> Tensor:
        """The gradient of the product, from that of its logits."""
        if self.softcap is not None:
            t = logits / self.softcap
            d = d * (1 - t * t)
        return d if self.scale == 1.0 else d * self.scale


def linear_cross_entropy(
    h: Tensor,
    weight: Weight,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    count: Tensor | float | None = None,
) -> Tensor:
    """`cross_entropy` of logits = logit_scale · (h @ weightᵀ + bias), never there at once.

    Args:
        h: [T, E] float.   weight: [V, E] in any stored form.   bias: [V].   targets: integer [T].
        softcap: c: logits become c · tanh(logits / c).
        label_smoothing, ignore_index, reduction: see `cross_entropy`.
        count: what "mean" divides by, a number or a float32 scalar: of a batch in several parts the
            rows of all that count. Default: those of `targets`.
    Returns:
        a float32 scalar (float64 for float64 h), or [T] for "none".
    Gradient: h, a float weight, bias. Under an adapter the logits are kept for it.
    """
    check_loss("linear_cross_entropy", "h", h, targets, reduction, label_smoothing)
    if h.ndim != 2 or targets.shape != h.shape[:1]:
        raise ShapeError(
            f"linear_cross_entropy: expected h [T, E] and targets [T], got {list(h.shape)} and "
            f"{list(targets.shape)}"
        )
    if count is not None and reduction != "mean":
        raise OptionError(f"linear_cross_entropy: count is for 'mean', got {reduction!r}")
    head = _Head(logit_scale, softcap, label_smoothing, ignore_index)
    wants = (h.requires_grad, getattr(weight, "requires_grad", False), _requires(bias))
    if not autograd.is_enabled():
        wants = (False, False, False)
    if reduction == "none":
        return _each(h, weight, bias, targets, head)
    factor = _factor(h, targets, ignore_index, reduction, count)
    if autograd.is_enabled() and not isinstance(weight, Tensor | QuantizedTensor):
        logits = head.logits(h, weight, bias)
        options = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
        return cross_entropy(logits, targets, reduction="sum", **options) * factor
    return _reduced(h, weight, bias, targets, factor, head, wants)[0]


def _requires(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _factor(h: Tensor, targets: Tensor, ignore_index: int, reduction: str, count) -> Tensor:
    """What the sum of the losses is multiplied by, a scalar."""
    dtype = wide(h).dtype
    if reduction == "sum" or isinstance(count, int | float):
        return full((), 1.0 / (count or 1.0), dtype, h.backend)
    if count is None:
        count = core.sum(core.cast(core.ne(targets, ignore_index), dtype))
    return 1.0 / core.cast(count.reshape(()), dtype)


def _chunks(T: int, V: int) -> Iterator[slice]:
    rows = max(_LOGIT_BYTES // (4 * max(V, 1)), _LEAST_ROWS)
    return (slice(start, min(start + rows, T)) for start in range(0, max(T, 1), rows))


def _reduced_composite(
    h: Tensor, weight: Weight, bias: Tensor | None, targets: Tensor, factor: Tensor, head: _Head,
    wants: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """(the loss, and the gradient of each of h, weight and bias that is wanted)."""
    total, gradients = None, _Gradients(h, weight, bias, head, wants)
    for rows in _chunks(len(h), weight.shape[0]):
        logits = head.logits(h[rows], weight, bias)
        judged = (targets[rows], head.ignore_index, head.smoothing, "sum")
        loss, lse, count = cross_entropy_parts(logits, *judged)
        total = loss if total is None else total + loss
        if any(wants):
            d = cross_entropy_backward(factor, lse, count, logits, *judged, gradients.dtype)
            gradients.add(rows, logits, d)
    assert total is not None
    return total * factor, *gradients.found()


def _times_composite(x: Tensor, factor: Tensor, dtype: np.dtype) -> Tensor:
    """x · factor, a scalar, of `dtype`."""
    return core.cast(wide(x) * factor, dtype)


def _reduced_vjp(given, outputs, h, weight, bias, targets, factor, head, wants):
    g, found = given[0], iter(outputs[1:])
    like = (h, weight, bias)
    scaled = (
        _times(next(found), g, x.dtype) if wanted else None
        for x, wanted in zip(like, wants, strict=True)
    )
    return *scaled, None, None, None, None


def _each_composite(
    h: Tensor, weight: Weight, bias: Tensor | None, targets: Tensor, head: _Head
) -> Tensor:
    losses = [
        cross_entropy_parts(
            head.logits(h[rows], weight, bias), targets[rows], head.ignore_index, head.smoothing,
            "none",
        )[0]
        for rows in _chunks(len(h), weight.shape[0])
    ]  # fmt: skip
    return losses[0] if len(losses) == 1 else core.concat(losses)


def _each_vjp(g, losses, h, weight, bias, targets, head):
    wants = (h.requires_grad, getattr(weight, "requires_grad", False), _requires(bias))
    gradients = _Gradients(h, weight, bias, head, wants)
    for rows in _chunks(len(h), weight.shape[0]):
        logits = head.logits(h[rows], weight, bias)
        judged = (targets[rows], head.ignore_index, head.smoothing, "none")
        _, lse, count = cross_entropy_parts(logits, *judged)
        d = cross_entropy_backward(g[rows], lse, count, logits, *judged, gradients.dtype)
        gradients.add(rows, logits, d)
    found = iter(gradients.found())
    made = (
        core.cast(next(found), x.dtype) if wanted else None
        for x, wanted in zip((h, weight, bias), wants, strict=True)
    )
    return *made, None, None


class _Gradients:
    """The gradients of h, weight and bias, as chunks come in; those of the weights in float32."""

    def __init__(self, h, weight, bias, head: _Head, wants: Sequence[bool]) -> None:
        self._h, self._weight, self._bias, self._head, self._wants = h, weight, bias, head, wants
        self._dh: list[Tensor] = []
        self._dw: Tensor | None = None
        self._db: Tensor | None = None
        narrow = head.is_plain and not wants[2]  # nothing but products reads them
        self.dtype = h.dtype if narrow else wide(h).dtype  # of the gradients of logits

    def add(self, rows: slice, logits: Tensor, d: Tensor) -> None:
        """Of the rows of a chunk, d being the gradient of their logits."""
        d = self._head.backward(d, logits)
        if self._wants[2]:
            db = core.sum(d, 0)
            self._db = db if self._db is None else self._db + db
        wide_dtype, d = logits.dtype, core.cast(d, self._h.dtype)  # once for both products
        if self._wants[0]:
            self._dh.append(linear_input_gradient(d, self._weight, d.dtype, None))
        if self._wants[1]:
            self._dw = linear_weight_gradient(d, self._h[rows], wide_dtype, self._dw)

    def found(self) -> list[Tensor]:
        """Those that were wanted, in order."""
        dh = core.concat(self._dh) if len(self._dh) > 1 else next(iter(self._dh), None)
        return [x for x in (dh, self._dw, self._db) if x is not None]


_times = Op("times", _times_composite, fusion=True)
_reduced = Op(
    "linear_cross_entropy", _reduced_composite, vjp=_reduced_vjp, saves=(1, 2, 3), fusion=True
)
_each = Op(
    "linear_cross_entropy_each",
    _each_composite,
    vjp=_each_vjp,
    saves=("h", "weight", "bias", "targets"),
    fusion=True,
)
