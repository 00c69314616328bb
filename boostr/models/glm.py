"""GLM: half of each head rotated, pairs side by side, gate and up packed in one tensor."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import decoder
from boostr.models.architecture import Architecture, Config
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan

DEFAULTS = {
    "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696,
    "num_hidden_layers": 40, "num_attention_heads": 32, "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07, "num_key_value_heads": 2, "head_dim": 128, "attention_bias": True,
    "partial_rotary_factor": 0.5,
}  # fmt: skip


SPELLED = {"partial_rotary_factor": "partial_rotary_factor"}  # said even if it is 1


def _said(config: Config) -> Config:
    """The converter leaves out how wide heads are."""
    width = config["hidden_size"] // config["num_attention_heads"]
    return {"head_dim": config.get("head_dim", width)}


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "chatglm",
            "GlmForCausalLM",
            packed=("ffn_up",),
            says=_said,
            spelled=SPELLED,
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        mixer = read.attention(
            config, bias=config.get("attention_bias", bool), layout="interleaved"
        )
        layer = read.pre_norm_layer(config, mixer)
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"))

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Gate and up end to end."""
        own = LoadPlan((decoder.packed_gate_up("mlp.gate_up_proj", config.layers[0].mlp),))
        return decoder.CausalLM.load_plan(config) + own
