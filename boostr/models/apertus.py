"""Apertus: Llama with norms on the heads of q and k, and an MLP of xIELU, whose slopes are learned.

xIELU: Huang & Schlag 2024, "Deriving Activation Functions Using Integration".
"""

from __future__ import annotations

from typing import Any

from boostr import nn
from boostr.errors import ModelFileError
from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn import fusion
from boostr.nn.specs import LayerSpec
from boostr.ops import core
from boostr.ops.norm import wide
from boostr.tensor import Tensor

DEFAULTS = {
    "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5, "hidden_act": "xielu", "rope_theta": 12e6,
}  # fmt: skip
SCALING = {
    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip


class XIELU(nn.Module):
    """α⁺ x² + β x of positive x, α⁻ (exp(x) - 1 - x) + β x of others.

    Stored are the inverse softplus of α⁺ and of α⁻ - β.
    """

    def __init__(self) -> None:
        self.alpha_p: Any = nn.Parameter((1,), "vector")
        self.alpha_n: Any = nn.Parameter((1,), "vector")
        self.beta: Any = nn.Parameter((), "vector")

    def __call__(self, x: Tensor) -> Tensor:
        h = wide(x)
        up, down = _softplus(self.alpha_p), self.beta + _softplus(self.alpha_n)
        curve = core.exp(core.minimum(h, 0)) - 1 - h
        bent = core.where(core.gt(h, 0), h * h * up, curve * down)
        return core.cast(bent + h * self.beta, x.dtype)


def _softplus(x: Tensor) -> Tensor:
    return core.log(core.exp(x) + 1)


class MLP(nn.MLP):
    """down(xIELU(up(x)))."""

    def __init__(self, features: int, spec: nn.MLPSpec) -> None:
        super().__init__(features, spec)
        self.act_fn = XIELU()

    def __call__(
        self, x: Tensor, norm: nn.Norm | None, residual: Tensor | None, factor: float
    ) -> Tensor:
        up: Any = fusion.products(x, norm and norm.operand, [self.up_proj.weight], [None])
        return self.down_proj(self.act_fn(up), residual, factor)


class Block(nn.Block):
    """Llama's, with this MLP."""

    def __init__(self, features: int, index: int, spec: LayerSpec) -> None:
        super().__init__(features, index, spec)
        self.mlp = MLP(features, spec.mlp)


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    block = Block
    gguf = (
        Architecture(
            "apertus",
            "ApertusForCausalLM",
            untied=True,
            numbers={
                "xielu.alpha_p": ("mlp.act_fn.alpha_p", (1,)),
                "xielu.alpha_n": ("mlp.act_fn.alpha_n", (1,)),
                "xielu.beta": ("mlp.act_fn.beta", ()),
                "xielu.eps": -1e-6,
            },
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        if not config.raw.keys() & {"rope_parameters", "rope_scaling"}:
            config = config.filled(rope_scaling=SCALING)
        if config.get("hidden_act", str) != "xielu":
            raise ModelFileError(f"{config.source}: hidden_act must be 'xielu' in apertus")
        bias, norm = config.get("attention_bias", bool, False), read.rms_norm(config)
        mixer = read.attention(config, bias=bias, output_bias=bias, q_norm=norm, k_norm=norm)
        mlp = nn.MLPSpec(config.size("intermediate_size"), "silu", gated=False)
        norms = nn.LayerNorms(before_mixer=norm, before_mlp=norm)
        layers = (LayerSpec(mixer, mlp, norms),) * config.size("num_hidden_layers")
        return read.decoder_config(config, layers)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its own names of the norms; what xIELU's eps of -1e-6 cuts off is no more than that."""
        layer = "model.layers.{i}."
        return decoder.CausalLM.load_plan(config) + LoadPlan((
            plan.constant(layer + "mlp.act_fn.eps", layer + "mlp.act_fn.beta", -1e-6),
            plan.rename(layer + "attention_layernorm", layer + "input_layernorm"),
            plan.rename(layer + "feedforward_layernorm", layer + "post_attention_layernorm"),
        ))  # fmt: skip
