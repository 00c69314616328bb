"""The model families: a closed table from Hugging Face's `model_type` to the module that builds it.

Nothing in a model folder chooses code beyond this table.
"""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

from boostr.errors import ModelFileError
from boostr.io.settings import TABLES, Settings
from boostr.models.base import Model
from boostr.models.config import RawConfig
from boostr.models.wrapped import WRAPPERS, text_part

# model_type -> (module of boostr.models, class)
FAMILIES = {
    "apertus": ("apertus", "CausalLM"),
    "arcee": ("arcee", "CausalLM"),
    "bloom": ("bloom", "CausalLM"),
    "cohere": ("cohere", "CausalLM"),
    "cohere2": ("cohere2", "CausalLM"),
    "ernie4_5": ("ernie4_5", "CausalLM"),
    "exaone4": ("exaone4", "CausalLM"),
    "falcon": ("falcon", "CausalLM"),
    "gemma": ("gemma", "CausalLM"),
    "gemma2": ("gemma2", "CausalLM"),
    "gemma3_text": ("gemma3_text", "CausalLM"),
    "glm": ("glm", "CausalLM"),
    "glm4": ("glm4", "CausalLM"),
    "gpt2": ("gpt2", "CausalLM"),
    "gpt_bigcode": ("gpt_bigcode", "CausalLM"),
    "gpt_neo": ("gpt_neo", "CausalLM"),
    "gpt_neox": ("gpt_neox", "CausalLM"),
    "gptj": ("gptj", "CausalLM"),
    "granite": ("granite", "CausalLM"),
    "granitemoehybrid": ("granitemoehybrid", "CausalLM"),
    "helium": ("helium", "CausalLM"),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", "CausalLM"),
    "internlm3": ("internlm3", "CausalLM"),
    "llama": ("llama", "CausalLM"),
    "minicpm": ("minicpm", "CausalLM"),
    "ministral3": ("ministral3", "CausalLM"),
    "mistral": ("mistral", "CausalLM"),
    "mpt": ("mpt", "CausalLM"),
    "nanochat": ("nanochat", "CausalLM"),
    "nemotron": ("nemotron", "CausalLM"),
    "olmo": ("olmo", "CausalLM"),
    "olmo2": ("olmo2", "CausalLM"),
    "olmo3": ("olmo3", "CausalLM"),
    "opt": ("opt", "CausalLM"),
    "phi": ("phi", "CausalLM"),
    "phi3": ("phi3", "CausalLM"),
    "qwen2": ("qwen2", "CausalLM"),
    "qwen3": ("qwen3", "CausalLM"),
    "seed_oss": ("seed_oss", "CausalLM"),
    "smollm3": ("smollm3", "CausalLM"),
    "stablelm": ("stablelm", "CausalLM"),
    "starcoder2": ("starcoder2", "CausalLM"),
    "albert": ("albert", "Model"),
    "bert": ("bert", "Model"),
    "camembert": ("roberta", "Model"),
    "distilbert": ("distilbert", "Model"),
    "electra": ("electra", "Model"),
    "eurobert": ("eurobert", "Model"),
    "gte": ("gte", "Model"),
    "modernbert": ("modernbert", "Model"),
    "mpnet": ("mpnet", "Model"),
    "new": ("gte", "Model"),
    "nomic_bert": ("nomic_bert", "Model"),
    "roberta": ("roberta", "Model"),
    "xlm-roberta": ("roberta", "Model"),
}
# `general.architecture` of a GGUF file -> model_type; the family's file has the rest
ARCHITECTURES = {
    "apertus": "apertus",
    "arcee": "arcee",
    "bloom": "bloom",
    "chatglm": "glm",
    "cohere2": "cohere2",
    "command-r": "cohere",
    "ernie4_5": "ernie4_5",
    "exaone4": "exaone4",
    "falcon": "falcon",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "bert": "bert",
    "eurobert": "eurobert",
    "gemma3": "gemma3_text",
    "gemma-embedding": "gemma3_text",
    "glm4": "glm4",
    "gpt2": "gpt2",
    "gptneox": "gpt_neox",
    "granite": "granite",
    "hunyuan-dense": "hunyuan_v1_dense",
    "llama": "llama",
    "minicpm": "minicpm",
    "mistral3": "ministral3",
    "mpt": "mpt",
    "nemotron": "nemotron",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "phi2": "phi",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder": "gpt_bigcode",
    "starcoder2": "starcoder2",
    "modern-bert": "modernbert",
    "nomic-bert": "nomic_bert",
}


# of files that lack a tensor the model_type is another: `general.architecture` -> both
WITHOUT = {"bert": ("token_types.weight", "distilbert")}


def family(model_type: str, source: str) -> type[Model]:
    """The class of a model_type."""
    if model_type not in FAMILIES:
        known = sorted({*FAMILIES, *WRAPPERS})
        near = difflib.get_close_matches(model_type, known, n=1)
        hint = f" (nearest: {near[0]!r})" if near else ""
        raise ModelFileError(
            f"{source}: unknown architecture, model_type {model_type!r}{hint}; boostr has "
            f"{', '.join(known)}. How one is added: docs/adding.md"
        )
    module, name = FAMILIES[model_type]
    return getattr(_module(module), name)


def family_of(config: RawConfig) -> type[Model]:
    """The class for a config, no key of which asks for what the family has not. Of a wrapper it is
    that of its text part.

    Raises:
        ModelFileError: an unknown model_type, or a key that is refused (`boostr.io.settings`).
    """
    outer, kind = config.given.get("model_type"), config.get("model_type", str)
    if outer in WRAPPERS:
        wrapper = WRAPPERS[outer]
        text = kind if kind in FAMILIES else wrapper.text
        found = text_part(wrapper, text, lambda name: family(name, config.source))
    else:
        found = family(kind, config.source)
    Settings(config.raw, config.source, {**TABLES["config.json"], **found.keys})
    return found.of(config)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"boostr.models.{name}")
