"""Block: one layer of a model, as its spec says. Families whose layers are not of this form write
their own from the same parts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from boostr.nn import fusion
from boostr.nn.attention import Attention
from boostr.nn.batch import Batch
from boostr.nn.mlp import MLP
from boostr.nn.module import Feed, Module
from boostr.nn.norm import Norm, maybe_norm
from boostr.nn.specs import LayerSpec
from boostr.nn.states import State
from boostr.tensor import Tensor


class Block(Module):
    """Serial: h = x + after(mix(before(x))), then h + after(mlp(before(h))). Post: the same, but
    after(x + ...). Parallel: x + mix(x) + mlp(x), each of its own norm of x or both of one.

    Parameters are named as Llama's, so `post_attention_layernorm` is the norm before the MLP.
    """

    def __init__(self, features: int, index: int, spec: LayerSpec) -> None:
        norms = spec.norms
        self.input_layernorm = maybe_norm(features, norms.before_mixer)
        self.self_attn = Attention(index, features, spec.mixer)
        self.attention_output_norm = maybe_norm(features, norms.after_mixer)
        self.post_attention_layernorm = maybe_norm(features, norms.before_mlp)
        self.mlp = MLP(features, spec.mlp)
        self.mlp_output_norm = maybe_norm(features, norms.after_mlp)
        self._factor, self._form = spec.residual_factor, spec.form

    def states(self) -> list[State]:
        """What the layer keeps of a sequence."""
        return [*self.self_attn.states()]

    def feeds(self) -> Iterator[Feed]:
        """See `Module.feeds`: what norms, v and up make, as far as one part alone reads it."""
        before, own = self.input_layernorm, self.post_attention_layernorm
        is_shared = self._form == "parallel" and own is None
        before, own = (n if n is not None and n.scales else None for n in (before, own))
        if is_shared and before is not None:
            readers = (*self.self_attn.readers, *self.mlp.readers)
            yield Feed(before, readers, np.arange(self.mlp.up_proj.weight.shape[1]))
        yield from self.self_attn.feeds(None if is_shared else before)
        yield from self.mlp.feeds(own)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        def mixed(residual: Tensor | None, factor: float) -> Tensor:
            return self.self_attn(x, self.input_layernorm, batch, residual, factor)

        h = self._added(mixed, x, self.attention_output_norm)
        read, norm = h, self.post_attention_layernorm
        if self._form == "parallel":
            read, norm = x, norm or self.input_layernorm

        def fed(residual: Tensor | None, factor: float) -> Tensor:
            return self.mlp(read, norm, residual, factor)

        return self._added(fed, h, self.mlp_output_norm)

    def _added(self, part, residual: Tensor, after: Norm | None) -> Tensor:
        """residual + factor · part, or of its norm, or the norm of all of it."""
        if after is None:
            return part(residual, self._factor)
        if self._form == "post":
            return after(part(residual, self._factor))
        return fusion.add_norm(part(None, 1.0), after.operand, residual, self._factor)
