"""GPT-J: halves of a layer that share a norm, the first dimensions of a head rotated in pairs that
lie side by side."""

from __future__ import annotations

from boostr.errors import ModelFileError
from boostr.models import config as read
from boostr.models import decoder, gpt2
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import HeadSpec, LayerNorms, LayerSpec, MLPSpec, NormSpec
from boostr.ops.rope_tables import RopeConfig

DEFAULTS = {
    "vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16,
    "rotary_dim": 64, "n_inner": None, "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
_NAMES = {
    "attn": "self_attn", "self_attn.out_proj": "self_attn.o_proj", "mlp.fc_in": "mlp.up_proj",
    "mlp.fc_out": "mlp.down_proj",
}  # fmt: skip


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = gpt2.respelled(config.filled(**DEFAULTS))
        norm = NormSpec(config.get("layer_norm_epsilon", float), "layer", bias=True)
        mixer = read.attention(config, layout="interleaved")
        rotated, positions = config.size("rotary_dim"), config.size("max_position_embeddings")
        if rotated > mixer.head_dim or rotated % 2:
            raise ModelFileError(
                f"{config.source}: rotary_dim must be even and at most the {mixer.head_dim} of a "
                f"head, got {rotated}"
            )
        hidden = config.size("intermediate_size", None) or 4 * config.size("hidden_size")
        mlp = MLPSpec(hidden, config.get("hidden_act", str), gated=False, bias=True)
        layer = LayerSpec(mixer, mlp, LayerNorms(before_mixer=norm), "parallel")
        return read.decoder_config(
            config,
            (layer,) * config.size("num_hidden_layers"),
            ropes={"full": RopeConfig(rotated, 10000.0, positions, "default", {})},
            norm=norm,
            head=HeadSpec(config.get("tie_word_embeddings", bool), bias=True),
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """GPT-2's names, but of products."""
        return gpt2.plan_of(_NAMES) + decoder.CausalLM.load_plan(config)
