"""Hunyuan: Llama with norms on the heads of q and k after they are rotated."""

from __future__ import annotations

from typing import ClassVar

from boostr.errors import ModelFileError
from boostr.io.settings import INERT, Table
from boostr.models import config as read
from boostr.models import decoder, plan
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.ops.rope_tables import RopeConfig

DEFAULTS = {
    "vocab_size": 290943, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    keys: ClassVar[Table] = {"eod_token_id": INERT}
    gguf = (Architecture("hunyuan-dense", "HunYuanDenseV1ForCausalLM"),)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        bias, norm = config.get("attention_bias", bool, False), read.rms_norm(config)
        mixer = read.attention(
            config, bias=bias, output_bias=bias, q_norm=norm, k_norm=norm, norm_after_rope=True
        )
        layer = read.pre_norm_layer(config, mixer)
        return read.decoder_config(
            config,
            (layer,) * config.size("num_hidden_layers"),
            ropes={"full": _rope(config, mixer.head_dim)},
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its own names of the norms of heads."""
        layer = "model.layers.{i}.self_attn."
        return decoder.CausalLM.load_plan(config) + LoadPlan((
            plan.rename(layer + "query_layernorm", layer + "q_norm"),
            plan.rename(layer + "key_layernorm", layer + "k_norm"),
        ))  # fmt: skip


def _rope(config: RawConfig, head_dim: int) -> RopeConfig:
    """What is called dynamic and has an alpha is a larger base, whatever the length."""
    rope = read.rope_config(config, head_dim, config.size("max_position_embeddings"))
    alpha = rope.parameters.get("alpha")
    if rope.rope_type != "dynamic" or not alpha:
        return rope
    if not isinstance(alpha, int | float) or alpha <= 0:
        raise ModelFileError(f"{config.source}: alpha of the rope must be above 0, got {alpha!r}")
    grown = rope.theta * alpha ** (head_dim / (head_dim - 2))
    return RopeConfig(head_dim, grown, rope.max_positions)
