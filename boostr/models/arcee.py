"""Arcee AFM: Llama with an MLP without a gate, of squared positive parts."""

from __future__ import annotations

from dataclasses import replace

from boostr.models import llama
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig

DEFAULTS = {
    "vocab_size": 32000, "hidden_size": 2560, "intermediate_size": 18432, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "hidden_act": "relu2",
}  # fmt: skip


class CausalLM(llama.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (Architecture("arcee", "ArceeForCausalLM", "interleaved"),)  # q and k are permuted

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        made = llama.CausalLM.read_config(config.filled(**DEFAULTS))
        layer = replace(made.layers[0], mlp=replace(made.layers[0].mlp, gated=False))
        return replace(made, layers=(layer,) * len(made.layers))
