"""InternLM 3: biases of q, k and v, of all products, or none.

transformers has no such class. Llama computes the same; Qwen2, where only q, k and v have biases.
"""

from families import GGUF, SMALL, Case, Family, rope, without
from families.llama import permuted

OTHERS = (
    "attention_bias", "mlp_bias", "pretraining_tp", "layer_types", "sliding_window",
    "use_sliding_window", "max_window_layers",
)  # fmt: skip

# of the code beside its checkpoints
DEFAULTS = {
    "model_type": "internlm3", "vocab_size": 128512, "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": None, "hidden_act": "silu", "max_position_embeddings": 32768,
    "initializer_range": 0.02, "rms_norm_eps": 1e-6, "use_cache": True, "pad_token_id": None,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "qkv_bias": False,
    "attention_dropout": 0.0, "bias": False, "rope_theta": 10000.0, "rope_scaling": None,
    "head_dim": None,
}  # fmt: skip


def own(raw):
    qkv = raw.get("attention_bias", raw["model_type"] == "qwen2")
    return without(raw, *OTHERS) | {
        "model_type": "internlm3",
        "architectures": ["InternLM3ForCausalLM"],
        "qkv_bias": qkv,
        "bias": raw.get("mlp_bias", False),
    }


FAMILY = Family(
    config="LlamaConfig",
    model="LlamaForCausalLM",
    cases={
        "plain": Case(SMALL),
        "biases": Case(
            SMALL
            | {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"head_dim": 10, "attention_bias": True, "mlp_bias": True}
            | {"tie_word_embeddings": True, "rms_norm_eps": 1e-2}
            | rope("linear", factor=4.0)
        ),
        "of-qkv": Case(
            without(SMALL, "head_dim") | {"hidden_size": 64} | rope(),
            model="Qwen2ForCausalLM",
            config_class="Qwen2Config",
            in_gguf=False,
        ),
    },
    own=own,
    defaults=DEFAULTS,
    gguf=GGUF("llama", tensors=permuted),
)
