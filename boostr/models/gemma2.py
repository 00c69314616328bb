"""Gemma 2: norms before and after both halves, softcaps of scores and logits, windows in every
second layer."""

from __future__ import annotations

from dataclasses import replace

from boostr.models import config as read
from boostr.models import decoder, gemma, plan
from boostr.models.architecture import Architecture, Config
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan

DEFAULTS = gemma.SHARED | {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}  # fmt: skip


def said(config: Config, largest: int) -> Config:
    """The converter adds the 1 to norms; the model of so many layers alone scales by the width of
    its embedding."""
    width = config["hidden_size"] // config["num_attention_heads"]
    scalar = width if config["num_hidden_layers"] == largest else config.get("head_dim", width)
    return {"norm_offset": 0.0, "query_pre_attn_scalar": scalar}


def written(config: ModelConfig) -> Config:
    """Window and softcaps."""
    mixers = [layer.mixer for layer in config.layers]
    keys: Config = {
        "attention.sliding_window": next((m.window for m in mixers if m.window), None) or 0
    }
    if mixers[0].softcap:
        keys["attn_logit_softcapping"] = mixers[0].softcap
    if config.head is not None and config.head.softcap:
        keys["final_logit_softcapping"] = config.head.softcap
    return keys


class CausalLM(gemma.CausalLM):
    """See `decoder.CausalLM`."""

    gguf = (
        Architecture(
            "gemma2",
            "Gemma2ForCausalLM",
            keys={
                "attention.sliding_window": "sliding_window",
                "attn_logit_softcapping": "attn_logit_softcapping",
                "final_logit_softcapping": "final_logit_softcapping",
            },
            says=lambda config: said(config, largest=46),
            writes=written,
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        full = gemma.attention(
            config,
            scale=config.factor("query_pre_attn_scalar") ** -0.5,
            softcap=config.get("attn_logit_softcapping", float, None) or None,
        )
        local = replace(full, window=config.size("sliding_window", None))
        count = config.size("num_hidden_layers")
        pattern = ["full_attention" if i % 2 else "sliding_attention" for i in range(count)]
        kinds = {"full_attention": full, "sliding_attention": local}
        mixers = [kinds[kind] for kind in read.layer_types(config, pattern)]
        layers = read.by_layer(gemma.sandwich(config, full), mixers)
        return gemma.decoder_config(config, layers)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """Gemma's norm after attention has the name of Llama's before the MLP."""
        layer = decoder.LAYER
        return decoder.CausalLM.load_plan(config) + LoadPlan((
            plan.rename(layer + "post_attention_layernorm", layer + "attention_output_norm"),
            plan.rename(layer + "pre_feedforward_layernorm", layer + "post_attention_layernorm"),
            plan.rename(layer + "post_feedforward_layernorm", layer + "mlp_output_norm"),
        ))  # fmt: skip
