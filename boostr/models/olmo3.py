"""OLMo 3: OLMo 2 with windows in three layers of four; the scaling of the rope is the fourth's."""

from __future__ import annotations

from dataclasses import replace

from boostr.models import config as read
from boostr.models import olmo2
from boostr.models.architecture import Architecture, Config
from boostr.models.config import ModelConfig, RawConfig

THETA = 5e5


def _written(config: ModelConfig) -> Config:
    return {**olmo2.windows(config), "rope.freq_base_swa": float(config.ropes["local"].theta)}


class CausalLM(olmo2.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (Architecture("olmo2", "Olmo3ForCausalLM", untied=True, writes=_written),)

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**olmo2.DEFAULTS, sliding_window=4096, max_position_embeddings=2048)
        full = olmo2.layer(config)
        mixer = replace(full.mixer, window=config.size("sliding_window"), rope="local")
        kinds = {"full_attention": full, "sliding_attention": replace(full, mixer=mixer)}
        pattern = read.every(4, config.size("num_hidden_layers"))
        return read.decoder_config(
            config,
            [kinds[kind] for kind in read.layer_types(config, pattern)],
            ropes=read.local_ropes(config, full.mixer.head_dim, THETA, "rope_theta_swa", None),
        )
