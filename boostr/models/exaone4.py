"""EXAONE 4: norms after the halves of a layer; with windows, full layers have no positions."""

from __future__ import annotations

from dataclasses import replace

from boostr.errors import ModelFileError
from boostr.models import config as read
from boostr.models import olmo2
from boostr.models.architecture import Architecture, Config
from boostr.models.config import ModelConfig, RawConfig
from boostr.nn.specs import LayerNorms, LayerSpec

DEFAULTS = {
    "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 16384,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "num_key_value_heads": 32,
}  # fmt: skip


def _said(config: Config) -> Config:
    """Of the 32B llama.cpp knows the window, of others none."""
    known = 4096 if config["num_hidden_layers"] == 64 else None
    return {"sliding_window": config.get("sliding_window", known) or None}


class CausalLM(olmo2.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "exaone4",
            "Exaone4ForCausalLM",
            keys={"attention.sliding_window": "sliding_window"},
            says=_said,
            writes=olmo2.windows,
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        windowed = config.raw.get("sliding_window", 4096)  # null is none
        config = config.filled(**DEFAULTS)
        norm, layers = read.rms_norm(config), config.size("num_hidden_layers")
        mixer = read.attention(config, q_norm=norm, k_norm=norm)
        full = LayerSpec(mixer, read.mlp(config), LayerNorms(after_mixer=norm, after_mlp=norm))
        if windowed is None:
            return read.decoder_config(config, (full,) * layers)
        window = config.size("sliding_window", 4096)
        kinds = {
            "sliding_attention": replace(full, mixer=replace(mixer, window=window)),
            "full_attention": replace(full, mixer=replace(mixer, rope=None)),
        }
        pattern = read.every(_every(config), layers)
        return read.decoder_config(
            config, [kinds[kind] for kind in read.layer_types(config, pattern)]
        )


def _every(config: RawConfig) -> int:
    """Of so many layers the last is full: a number, or letters such as "LLLG"."""
    pattern = config.raw.get("sliding_window_pattern")
    if isinstance(pattern, str):
        if not pattern or set(pattern[:-1]) - {"L"} or pattern[-1] != "G":
            raise ModelFileError(
                f"{config.source}: sliding_window_pattern must be a number or letters such as "
                f"'LLLG', got {pattern!r:.80}"
            )
        return len(pattern)
    return config.size("sliding_window_pattern", 4)
