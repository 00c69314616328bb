"""The feed-forward halves of transformer layers."""

from __future__ import annotations

from boostr import ops
from boostr.errors import OptionError
from boostr.nn.linear import Linear
from boostr.nn.module import Module
from boostr.nn.norm import RMSNorm
from boostr.tensor import Tensor

# `hidden_act` in a config -> the activation of `ops.norm_gated_linear`
GATES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
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
    """The entry of a config's `hidden_act`, or an error that lists the known names."""
    if name not in table:
        raise OptionError(f"unknown activation {name!r}; known: {', '.join(sorted(table))}")
    return table[name]


class GatedMLP(Module):
    """x + down(act(gate(norm(x))) · up(norm(x)))."""

    adjacent = ("gate_proj", "up_proj")

    def __init__(self, features: int, hidden: int, hidden_act: str, bias: bool = False) -> None:
        self.gate_proj = Linear(features, hidden, bias)
        self.up_proj = Linear(features, hidden, bias)
        self.down_proj = Linear(hidden, features, bias)
        self._gate = activation(GATES, hidden_act)

    def __call__(self, x: Tensor, norm: RMSNorm) -> Tensor:
        gate, up = self.gate_proj, self.up_proj
        hidden = ops.norm_gated_linear(
            x, norm.weight, gate.weight, up.weight, gate.bias, up.bias, eps=norm.eps,
            activation=self._gate,
        )  # fmt: skip
        return self.down_proj(hidden, residual=x)
