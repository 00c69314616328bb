"""Causal self-attention with grouped key-value heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from boostr import ops
from boostr.nn import fusion
from boostr.nn.batch import Batch
from boostr.nn.linear import Linear
from boostr.nn.module import Feed, Module, Parameter
from boostr.nn.norm import Norm, maybe_norm
from boostr.nn.specs import AttentionSpec
from boostr.nn.states import Paged
from boostr.operands import HeadNorms
from boostr.tensor import Tensor


class Attention(Module):
    """o_proj(attention(rope(norm(q)), rope(norm(k)), v)), of q, k, v = projections of x.

    Args:
        layer: index into the cache.   features: E.
    """

    adjacent = ("q_proj", "k_proj", "v_proj")

    def __init__(self, layer: int, features: int, spec: AttentionSpec) -> None:
        H, K, D = spec.heads, spec.kv_heads, spec.head_dim
        self.q_proj = Linear(features, H * D, spec.bias)
        self.k_proj = Linear(features, K * D, spec.bias)
        self.v_proj = Linear(features, K * D, spec.bias)
        self.o_proj = Linear(H * D, features, spec.output_bias)
        self.q_norm = maybe_norm(H * D if spec.norm_all_heads else D, spec.q_norm)
        self.k_norm = maybe_norm(K * D if spec.norm_all_heads else D, spec.k_norm)
        self.sinks: Any = Parameter((H,), "vector") if spec.sinks else None
        self._layer, self._spec = layer, spec

    def states(self) -> list[Paged]:
        """What the layer keeps of a sequence."""
        spec = self._spec
        return [Paged(spec.kv_heads, spec.head_dim, spec.head_dim, spec.window)]

    def feeds(self, norm: Norm | None) -> Iterator[Feed]:
        """See `Module.feeds`; `norm` is what attention reads through. Heads that share a v share
        its factors."""
        spec = self._spec
        if norm is not None:
            readers = (self.q_proj, self.k_proj, self.v_proj)
            yield Feed(norm, readers, np.arange(self.q_proj.weight.shape[1]))
        values = np.arange(spec.kv_heads * spec.head_dim).reshape(spec.kv_heads, spec.head_dim)
        by_head = np.repeat(values, spec.heads // spec.kv_heads, 0)
        yield Feed(self.v_proj, (self.o_proj,), by_head.reshape(-1))

    def __call__(
        self, x: Tensor, norm: Norm | None, batch: Batch, residual: Tensor | None, factor: float
    ) -> Tensor:
        """residual + factor · attention(norm(x)): [T, E]."""
        spec, cache, cu = self._spec, batch.cache(self._layer), batch.cu_seqlens
        projections = (self.q_proj, self.k_proj, self.v_proj)
        inputs: Any = fusion.attention_inputs(
            x,
            norm and norm.operand,
            [p.weight for p in projections],
            [p.bias for p in projections],
            HeadNorms(self.q_norm and self.q_norm.operand, self.k_norm and self.k_norm.operand),
            batch.rope(spec.rope, spec.layout),
            cache,
            head_dim=spec.head_dim,
        )
        options: dict = {
            "window": None if spec.window is None else (spec.window - 1, None),
            "scale": spec.scale, "softcap": spec.softcap, "sinks": self.sinks,
        }  # fmt: skip
        out = self.o_proj
        if cache is not None:
            return fusion.attend(
                inputs, cache, cu, out.weight, out.bias, residual, factor=factor, **options
            )
        q, k, v = inputs
        mixed, _ = ops.varlen_attention(q, k, v, cu, cu, causal=True, **options)
        return out(mixed.reshape(len(x), -1), residual, factor)
