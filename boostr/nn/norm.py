"""Norms as modules. What reads a norm's output takes the norm itself, to compute it on the way."""

from __future__ import annotations

from typing import Any

from boostr.nn import fusion
from boostr.nn.module import Module, Parameter
from boostr.nn.specs import NormSpec
from boostr.operands import Norm as NormOperand
from boostr.tensor import Tensor


class Norm(Module):
    """See `ops.rms_norm` and `ops.layer_norm`."""

    def __init__(self, features: int, spec: NormSpec) -> None:
        self.weight: Any = Parameter((features,), "vector")
        self.bias: Any = Parameter((features,), "vector") if spec.bias else None
        self._spec = spec

    def __call__(self, x: Tensor) -> Tensor:
        return fusion.normed(x, self.operand)

    @property
    def operand(self) -> NormOperand:
        """The norm as a fused op takes it."""
        spec = self._spec
        return NormOperand(spec.kind, self.weight, self.bias, spec.eps, spec.offset)


def maybe_norm(features: int, spec: NormSpec | None) -> Norm | None:
    """The norm of a spec, if there is one."""
    return None if spec is None else Norm(features, spec)
