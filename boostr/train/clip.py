"""clip_grad_norm: gradients brought to a norm that is not too large."""

from __future__ import annotations

from collections.abc import Iterable

from boostr import ops
from boostr.autograd import no_grad
from boostr.errors import OptionError
from boostr.tensor import Tensor


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Multiply all gradients by min(1, max_norm / their Euclidean norm).

    Returns:
        the norm before, a float32 scalar on the device: reading it waits for the device.
    """
    moved = [p for p in parameters if p.grad is not None]
    if not moved:
        raise OptionError("clip_grad_norm: no parameter has a gradient; call backward first")
    with no_grad():
        norm = ops.global_norm([p.grad for p in moved])  # type: ignore[misc]
        scale = ops.clip_scale(norm, max_norm)
        for p in moved:  # anew: parameters may share the memory of one gradient
            p.grad = p.grad * ops.core.cast(scale, p.grad.dtype)  # type: ignore[union-attr]
    return norm
