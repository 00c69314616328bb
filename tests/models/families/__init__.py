"""What is tested of each family: a file of data named after its `model_type`, and nothing else.

make_tiny.py makes the numbers of transformers from it, cases.py reads both for the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np

Config = dict[str, Any]
Arrays = dict[str, np.ndarray]

COMMON: Config = {
    "vocab_size": 199, "num_hidden_layers": 2, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SMALL = COMMON | {
    "hidden_size": 32, "intermediate_size": 44, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def without(config: Config, *names: str) -> Config:
    """The config without some keys."""
    return {key: value for key, value in config.items() if key not in names}


def rope(kind: str = "default", theta: float = 500.0, **parameters: Any) -> Config:
    """`rope_parameters`; a small theta, so that its slow dimensions turn within 48 tokens."""
    return {"rope_parameters": {"rope_theta": theta, "rope_type": kind, **parameters}}


def flat_rope(raw: Config) -> Config:
    """The spelling of transformers 4: what `rope_parameters` has lies beside the other keys."""
    old = dict(raw)
    parameters = dict(old.pop("rope_parameters", None) or {})
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in parameters:
            old[key] = parameters.pop(key)
    kind = parameters.pop("rope_type", "default")
    if kind != "default":
        name = "type" if kind in ("linear", "dynamic") else "rope_type"
        old["rope_scaling"] = {name: kind, **parameters}
    return old


# what every config.json says itself; where a text ends its class does not know
SAID = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "bos_token_id", "eos_token_id",
)  # fmt: skip


def bare(raw: Config, defaults: Config) -> Config:
    """The config without the keys that say what its class's defaults say, except SAID."""
    kept = {}
    for key, value in raw.items():
        if key.endswith("_config") and isinstance(defaults.get(key), dict):
            kept[key] = bare(value, defaults[key])
        elif key in SAID or key not in defaults or value != defaults[key]:
            kept[key] = value
    return kept


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        config: arguments of the family's config class.
        model, config_class: of transformers, where they are not the family's.
        dtype, shards: of the checkpoint.
        cache_sensitive: the rope's tables depend on the length so far (dynamic, longrope). Decoding
            with a cache, whose keys were rotated when the sequence was shorter, then differs from
            one long prefill.
        in_gguf: whether a file of GGUF can say it.
        attention: which of transformers' ways to compute it is the truth.
    """

    config: Config
    model: str = ""
    config_class: str = ""
    dtype: str = "float32"
    shards: int = 1
    cache_sensitive: bool = False
    in_gguf: bool = True
    attention: str = "eager"


@dataclass(frozen=True)
class GGUF:
    """How llama.cpp's converter writes the family; gguf_files.py has what most share.

    Attributes:
        architecture: its name there.   encoder: that of those whose tokens see those after them.
        names: modules in the checkpoint, without layer -> in the file, beside those of Llama.
        tensors: of a checkpoint, under its names, as the file has them.
        metadata: what it writes beside what the config says under Llama's keys, by key after
            "<architecture>."; None for what it leaves out.
        numbers: of tensors that it writes as metadata, a number of each layer: the end of their
            names -> key.
        constants: keys of config.json that it does not write, as llama.cpp has them.
    """

    architecture: str
    names: Mapping[str, str] = field(default_factory=dict)
    tensors: Callable[[Arrays, Config], Arrays] = lambda tensors, config: tensors
    metadata: Callable[[Config], Config] = lambda config: {}
    numbers: Mapping[str, str] = field(default_factory=dict)
    constants: Callable[[Config], Config] = lambda config: {}
    encoder: str = ""


@dataclass(frozen=True)
class Family:
    """A family's classes in transformers and the configurations that are compared.

    Attributes:
        config, model: names of classes of transformers.
        cases: by name; the first is the one that runs on a GPU in software.
        weights: mean and spread of the drawn weights whose names match a pattern; the first that
            matches. By default biases are around 0, other vectors (norms) around 1, tables have a
            spread of 0.5, matrices one that keeps activations near 1.
        v4: a config.json of transformers 5 as transformers 4 wrote it.
        gguf: None if llama.cpp, or boostr, reads no such file.
        own: of a family that transformers lacks: its config.json, from that of the classes above,
            which compute the same of the same tensors.
        defaults: of such a family, those of the code beside its checkpoints.
    """

    config: str
    model: str
    cases: Mapping[str, Case]
    weights: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    v4: Callable[[Config], Config] = flat_rope
    gguf: GGUF | None = None
    own: Callable[[Config], Config] | None = None
    defaults: Config = field(default_factory=dict)

    def generates(self, case: Case) -> bool:
        """Whether it is a decoder with logits; else an encoder, or under a head of another kind."""
        ends = ("CausalLM", "ConditionalGeneration", "LMHeadModel")
        return (case.model or self.model).endswith(ends)


def all_families() -> dict[str, Family]:
    """By model_type."""
    names = [name for _, name, _ in iter_modules(__path__)]
    return {name: import_module(f"{__name__}.{name}").FAMILY for name in names}
