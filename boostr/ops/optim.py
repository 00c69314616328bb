"""Optimizer steps, in place and on the device: nothing is read on the host, so they are capturable.

Any of step, learning rate and gradient scale may be a tensor of one element, which a captured
program reads anew in every run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import BackendError, DTypeError, OptionError, ShapeError
from boostr.ops import core
from boostr.ops.norm import wide
from boostr.tensor import Tensor

Scalar = Tensor | float | int


def adamw(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    step: Scalar,
    *,
    lr: Scalar,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    grad_scale: Scalar = 1.0,
    master: Tensor | None = None,
) -> None:
    """One step of AdamW on one parameter, in place; `adamw_step` says what the arguments are."""
    adamw_step(
        [param], [grad], [m], [v], step, lr=lr, beta1=beta1, beta2=beta2, eps=eps,
        weight_decay=weight_decay, grad_scale=grad_scale,
        masters=None if master is None else [master],
    )  # fmt: skip


def adamw_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    m: Sequence[Tensor],
    v: Sequence[Tensor],
    step: Scalar,
    *,
    lr: Scalar,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    grad_scale: Scalar = 1.0,
    masters: Sequence[Tensor] | None = None,
) -> None:
    """One step of AdamW on many parameters at once, in place.

    g = grad · grad_scale, or 0 where grad_scale is 0, whatever grad holds;
    m = beta1 · m + (1 - beta1) · g; v = beta2 · v + (1 - beta2) · g²;
    p = p · (1 - lr · weight_decay) - lr · m' / (sqrt(v') + eps), where m' = m / (1 - beta1^step)
    and v' = v / (1 - beta2^step).

    Args:
        params: float tensors of any shapes.   grads: of the same shapes, any float dtype.
        m, v: of the same shapes, float32 (float64 for a float64 parameter); zeros at first.
        step: 1 for the first step.   lr: learning rate.   grad_scale: 1 / accumulated batches,
            1 / loss scale, `clip_scale(...)` or their product.
        masters: float32 copies of 16-bit parameters. The step is made on them and the parameters
            become their rounded values, so that small steps are not lost.
    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization; as torch.optim.AdamW.
    """
    lists = {"grads": grads, "m": m, "v": v} | ({} if masters is None else {"masters": masters})
    for name, given in lists.items():
        if len(given) != len(params):
            raise ShapeError(f"adamw: {len(params)} params, but {len(given)} {name}")
    for i, param in enumerate(params):
        _check(i, param, grads[i], {name: given[i] for name, given in lists.items()})
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise OptionError(f"adamw: {name} must be in 0..1 (less than 1), got {beta}")
    for name, value in (("step", step), ("lr", lr), ("grad_scale", grad_scale)):
        _check_scalar(name, value)
    if params:
        _adamw(
            *([t.detach() for t in given] for given in (params, grads, m, v)),
            None if masters is None else [t.detach() for t in masters],
            step, lr, grad_scale, beta1, beta2, eps, weight_decay,
        )  # fmt: skip
    for param in params:
        param.written()


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """float32 scalar: the Euclidean norm of all elements of all tensors. No gradient."""
    if not tensors:
        raise ShapeError("global_norm: expected at least one tensor")
    for x in tensors:
        if not dtypes.is_float(x.dtype):
            raise DTypeError(f"global_norm: expected float tensors, got {x.dtype}")
    return _global_norm([x.detach() for x in tensors])


def clip_scale(norm: Tensor, max_norm: float) -> Tensor:
    """min(1, max_norm / norm), a scalar: the `grad_scale` that clips gradients of this norm."""
    return core.minimum(max_norm / (norm + 1e-6), 1.0)


# -- validation ----------------------------------------------------------------------------------
def _check(i: int, param: Tensor, grad: Tensor, parts: dict[str, Tensor]) -> None:
    for name, x in {"params": param, **parts}.items():
        if x.shape != param.shape:
            raise ShapeError(
                f"adamw: {name}[{i}] must be {list(param.shape)} as its parameter, "
                f"got {list(x.shape)}"
            )
        state = dtypes.float64 if param.dtype == dtypes.float64 else dtypes.float32
        free = name in ("params", "grads")
        if not dtypes.is_float(x.dtype) or not (free or x.dtype == state):
            wanted = "a float tensor" if free else str(state)
            raise DTypeError(f"adamw: {name}[{i}] must be {wanted}, got {x.dtype}")
        if x is not grad and not x.backend.is_contiguous(x.data):
            raise BackendError(f"adamw: {name}[{i}] is written in place and must be contiguous")


def _check_scalar(name: str, value: Scalar) -> None:
    if isinstance(value, Tensor):
        kinds = (dtypes.float32, dtypes.int32) if name == "step" else (dtypes.float32,)
        if value.size != 1 or value.dtype not in kinds:
            wanted = " or ".join(kind.name for kind in kinds)
            raise DTypeError(
                f"adamw: {name} must be a number or {wanted} of one element, got "
                f"{value.dtype}{list(value.shape)}"
            )
    elif name == "step" and value < 1:
        raise OptionError(f"adamw: step counts from 1, got {value}")


# -- composites ----------------------------------------------------------------------------------
def _adamw_composite(
    params, grads, ms, vs, masters, step, lr, grad_scale, beta1, beta2, eps, weight_decay
) -> None:
    step, lr, grad_scale = (
        core.reshape(s, ()) if isinstance(s, Tensor) else s for s in (step, lr, grad_scale)
    )
    rate = lr / rest_of_power(beta1, step)
    spread = rest_of_power(beta2, step) ** -0.5
    for i, param in enumerate(params):
        m, v = ms[i], vs[i]
        g = scaled(core.cast(grads[i], m.dtype), grad_scale)
        m.assign(m + (g - m) * (1 - beta1))
        v.assign(v + (g * g - v) * (1 - beta2))
        p = wide(param if masters is None else masters[i])
        p = p * (1 - lr * weight_decay) - rate * m / (core.sqrt(v) * spread + eps)
        if masters is not None:
            masters[i].assign(p)
        param.assign(p)


def scaled(grad: Tensor, scale: Scalar) -> Tensor:
    """grad · scale, a number or a scalar; 0 where that is 0, though grad were nan."""
    if isinstance(scale, Tensor):
        scale = core.cast(scale, grad.dtype)
        return core.where(scale == 0, 0.0, grad * scale)
    if scale == 1:
        return grad
    return grad * scale if scale else grad.full_like(0)


def rest_of_power(beta: float, step: Scalar) -> Scalar:
    """1 - beta^step, without cancellation for a step on the device: 1 - exp(-y) = 2 t / (1 + t),
    t = tanh(y / 2)."""
    if not isinstance(step, Tensor):
        return 1 - beta**step
    if beta == 0:
        return 1.0
    t = core.tanh(core.cast(step, dtypes.float32) * (-0.5 * math.log(beta)))
    return t * 2 / (t + 1)


def _norm_composite(tensors: list[Tensor]) -> Tensor:
    total = None
    for x in tensors:
        x = core.cast(x, dtypes.float32)
        square = core.sum(x * x)
        total = square if total is None else total + square
    assert total is not None
    return core.sqrt(total)


_adamw = Op("adamw", _adamw_composite)
_global_norm = Op("global_norm", _norm_composite, vjp=lambda *a: (None,), saves=())
