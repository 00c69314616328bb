"""Write tests/models/data/config_keys.json: the keys of the config classes of transformers.

    python tests/models/make_config_keys.py        needs transformers 5

model_type -> keys that its class has and not all classes have, "*" -> those of all, of wrappers
also "model_type.text_config"; of families that transformers lacks those that families/NAME.py has.
Run it by hand for a new type; test_keys.py reads the file.
"""

import json
from pathlib import Path

from families import all_families
from transformers import CONFIG_MAPPING, PretrainedConfig

TYPES = """
    llama mistral qwen2 qwen3 gemma3_text gpt_neox olmo2 bert
    phi3 smollm3 granite granitemoehybrid ministral3 gemma gemma2 gpt2
    xlm-roberta roberta mpnet distilbert nomic_bert modernbert eurobert electra albert camembert gte
    gemma3 mistral3 qwen3_vl qwen2_5_vl smolvlm
    olmo olmo3 stablelm starcoder2 phi cohere cohere2 exaone4 glm glm4 hunyuan_v1_dense ernie4_5
    arcee apertus seed_oss nanochat helium nemotron
    opt bloom mpt falcon gpt_neo gptj gpt_bigcode
"""
# what transformers 4 wrote into every file
OLD = {
    "torch_dtype", "tie_encoder_decoder", "pruned_heads", "add_cross_attention",
    "cross_attention_hidden_size",
}  # fmt: skip


def own(config: dict, shared: set[str]) -> list[str]:
    return sorted(key for key in config if key not in shared and not key.startswith("_"))


def main() -> None:
    shared = PretrainedConfig().to_dict().keys() - {"model_type"}
    keys = {"*": sorted(shared | OLD)}
    for name in TYPES.split():
        config = CONFIG_MAPPING[name]().to_dict()
        keys[name] = own(config, shared)
        if "text_config" in config:
            keys[f"{name}.text_config"] = own(config["text_config"], shared)
    keys |= {name: sorted(family.defaults) for name, family in all_families().items() if family.own}
    lines = [f"{json.dumps(name)}: {json.dumps(keys[name])}" for name in sorted(keys)]
    path = Path(__file__).parent / "data" / "config_keys.json"
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
