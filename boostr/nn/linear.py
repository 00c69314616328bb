"""Linear and Embedding: one weight and the op that uses it."""

from __future__ import annotations

from typing import Any

from boostr import dtypes, ops
from boostr.nn import fusion
from boostr.nn.module import Module, Parameter
from boostr.tensor import Tensor


class Linear(Module):
    """residual + factor · (x @ weightᵀ + bias); weight [out, in] in any form."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        self.weight: Any = Parameter((out_features, in_features))
        self.bias: Any = Parameter((out_features,), "vector") if bias else None

    def __call__(self, x: Tensor, residual: Tensor | None = None, factor: float = 1.0) -> Tensor:
        return fusion.product(x, self.weight, self.bias, residual, factor)


class Embedding(Module):
    """Rows of a table [V, E] by id.

    Args:
        factor: of the rows, rounded to their dtype.
    Attributes:
        dtype: of the rows, and so of the activations of the model; loading sets it.
    """

    def __init__(self, count: int, features: int, factor: float = 1.0) -> None:
        self.weight: Any = Parameter((count, features), "embedding")
        self.dtype = dtypes.float32
        self._factor = factor

    def __call__(self, ids: Tensor) -> Tensor:
        rows = ops.embedding(ids, self.weight, self.dtype)
        if self._factor == 1.0:
            return rows
        return rows * float(self.dtype.type(self._factor))  # as checkpoints of 16 bits multiply
