"""Muon: momentum whose matrices are made orthogonal, for the products of hidden layers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from boostr import ops
from boostr.models.adapters import owners_of
from boostr.nn.linear import Embedding
from boostr.nn.module import Module
from boostr.ops import core
from boostr.tensor import Tensor
from boostr.train.optimizers import Optimizer, wide_zeros

_QUINTIC = (3.4445, -4.7750, 2.0315)  # of Newton-Schulz steps, steep at 0: singular values to ~1
_STEPS = 5
_RMS = 0.2  # of an update of AdamW, which a matrix's is brought to


class Muon(Optimizer):
    """m = β · m + (1 - β) · g; p = p · (1 - lr · weight_decay) - lr · 0.2 · √max(N, K) · O, O being
    β · m + (1 - β) · g with all singular values near 1; for matrices [N, K]. AdamW for the rest.

    The factor makes updates as large as AdamW's: one learning rate and decay serve both.

    Args:
        params: tensors; those that require no gradient are left out.
        adamw: those of `params` that AdamW moves beside all that are no matrices: tables of
            embeddings and the head.
        betas, eps: of AdamW.   weight_decay: of all parameters.
    Source: Jordan et al. 2024, Muon; Liu et al. 2025, Muon is Scalable for LLM Training.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        *,
        adamw: Iterable[Tensor] = (),
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr)
        self.momentum, self.weight_decay, self.betas, self.eps = momentum, weight_decay, betas, eps
        others = {id(p) for p in adamw}
        self._matrices = {
            i for i, p in enumerate(self.params) if p.ndim == 2 and id(p) not in others
        }
        numbers = range(len(self.params))
        for name, of_matrices in (("momentum", True), ("m", False), ("v", False)):
            own = [i for i in numbers if (i in self._matrices) is of_matrices]
            self.state[name] = {i: wide_zeros(self.params[i]) for i in own}

    def _move(self, group: list[int], masters: list[Tensor]) -> None:
        held = dict(zip(group, masters, strict=True)) if masters else {}
        others = [i for i in group if i not in self._matrices]
        if others:
            ops.adamw_step(
                [self.params[i] for i in others],
                [self.params[i].grad for i in others],  # type: ignore[misc]
                self._chosen(others, "m"), self._chosen(others, "v"), self.count, lr=self._rate,
                beta1=self.betas[0], beta2=self.betas[1], eps=self.eps,
                weight_decay=self.weight_decay, grad_scale=self._grad_scale,
                masters=[held[i] for i in others] if held else None,
            )  # fmt: skip
        for i in group:
            if i in self._matrices:
                self._turn(i, held.get(i))

    def _turn(self, i: int, master: Tensor | None) -> None:
        """The step of a matrix."""
        param, m = self.params[i], self.state["momentum"][i]
        target = param if master is None else master
        g = self._gradient(i, m.dtype)
        m.assign(m * self.momentum + g * (1 - self.momentum))
        direction = orthogonal(m * self.momentum + g * (1 - self.momentum), param.dtype)
        rate = core.cast(self._rate.reshape(()), target.dtype)
        scale = _RMS * math.sqrt(max(param.shape))
        step = core.cast(direction, target.dtype) * scale + target.detach() * self.weight_decay
        moved = target.detach() - step * rate
        target.assign(moved)
        if master is not None:
            param.assign(moved)


def orthogonal(x: Tensor, dtype: np.dtype) -> Tensor:
    """x [N, K] with its singular values brought near 1, by five Newton-Schulz steps in `dtype`; the
    smallest, below some thousandths of all, less so; 0 stays 0."""
    wide = x.T if x.shape[0] > x.shape[1] else x  # products of the shorter side
    norm = core.sqrt(core.sum(wide * wide))
    y = core.cast(wide / (norm + 1e-7), dtype)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        square = y @ y.T
        y = y * a + (square * b + (square @ square) * c) @ y
    return y.T if wide is not x else y


def tables_and_head(module: Module) -> list[Tensor]:
    """Weights of a model that are no hidden layer's, for `Muon(adamw=)`; none that is packed."""
    head = getattr(module, "lm_head", None)
    weights = (
        getattr(owner, attribute)
        for owner, attribute in owners_of(module).values()
        if isinstance(owner, Embedding) or (head is not None and owner is head)
    )
    return [weight for weight in weights if isinstance(weight, Tensor)]
