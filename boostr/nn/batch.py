"""Batch: what one forward pass works on, besides the weights. Packed; there is no padding."""

from __future__ import annotations

from dataclasses import dataclass, field

from boostr.errors import ShapeError
from boostr.tensor import Tensor


@dataclass(frozen=True)
class CacheView:
    """The part of a KV cache that one forward pass reads and writes, for layers of one geometry.

    Attributes:
        keys, values: [NB, bs, K, D] of each layer, by layer index.
        block_table: int32 [B, max_blocks].   slots: int32 [T], where the new tokens go.
    """

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    block_table: Tensor
    slots: Tensor


@dataclass(frozen=True)
class Batch:
    """Tokens of B sequences end to end.

    Attributes:
        ids: int32 [T].   positions: int32 [T], of each token in its sequence.
        cu_seqlens: int32 [B+1], where the new tokens of each sequence begin.
        cos, sin: float32 [S, R/2].   rope_rows: int32 [T], the row of these for each token.
        kv_lens: int32 [B], tokens of each sequence with the new ones; None without a cache.
        caches: views by layer geometry; empty without a cache.
    """

    ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    cos: Tensor | None = None
    sin: Tensor | None = None
    rope_rows: Tensor | None = None
    kv_lens: Tensor | None = None
    caches: list[CacheView] = field(default_factory=list)

    def rotary(self) -> tuple[Tensor, Tensor, Tensor]:
        """cos, sin and the row of them for each token."""
        if self.cos is None or self.sin is None or self.rope_rows is None:
            raise ShapeError("this model rotates its heads: the batch needs cos, sin and rope_rows")
        return self.cos, self.sin, self.rope_rows

    def cache(self, layer: int) -> CacheView | None:
        """Where keys and values of a layer are kept; None without a cache."""
        return next((view for view in self.caches if layer in view.keys), None)
