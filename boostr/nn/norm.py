"""Norms as modules. What reads a norm's output takes the norm itself, to compute it on the way."""

from __future__ import annotations

from typing import Any

import numpy as np

from boostr.nn import fusion
from boostr.nn.module import Constant, Module, Parameter
from boostr.nn.specs import NormSpec
from boostr.operands import Norm as NormOperand
from boostr.tensor import Tensor


class Norm(Module):
    """See `ops.rms_norm` and `ops.layer_norm`. `features` is the shape of the weight."""

    def __init__(self, features: int | tuple[int, ...], spec: NormSpec) -> None:
        shape = features if isinstance(features, tuple) else (features,)
        self.weight: Any = Parameter(shape, "vector") if spec.weight else None
        self._ones: Any = None if spec.weight else Constant(np.ones(shape, np.float32))
        self.bias: Any = Parameter(shape, "vector") if spec.bias else None
        self._spec = spec

    def __call__(self, x: Tensor) -> Tensor:
        return fusion.normed(x, self.operand)

    @property
    def scales(self) -> bool:
        """Whether it has weights, which can be divided by what others are multiplied by."""
        return self._spec.weight

    @property
    def operand(self) -> NormOperand:
        """The norm as a fused op takes it."""
        spec = self._spec
        weight = self.weight if spec.weight else self._ones
        return NormOperand(spec.kind, weight, self.bias, spec.eps, spec.offset)


def maybe_norm(features: int | tuple[int, ...], spec: NormSpec | None) -> Norm | None:
    """The norm of a spec, if there is one."""
    return None if spec is None else Norm(features, spec)
