"""Linear and Embedding: one weight and the op that uses it."""

from __future__ import annotations

from typing import Any

from boostr import dtypes, ops
from boostr.nn.module import Module, Parameter
from boostr.tensor import Tensor


class Linear(Module):
    """x @ weightᵀ (+ bias) (+ residual); weight [out, in] in any stored form."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        self.weight: Any = Parameter((out_features, in_features))
        self.bias: Any = Parameter((out_features,), "vector") if bias else None

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return ops.linear(x, self.weight, self.bias, residual)


class Embedding(Module):
    """Rows of a table [V, E] by id.

    Attributes:
        dtype: of the rows, and so of the activations of the model; loading sets it.
    """

    def __init__(self, count: int, features: int) -> None:
        self.weight: Any = Parameter((count, features), "embedding")
        self.dtype = dtypes.float32

    def __call__(self, ids: Tensor) -> Tensor:
        return ops.embedding(ids, self.weight, self.dtype)
