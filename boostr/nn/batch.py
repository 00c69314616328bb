"""Batch: what one forward pass works on, besides the weights. Packed; there is no padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from boostr.errors import ShapeError
from boostr.operands import Cache, Rope, StateRows
from boostr.ops import core
from boostr.tensor import Tensor, full


@dataclass(frozen=True)
class Batch:
    """Tokens of B sequences end to end; those behind the last sequence belong to none.

    Attributes:
        ids: int32 [T].   positions: int32 [T], of each token in its sequence.
        cu_seqlens: int32 [B+1], where the new tokens of each sequence begin.
        ropes: the tables of each name that the model's `ropes` has.
        caches: by layer; empty without a cache.
        states: by layer, what it keeps of a sequence as a whole, in the order of its `states()`.
        shared: by layer, what others read of it where there is no cache; the layer puts it there.
        types: int32 [T], of each token, where the model has a table of types; None: all 0.
        distance_bias: float [H, 2M+1], of scores in every layer, see `ops.varlen_attention`.
        embeddings: float [T, E], what the first layer reads in place of the ids' rows; None: those.
    """

    ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    ropes: Mapping[str, Rope] = field(default_factory=dict)
    caches: Mapping[int, Cache] = field(default_factory=dict)
    states: Mapping[int, tuple[StateRows, ...]] = field(default_factory=dict)
    shared: dict[int, Any] = field(default_factory=dict)
    types: Tensor | None = None
    distance_bias: Tensor | None = None
    embeddings: Tensor | None = None

    @property
    def first_tokens(self) -> Tensor:
        """int32 [B]: the first token of each sequence; any for those that have none."""
        return core.minimum(self.cu_seqlens[:-1], len(self.ids) - 1)

    @property
    def owners(self) -> Tensor:
        """int32 [T]: the sequence of each token; B for those that belong to none."""
        T, ends = len(self.ids), self.cu_seqlens[1:]
        ones = full(ends.shape, 1, "int32", ends.backend)
        return core.cumsum(core.scatter_add((T + 1,), ends, ones))[:T]

    @property
    def last_tokens(self) -> Tensor:
        """int32 [B]: the last token of each sequence; any for those that have none."""
        return core.maximum(self.cu_seqlens[1:] - 1, 0)

    def rope(self, name: str | None, layout: str) -> Rope | None:
        """The tables of a name, for pairs that lie so; None for no name."""
        if name is None:
            return None
        if name not in self.ropes:
            raise ShapeError(f"this model rotates its heads: the batch needs the tables {name!r}")
        return self.ropes[name]._replace(layout=layout)

    def cache(self, layer: int) -> Cache | None:
        """Where keys and values of a layer are kept; None without a cache."""
        return self.caches.get(layer)
