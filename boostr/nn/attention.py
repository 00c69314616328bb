"""Causal self-attention with rope and grouped key-value heads, as Llama's descendants have it."""

from __future__ import annotations

from boostr.nn.batch import Batch
from boostr.nn.linear import Linear
from boostr.nn.module import Module
from boostr.nn.norm import RMSNorm
from boostr.tensor import Tensor


class Attention(Module):
    """o_proj(attention(rope(q), rope(k), v)) + residual.

    Args:
        layer: index into the cache.   features: E.   heads, kv_heads, head_dim: H, K, D.
        bias: of q, k, v.   output_bias: of o_proj.   window: tokens seen, itself included; None
        all.
        qk_norm_eps: RMS norm of each head of q and k before rope (Qwen3); None has none.
        rope_layout: see `ops.rope`.
    """

    def __init__(
        self,
        layer: int,
        features: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        bias: bool = False,
        output_bias: bool = False,
        window: int | None = None,
        qk_norm_eps: float | None = None,
        rope_layout: str = "split-half",
    ) -> None:
        self.q_proj = Linear(features, heads * head_dim, bias)
        self.k_proj = Linear(features, kv_heads * head_dim, bias)
        self.v_proj = Linear(features, kv_heads * head_dim, bias)
        self.o_proj = Linear(heads * head_dim, features, output_bias)
        self.q_norm = self.k_norm = None
        if qk_norm_eps is not None:
            self.q_norm = RMSNorm(head_dim, qk_norm_eps)
            self.k_norm = RMSNorm(head_dim, qk_norm_eps)
        self._layer, self._window, self._rope_layout = layer, window, rope_layout
        self._head_dim = head_dim

    def __call__(self, x: Tensor, batch: Batch, residual: Tensor) -> Tensor:
        T = x.shape[0]
        q, k, v = (
            projection(x).reshape(T, -1, self._head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = batch.rotate(q, self._rope_layout), batch.rotate(k, self._rope_layout)
        out = batch.attend(self._layer, q, k, v, window=self._window)
        return self.o_proj(out.reshape(T, -1), residual)
