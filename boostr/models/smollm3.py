"""SmolLM3: Llama with no positions in every fourth layer; windows where a config asks for them."""

from __future__ import annotations

from dataclasses import replace

from boostr.errors import ModelFileError
from boostr.models import config as read
from boostr.models import llama
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig

DEFAULTS = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768,
    "rope_theta": 2e6, "no_rope_layer_interval": 4, "tie_word_embeddings": True,

}  # fmt: skip


class CausalLM(llama.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (Architecture("smollm3", "SmolLM3ForCausalLM", "interleaved"),)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        bias = config.get("attention_bias", bool, False)
        mixer = read.attention(config, bias=bias, output_bias=bias)
        window = None
        if config.get("use_sliding_window", bool, False):
            window = config.size("sliding_window", None)
        rotated = _rotated(config)
        default = ["full_attention" if r or not window else "sliding_attention" for r in rotated]
        mixers = [
            replace(mixer, rope="full" if r else None, window=window if kind[0] == "s" else None)
            for r, kind in zip(rotated, read.layer_types(config, default), strict=True)
        ]
        layers = read.by_layer(read.pre_norm_layer(config, mixer), mixers)
        return read.decoder_config(config, layers)


def _rotated(config: RawConfig) -> list[bool]:
    """Which layers have rope: a 0 in `no_rope_layers` is one without, as is every so many-th."""
    layers = config.size("num_hidden_layers")
    given = config.get("no_rope_layers", list, None)
    if given is None:
        every = config.size("no_rope_layer_interval")
        return [(i + 1) % every != 0 for i in range(layers)]
    if len(given) < layers or any(flag not in (0, 1) for flag in given):
        raise ModelFileError(
            f"{config.source}: no_rope_layers must be {layers} of 0 and 1, got {given!r:.80}"
        )
    return [bool(flag) for flag in given[:layers]]
