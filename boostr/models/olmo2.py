"""OLMo 2: norms after the halves of a layer instead of before, and over all heads of q and k."""

from __future__ import annotations

from boostr.models import config as read
from boostr.models import llama
from boostr.models.config import DecoderConfig, RawConfig
from boostr.nn.specs import LayerNorms, LayerSpec


class CausalLM(llama.CausalLM):
    """See `decoder.CausalLM`."""

    @staticmethod
    def read_config(config: RawConfig) -> DecoderConfig:
        bias, norm = config.get("attention_bias", bool, False), read.rms_norm(config)
        mixer = read.attention(
            config, bias=bias, output_bias=bias, q_norm=norm, k_norm=norm, norm_all_heads=True
        )
        layer = LayerSpec(mixer, read.mlp(config), LayerNorms(after_mixer=norm, after_mlp=norm))
        return read.decoder_config(config, (layer,) * config.size("num_hidden_layers"))
