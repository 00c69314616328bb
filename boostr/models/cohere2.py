"""Command R7B, Aya: Cohere with windows in three layers of four, and no positions in the fourth."""

from __future__ import annotations

from dataclasses import replace

from boostr.models import cohere
from boostr.models import config as read
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig

DEFAULTS = {**cohere.DEFAULTS, "rope_theta": 1e4, "sliding_window": 4096}


class CausalLM(cohere.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "cohere2",
            "Cohere2ForCausalLM",
            keys={
                "attention.layer_norm_epsilon": "layer_norm_eps",
                "attention.sliding_window": "sliding_window",
                "logit_scale": "logit_scale",
            },
            says=lambda config: {"tie_word_embeddings": True},  # no head is read
            writes=lambda config: {
                "logit_scale": cohere.factor_of(config),
                "attention.sliding_window": next(
                    (x.mixer.window for x in config.layers if x.mixer.window), 0
                ),
            },
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        layer, window = cohere.parallel_layer(config), config.size("sliding_window")
        kinds = {
            "sliding_attention": replace(layer, mixer=replace(layer.mixer, window=window)),
            "full_attention": replace(layer, mixer=replace(layer.mixer, rope=None)),
        }
        every = config.size("sliding_window_pattern", 4)  # of transformers 4
        pattern = read.every(every, config.size("num_hidden_layers"))
        return cohere.whole(
            config, tuple(kinds[kind] for kind in read.layer_types(config, pattern))
        )
