"""The feed-forward halves of transformer layers."""

from __future__ import annotations

from boostr import ops
from boostr.errors import OptionError
from boostr.nn.linear import Linear
from boostr.nn.module import Module
from boostr.tensor import Tensor

# `hidden_act` in a config -> gate(x) · up
GATES = {
    "silu": ops.swiglu,
    "swish": ops.swiglu,
    "gelu": ops.geglu,
    "gelu_new": lambda gate, up: ops.geglu(gate, up, "tanh"),
    "gelu_pytorch_tanh": lambda gate, up: ops.geglu(gate, up, "tanh"),
}
ACTIVATIONS = {
    "gelu": ops.gelu,
    "gelu_new": lambda x: ops.gelu(x, "tanh"),
    "gelu_pytorch_tanh": lambda x: ops.gelu(x, "tanh"),
    "relu": ops.relu,
    "silu": ops.silu,
    "swish": ops.silu,
}


def activation(table: dict, name: str):
    """The function of a config's `hidden_act`, or an error that lists the known names."""
    if name not in table:
        raise OptionError(f"unknown activation {name!r}; known: {', '.join(sorted(table))}")
    return table[name]


class GatedMLP(Module):
    """down(act(gate(x)) · up(x)) + residual."""

    def __init__(self, features: int, hidden: int, hidden_act: str, bias: bool = False) -> None:
        self.gate_proj = Linear(features, hidden, bias)
        self.up_proj = Linear(features, hidden, bias)
        self.down_proj = Linear(hidden, features, bias)
        self._gate = activation(GATES, hidden_act)

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.down_proj(self._gate(self.gate_proj(x), self.up_proj(x)), residual)
