"""RMSNorm and LayerNorm as modules."""

from __future__ import annotations

from typing import Any

from boostr import ops
from boostr.nn.module import Module, Parameter
from boostr.tensor import Tensor


class RMSNorm(Module):
    """See `ops.rms_norm`."""

    def __init__(self, features: int, eps: float) -> None:
        self.weight: Any = Parameter((features,), "vector")
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, eps=self.eps)


class LayerNorm(Module):
    """See `ops.layer_norm`."""

    def __init__(self, features: int, eps: float) -> None:
        self.weight: Any = Parameter((features,), "vector")
        self.bias: Any = Parameter((features,), "vector")
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, eps=self._eps)
