"""Block: one layer of a decoder, as its spec says. Families whose layers are not of this form write
their own from the same parts."""

from __future__ import annotations

from collections.abc import Iterator

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
    """Serial: h = x + after(mix(before(x))), then h + after(mlp(before(h))). Parallel: x + mix(x) +
    mlp(x), each of its own norm of x.

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
        self._factor, self._parallel = spec.residual_factor, spec.form == "parallel"

    def states(self) -> list[State]:
        """What the layer keeps of a sequence."""
        return [*self.self_attn.states()]

    def feeds(self) -> Iterator[Feed]:
        """See `Module.feeds`: what norms, v and up make, as far as one part alone reads it."""
        yield from self.self_attn.feeds(self.input_layernorm)
        yield from self.mlp.feeds(self.post_attention_layernorm)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        def mixed(residual: Tensor | None, factor: float) -> Tensor:
            return self.self_attn(x, self.input_layernorm, batch, residual, factor)

        h = self._added(mixed, x, self.attention_output_norm)
        read = x if self._parallel else h

        def fed(residual: Tensor | None, factor: float) -> Tensor:
            return self.mlp(read, self.post_attention_layernorm, residual, factor)

        return self._added(fed, h, self.mlp_output_norm)

    def _added(self, part, residual: Tensor, after: Norm | None) -> Tensor:
        """residual + factor · part, or of its norm."""
        if after is None:
            return part(residual, self._factor)
        return fusion.add_norm(part(None, 1.0), after.operand, residual, self._factor)
