"""GPT-BigCode, StarCoder: GPT-2 whose heads may share one key and value."""

from __future__ import annotations

from typing import ClassVar

from boostr.io.settings import INERT, Table
from boostr.models import decoder, gpt2
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan


class CausalLM(gpt2.CausalLM):
    """See `decoder.CausalLM`."""

    keys: ClassVar[Table] = dict.fromkeys(
        ("num_key_value_heads", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"),
        INERT,  # the first follows from `multi_query`
    )
    gguf = (
        Architecture(
            "starcoder",
            "GPTBigCodeForCausalLM",
            packed=("attn_qkv",),
            keys={"attention.layer_norm_epsilon": "layer_norm_epsilon"},
            says=lambda config: {"multi_query": config.get("num_key_value_heads") == 1},
            spelled=gpt2.SPELLED,
        ),
    )

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        heads = 1 if config.get("multi_query", bool, True) else None
        config = config.filled(activation_function="gelu_pytorch_tanh")
        return gpt2.CausalLM.read_config(
            RawConfig({**config.raw, "num_key_value_heads": heads}, config.source)
        )

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """q of all heads, then k and v; or where each head has its own, all three of each."""
        mixer, name = config.layers[0].mixer, decoder.LAYER + "attn.c_attn"
        qkv = decoder.packed_qkv(name, mixer)
        if mixer.kv_heads > 1:
            qkv = decoder.qkv_by_head(name, mixer)
        return gpt2.plan_of(gpt2.PRODUCTS, qkv) + decoder.CausalLM.load_plan(config)
