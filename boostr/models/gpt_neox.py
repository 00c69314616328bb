"""GPT-NeoX, Pythia: layer norms, partial rope, and halves that read the same input."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import llama
from boostr.models.config import DecoderConfig, RawConfig
from boostr.nn.specs import HeadSpec, LayerNorms, LayerSpec, MLPSpec, NormSpec


class CausalLM(llama.CausalLM):
    """See `decoder.CausalLM`."""

    @staticmethod
    def read_config(config: RawConfig) -> DecoderConfig:
        norm = NormSpec(config.get("layer_norm_eps", float, 1e-5), "layer", bias=True)
        bias = config.get("attention_bias", bool, True)
        mixer = read.attention(config, bias=bias, output_bias=bias)
        act = config.get("hidden_act", str, "gelu")
        layer = LayerSpec(
            mixer,
            MLPSpec(config.size("intermediate_size"), act, gated=False, bias=True),
            LayerNorms(before_mixer=norm, before_mlp=norm),
            "parallel" if config.get("use_parallel_residual", bool, True) else "serial",
        )
        positions = config.size("max_position_embeddings", 2048)
        theta = config.get("rotary_emb_base", float, 10000.0)
        partial = config.get("rotary_pct", float, 0.25)
        return read.decoder_config(
            config,
            (layer,) * config.size("num_hidden_layers"),
            ropes={
                "full": read.rope_config(
                    config, mixer.head_dim, positions, theta=theta, partial=partial
                )
            },
            head=HeadSpec(norm, config.get("tie_word_embeddings", bool, False)),
        )
