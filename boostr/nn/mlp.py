"""The feed-forward halves of transformer layers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from boostr.nn import fusion
from boostr.nn.linear import Linear
from boostr.nn.module import Feed, Module
from boostr.nn.norm import Norm
from boostr.nn.specs import MLPSpec
from boostr.tensor import Tensor


class MLP(Module):
    """down(act(gate(x)) · up(x)), or down(act(up(x))) where it is not gated."""

    def __init__(self, features: int, spec: MLPSpec) -> None:
        self.gate_proj = Linear(features, spec.hidden, spec.bias) if spec.gated else None
        self.up_proj = Linear(features, spec.hidden, spec.bias)
        self.down_proj = Linear(spec.hidden, features, spec.bias)
        self.adjacent = ("gate_proj", "up_proj") if spec.gated else ()
        self._activation = fusion.activation(spec.act)

    def feeds(self, norm: Norm | None) -> Iterator[Feed]:
        """See `Module.feeds`; `norm` is what the MLP alone reads through. What goes through an
        activation cannot be scaled, what it is multiplied by can."""
        if norm is not None:
            yield Feed(norm, self.readers, np.arange(self.up_proj.weight.shape[1]))
        if self.gate_proj is not None:
            yield Feed(self.up_proj, (self.down_proj,), np.arange(self.down_proj.weight.shape[1]))

    @property
    def readers(self) -> tuple[Linear, ...]:
        """The layers that read x."""
        return tuple(p for p in (self.gate_proj, self.up_proj) if p is not None)

    def __call__(
        self, x: Tensor, norm: Norm | None, residual: Tensor | None, factor: float
    ) -> Tensor:
        """residual + factor · mlp(norm(x)): [T, E]."""
        weights, biases = ([getattr(p, n) for p in self.readers] for n in ("weight", "bias"))
        down = self.down_proj
        return fusion.feed_forward(
            x, norm and norm.operand, weights, biases, self._activation, down.weight, down.bias,
            residual, factor,
        )  # fmt: skip
