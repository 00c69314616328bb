"""Self-attention with grouped key-value heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from boostr import ops
from boostr.nn import fusion
from boostr.nn.batch import Batch
from boostr.nn.linear import Linear
from boostr.nn.module import Constant, Feed, Module, Parameter
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
        q_shape, k_shape = {
            "head": ((D,), (D,)), "heads": ((H, D), (K, D)), "all": ((H * D,), (K * D,)),
        }[spec.norm_over]  # fmt: skip
        self.q_norm = maybe_norm(q_shape, spec.q_norm)
        self.k_norm = maybe_norm(k_shape, spec.k_norm)
        self.sinks: Any = Parameter((H,), "vector") if spec.sinks else None
        slopes = spec.alibi and Constant(np.asarray(spec.alibi, np.float32))
        self._layer, self._spec, self._slopes = layer, spec, slopes

    def states(self) -> list[Paged]:
        """What the layer keeps of a sequence."""
        spec = self._spec
        return [Paged(spec.kv_heads, spec.head_dim, spec.head_dim, spec.window)]

    def feeds(self, norm: Norm | None) -> Iterator[Feed]:
        """See `Module.feeds`; `norm` is what attention alone reads through. Heads that share a v
        share its factors, and none has any where v is clamped."""
        spec = self._spec
        if norm is not None:
            yield Feed(norm, self.readers, np.arange(self.q_proj.weight.shape[1]))
        if spec.clip is not None:
            return
        values = np.arange(spec.kv_heads * spec.head_dim).reshape(spec.kv_heads, spec.head_dim)
        by_head = np.repeat(values, spec.heads // spec.kv_heads, 0)
        yield Feed(self.v_proj, (self.o_proj,), by_head.reshape(-1))

    def __call__(
        self, x: Tensor, norm: Norm | None, batch: Batch, residual: Tensor | None, factor: float
    ) -> Tensor:
        """residual + factor · attention(norm(x)): [T, E]."""
        spec, cache, cu = self._spec, batch.cache(self._layer), batch.cu_seqlens
        q, k, v = self._inputs(x, norm, batch)
        options: dict = {
            "window": self._window(), "scale": spec.scale, "softcap": spec.softcap,
            "alibi_slopes": self._slopes, "sinks": self.sinks,
        }  # fmt: skip
        out = self.o_proj
        if cache is not None:
            return fusion.attend(
                q, cache, cu, out.weight, out.bias, residual, factor=factor, **options
            )
        mixed, _ = ops.varlen_attention(
            q, k, v, cu, cu, causal=spec.causal, distance_bias=batch.distance_bias, **options
        )
        return out(mixed.reshape(len(x), -1), residual, factor)

    @property
    def readers(self) -> tuple[Linear, ...]:
        """The layers that read x."""
        return (self.q_proj, self.k_proj, self.v_proj)

    def _window(self) -> tuple[int | None, int | None] | None:
        """Tokens seen before a token and after it."""
        spec = self._spec
        if spec.window is None:
            return None
        return (spec.window - 1, None) if spec.causal else (spec.window, spec.window)

    def _inputs(self, x: Tensor, norm: Norm | None, batch: Batch) -> Any:
        """q, k, v as `fusion.heads` gives them; k and v are None where the cache has them."""
        spec, cache, before = self._spec, batch.cache(self._layer), norm and norm.operand
        weights, biases = ([getattr(p, n) for p in self.readers] for n in ("weight", "bias"))
        q_norm, k_norm = (n and n.operand for n in (self.q_norm, self.k_norm))
        norms = HeadNorms(q_norm, k_norm, spec.norm_after_rope)
        rope = batch.rope(spec.rope, spec.layout)
        if spec.clip is None:
            made: Any = fusion.attention_inputs(
                x, before, weights, biases, norms, rope, cache, head_dim=spec.head_dim
            )
            return made if cache is None else (made, None, None)
        flat: Any = fusion.products(x, before, weights, biases)
        clipped = (ops.core.minimum(ops.core.maximum(t, -spec.clip), spec.clip) for t in flat)
        q, k, v = (t.reshape(len(x), -1, spec.head_dim) for t in clipped)
        return fusion.heads(q, k, v, norms, rope, cache)
