"""Ministral 3: yarn, and queries that grow with their position."""

from families import GGUF, SMALL, Case, Family, rope
from families.llama import permuted

SIZES = SMALL | {"max_position_embeddings": 64, "pad_token_id": 0}
YARN = {"factor": 8.0, "original_max_position_embeddings": 8, "beta_fast": 4.0, "beta_slow": 1.0}


def metadata(config):
    parameters = config["rope_parameters"]
    return {
        "rope.scaling.yarn_log_multiplier": parameters["mscale_all_dim"],
        "attention.temperature_scale": parameters["llama_4_scaling_beta"],
    }


FAMILY = Family(
    config="Ministral3Config",
    model="Ministral3ForCausalLM",
    cases={
        "yarn": Case(
            SIZES | rope("yarn", mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.4, **YARN)
        ),
        "odd": Case(
            SIZES
            | {"hidden_size": 21, "num_attention_heads": 7, "num_key_value_heads": 1}
            | {"sliding_window": 9, "tie_word_embeddings": True}
            | rope("yarn", llama_4_scaling_beta=1.5, attention_factor=1.2, truncate=False, **YARN),
            in_gguf=False,
        ),
    },
    gguf=GGUF("mistral3", tensors=permuted, metadata=metadata),
)
