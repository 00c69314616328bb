"""GPT Neo: GPT-2 whose scores are not scaled, and some of whose layers see a window."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from boostr.errors import ModelFileError
from boostr.io.settings import INERT, Table
from boostr.models import config as read
from boostr.models import decoder, gpt2
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.specs import EmbeddingSpec, LayerNorms, LayerSpec, MLPSpec, NormSpec

DEFAULTS = {
    "vocab_size": 50257, "max_position_embeddings": 2048, "hidden_size": 2048, "num_layers": 24,
    "attention_types": [[["global", "local"], 12]], "num_heads": 16, "intermediate_size": None,
    "window_size": 256, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}  # fmt: skip
_NAMES = {"attn.attention": "self_attn", "self_attn.out_proj": "self_attn.o_proj", **gpt2.MLP}


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    keys: ClassVar[Table] = {"attention_layers": INERT}  # what `attention_types` amounts to

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        config = config.filled(num_attention_heads=config.size("num_heads"))
        norm = NormSpec(config.get("layer_norm_epsilon", float), "layer", bias=True)
        mixer = read.attention(config, output_bias=True, rope=None, scale=1.0)
        hidden = config.size("intermediate_size", None) or 4 * config.size("hidden_size")
        mlp = MLPSpec(hidden, config.get("activation_function", str), gated=False, bias=True)
        layer = LayerSpec(mixer, mlp, LayerNorms(before_mixer=norm, before_mlp=norm))
        local = replace(mixer, window=config.size("window_size"))
        mixers = [local if kind == "local" else mixer for kind in _kinds(config)]
        return read.decoder_config(
            config,
            read.by_layer(layer, mixers),
            ropes={},
            embedding=EmbeddingSpec(positions=config.size("max_position_embeddings")),
            norm=norm,
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """GPT-2's names, but q, k and v apart."""
        return gpt2.plan_of(_NAMES) + decoder.CausalLM.load_plan(config)


def _kinds(config: RawConfig) -> list[str]:
    """Of each layer "global" or "local": `attention_types` has lists of them, and how often each is
    repeated."""
    layers, types = config.size("num_layers"), config.get("attention_types", list)
    try:
        kinds = [kind for some, times in types for _ in range(times) for kind in some]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != layers or any(kind not in ("global", "local") for kind in kinds):
        raise ModelFileError(
            f"{config.source}: attention_types must be lists of 'global' and 'local' and how often "
            f"each is repeated, for {layers} layers, got {types!r:.80}"
        )
    return kinds
