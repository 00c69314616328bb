"""Causal self-attention with rope and grouped key-value heads, as Llama's descendants have it."""

from __future__ import annotations

from boostr import ops
from boostr.nn.batch import Batch
from boostr.nn.linear import Linear
from boostr.nn.module import Module
from boostr.nn.norm import RMSNorm
from boostr.tensor import Tensor


class Attention(Module):
    """x + o_proj(attention(rope(q), rope(k), v)), of q, k, v = projections of norm(x).

    Args:
        layer: index into the cache.   features: E.   heads, kv_heads, head_dim: H, K, D.
        bias: of q, k, v.   output_bias: of o_proj.   window: tokens seen, itself included; None
        all.
        qk_norm: whether each head of q and k is normalised before rope (Qwen3).   eps: of norms.
        rope_layout: see `ops.rope`.
    """

    adjacent = ("q_proj", "k_proj", "v_proj")

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
        qk_norm: bool = False,
        eps: float = 1e-6,
        rope_layout: str = "split-half",
    ) -> None:
        self.q_proj = Linear(features, heads * head_dim, bias)
        self.k_proj = Linear(features, kv_heads * head_dim, bias)
        self.v_proj = Linear(features, kv_heads * head_dim, bias)
        self.o_proj = Linear(heads * head_dim, features, output_bias)
        self.q_norm = self.k_norm = None
        if qk_norm:
            self.q_norm, self.k_norm = RMSNorm(head_dim, eps), RMSNorm(head_dim, eps)
        self._layer, self._window, self._rope_layout = layer, window, rope_layout
        self._head_dim = head_dim

    def __call__(self, x: Tensor, norm: RMSNorm, batch: Batch) -> Tensor:
        heads = [n.weight if n is not None else None for n in (self.q_norm, self.k_norm)]
        inputs = (x, norm.weight, *_parameters(self.q_proj, self.k_proj, self.v_proj), heads)
        options: dict = {"head_dim": self._head_dim, "eps": norm.eps, "layout": self._rope_layout}
        sides = None if self._window is None else (self._window - 1, None)
        view, cu = batch.cache(self._layer), batch.cu_seqlens
        if view is None or batch.kv_lens is None:
            q, k, v = ops.qkv_rope(*inputs, *batch.rotary(), **options)
            out, _ = ops.varlen_attention(q, k, v, cu, cu, causal=True, window=sides)
            return self.o_proj(out.reshape(len(x), -1), residual=x)
        keys, values = view.keys[self._layer], view.values[self._layer]
        q = ops.qkv_rope_write(*inputs, *batch.rotary(), keys, values, view.slots, **options)
        return ops.paged_attention_linear(
            q, keys, values, cu, view.block_table, batch.kv_lens, self.o_proj.weight,
            self.o_proj.bias, x, window=sides,
        )  # fmt: skip


def _parameters(*layers: Linear) -> tuple[list, list]:
    """Weights and biases of some linear layers."""
    return [layer.weight for layer in layers], [layer.bias for layer in layers]
