"""Batch: what one forward pass works on, besides the weights. Packed; there is no padding."""

from __future__ import annotations

from dataclasses import dataclass, field

from boostr import ops
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

    def rotate(self, x: Tensor, layout: str) -> Tensor:
        """Rope on [T, H, D]."""
        if self.cos is None or self.sin is None or self.rope_rows is None:
            return x
        return ops.rope(x, self.cos, self.sin, self.rope_rows, layout=layout)

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Causal attention of the new tokens to all of their sequence, cached ones included.

        q: [T, H, D]; k, v: [T, K, D], which go into the cache. `window` is the number of tokens
        that a token sees, itself included. Returns [T, H, D].
        """
        sides = None if window is None else (window - 1, None)
        view = next((c for c in self.caches if layer in c.keys), None)
        if view is None or self.kv_lens is None:
            cu = self.cu_seqlens
            out, _ = ops.varlen_attention(q, k, v, cu, cu, causal=True, window=sides, scale=scale)
            return out
        keys, values = view.keys[layer], view.values[layer]
        ops.kv_write(k, v, keys, values, view.slots)
        out, _ = ops.paged_attention(
            q, keys, values, self.cu_seqlens, view.block_table, self.kv_lens,
            window=sides, scale=scale,
        )  # fmt: skip
        return out
