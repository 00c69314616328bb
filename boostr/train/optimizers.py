"""Optimizers: AdamW, SGD and Lion over the parameters of a model.

State, step count and learning rate lie on the device and nothing is read there, so that a step can
be part of a program. 16-bit parameters have float32 copies (masters), on which steps are made.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import numpy as np

from boostr import dtypes, ops
from boostr.autograd import no_grad
from boostr.errors import OptionError
from boostr.ops import core
from boostr.ops.optim import scaled
from boostr.tensor import Tensor, full
from boostr.train.loss_scale import LossScale


class Optimizer:
    """The parameters that require a gradient, and for each what steps remember.

    Args:
        params: tensors; those that require no gradient are left out.
    Attributes:
        params: those that are trained.
        state: name of a state -> number of a parameter -> its tensor.
        count: int32 [1], steps made.
        loss_scale: what `compile_step` multiplies losses by, of models of float16 alone.
    """

    states: tuple[str, ...] = ()
    loss_scale: LossScale | None = None

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        unique = {id(p): p for p in params if p.requires_grad}
        self.params = list(unique.values())
        what = type(self).__name__
        if not self.params:
            raise OptionError(
                f"{what}: no parameter requires a gradient; load the model with trainable=True"
            )
        backend = self.params[0].backend
        for p in self.params:
            if not backend.is_writable(p.data):
                raise OptionError(
                    f"{what}: a parameter {p.dtype}{list(p.shape)} is a view of its file, which is "
                    "not written; load the model with trainable=True"
                )
        self.state = {
            name: {i: wide_zeros(p) for i, p in enumerate(self.params)} for name in self.states
        }
        self._masters = {
            i: Tensor.wrap(backend.cast(p.data, dtypes.float32), backend)
            for i, p in enumerate(self.params)
            if p.dtype in dtypes.LOW_PRECISION
        }
        self.count = full((1,), 0, "int32", backend)
        self._lr = full((1,), lr, "float32", backend)
        self._lr_value, self._rate = lr, self._lr
        self._grad_scale: Tensor | float = 1.0

    @property
    def lr(self) -> float:
        """The learning rate; it may be set between steps, of captured ones too."""
        return self._lr_value

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr_value = value
        self._lr.assign(np.array([value], np.float32))

    def step(self, norm: Tensor | None = None, grad_scale: Tensor | None = None) -> None:
        """Move every parameter that has a gradient.

        Args:
            norm: of the gradients, as `clip_grad_norm` gives it. Where it is nan or infinite no
                parameter moves, and moments are as after gradients of 0; nothing is read for it.
            grad_scale: float32 scalar that gradients are multiplied by, in float32.
        """
        moved = [i for i, p in enumerate(self.params) if p.grad is not None]
        with no_grad():
            self.count.assign(self.count + 1)
            self._rate, self._grad_scale = self._lr, 1.0 if grad_scale is None else grad_scale
            if norm is not None:
                finite = norm - norm == 0
                self._rate = self._lr * core.cast(finite, dtypes.float32)
                self._grad_scale = core.where(finite, self._grad_scale, norm.full_like(0))
            for group in (
                [i for i in moved if i not in self._masters],
                [i for i in moved if i in self._masters],
            ):
                if group:
                    self._move(group, [self._masters[i] for i in group if i in self._masters])

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.params:
            p.grad = None

    def tensors(self) -> dict[str, list[Tensor | None]]:
        """All that steps remember, by name; a tensor for each parameter, or None."""
        held = {"master": self._masters, **self.state}
        return {name: [of.get(i) for i in range(len(self.params))] for name, of in held.items()}

    @abstractmethod
    def _move(self, group: list[int], masters: list[Tensor]) -> None:
        """A step of some parameters, all of which have masters, or none has."""

    def _gradient(self, i: int, dtype: np.dtype) -> Tensor:
        """Of parameter i, scaled, in a wide dtype."""
        return scaled(core.cast(self.params[i].grad, dtype), self._grad_scale)  # type: ignore

    def _chosen(self, group: list[int], state: str) -> list[Tensor]:
        return [self.state[state][i] for i in group]


class AdamW(Optimizer):
    """Adam with decoupled weight decay, as torch.optim.AdamW; see `ops.adamw_step`.

    Args:
        params: tensors; those that require no gradient are left out.
        weight_decay: of all parameters.
    """

    states = ("m", "v")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def _move(self, group: list[int], masters: list[Tensor]) -> None:
        ops.adamw_step(
            [self.params[i] for i in group],
            [self.params[i].grad for i in group],  # type: ignore[misc]
            self._chosen(group, "m"), self._chosen(group, "v"), self.count, lr=self._rate,
            beta1=self.betas[0], beta2=self.betas[1], eps=self.eps,
            weight_decay=self.weight_decay, grad_scale=self._grad_scale, masters=masters or None,
        )  # fmt: skip


class ByParameter(Optimizer):
    """An optimizer whose step is a few primitives on each parameter."""

    def _move(self, group: list[int], masters: list[Tensor]) -> None:
        for place, i in enumerate(group):
            param = self.params[i]
            target = masters[place] if masters else param
            rate = core.cast(self._rate.reshape(()), target.dtype)
            moved = self._moved(i, target.detach(), self._gradient(i, target.dtype), rate)
            target.assign(moved)
            if masters:
                param.assign(moved)

    @abstractmethod
    def _moved(self, i: int, p: Tensor, g: Tensor, rate: Tensor) -> Tensor:
        """The new values of parameter i."""


class SGD(ByParameter):
    """v = momentum · v + g + weight_decay · p; p = p - lr · v; as torch.optim.SGD.

    Args:
        params: tensors; those that require no gradient are left out.
    """

    states = ("velocity",)

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-2,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr)
        self.momentum, self.weight_decay = momentum, weight_decay

    def _moved(self, i: int, p: Tensor, g: Tensor, rate: Tensor) -> Tensor:
        velocity = self.state["velocity"][i]
        velocity.assign(velocity * self.momentum + g + p * self.weight_decay)
        return p - velocity * rate


class Lion(ByParameter):
    """p = p · (1 - lr · weight_decay) - lr · sign(β1 · m + (1 - β1) · g), m then moved by β2.

    Args:
        params: tensors; those that require no gradient are left out.
    Source: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms.
    """

    states = ("m",)

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr)
        self.betas, self.weight_decay = betas, weight_decay

    def _moved(self, i: int, p: Tensor, g: Tensor, rate: Tensor) -> Tensor:
        m, (beta1, beta2) = self.state["m"][i], self.betas
        direction = core.sign(m * beta1 + g * (1 - beta1))
        m.assign(m * beta2 + g * (1 - beta2))
        return p - (p * self.weight_decay + direction) * rate


def wide_zeros(p: Tensor) -> Tensor:
    """Zeros of p's shape, float32 or as wide as p."""
    wide = dtypes.float64 if p.dtype == dtypes.float64 else dtypes.float32
    return full(p.shape, 0, wide, p.backend)
