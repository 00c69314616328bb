"""Phi-3, Phi-3.5, Phi-4-mini: Llama with q, k, v and gate, up end to end, and LongRoPE."""

from __future__ import annotations

from dataclasses import replace

from boostr.models import config as read
from boostr.models import decoder
from boostr.models.architecture import Architecture, Config
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan

DEFAULTS = {
    "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def _said(config: Config) -> Config:
    """A window of 0 is none."""
    return {"sliding_window": config.get("sliding_window") or None}


def _written(config: ModelConfig) -> Config:
    return {
        "attention.sliding_window": config.layers[0].mixer.window or 0,
        "rope.scaling.original_context_length": config.ropes["full"].original_positions,
    }


class CausalLM(decoder.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "phi3",
            "Phi3ForCausalLM",
            packed=("attn_qkv", "ffn_up"),
            keys={
                "attention.sliding_window": "sliding_window",
                "rope.scaling.original_context_length": "original_max_position_embeddings",
            },
            says=_said,
            writes=_written,
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        mixer = read.attention(config, window=config.size("sliding_window", None))
        positions = config.size("max_position_embeddings")
        rope = read.rope_config(config, mixer.head_dim, positions)
        if rope.rope_type == "yarn":  # an old name for it
            rope = replace(rope, rope_type="longrope")
        layers = (read.pre_norm_layer(config, mixer),) * config.size("num_hidden_layers")
        return read.decoder_config(config, layers, ropes={"full": rope})

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Its products that lie end to end."""
        layer = config.layers[0]
        return decoder.CausalLM.load_plan(config) + LoadPlan((
            decoder.packed_qkv(decoder.LAYER + "self_attn.qkv_proj", layer.mixer),
            decoder.packed_gate_up("mlp.gate_up_proj", layer.mlp),
        ))  # fmt: skip
