"""The config.json that the metadata of a GGUF file amounts to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from boostr.errors import ModelFileError
from boostr.io.gguf_special_tokens import END_IDS
from boostr.io.gguf_split import GGUFSource
from boostr.models import family
from boostr.models.architecture import Architecture
from boostr.models.base import GENERATES
from boostr.models.config import RawConfig
from boostr.models.gguf import architecture_of

# key after "<architecture>." -> config.json
_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_ROPE_TYPES = ("none", "linear", "yarn", "longrope")


def hf_config(file: GGUFSource) -> dict[str, Any]:
    """Hugging Face's names for what the file says, and `rope_layout`.

    Raises:
        ModelFileError: an architecture, or something of it, that is not known.
    """
    (model_type, row), tensors = architecture_of(file), file.tensors
    config: dict[str, Any] = {"model_type": model_type, "rope_layout": row.layout}
    for key, name in {**_KEYS, **row.keys}.items():
        value = _value(file, key)
        if value is not None:
            config[name] = value
    config.setdefault("rope_theta", 10000.0)  # llama.cpp's, whatever the family's is
    table = tensors.get("token_embd.weight")
    if table is not None and len(table.shape) == 2:
        config["vocab_size"] = table.shape[0]
    config["tie_word_embeddings"] = "output.weight" not in tensors
    ends = [file.metadata.get(f"tokenizer.ggml.{key}") for key in END_IDS]
    config["eos_token_id"] = [id_ for id_ in dict.fromkeys(ends) if id_ is not None] or None
    names = ("attn_q.bias", "attn_qkv.bias")
    config["attention_bias"] = any(f"blk.0.{name}" in tensors for name in names)
    config["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    config["norm_bias"] = "output_norm.bias" in tensors
    types, act = tensors.get("token_types.weight"), f"{row.name}.hidden_activation"
    if types is not None:
        config["type_vocab_size"] = types.shape[0]
    if act in file.metadata:
        config["hidden_activation"] = file.metadata[act]
    for name, (part, there) in row.flags.items():
        config[name] = there if f"blk.0.{part}" in tensors else not there
    config |= row.says(_with_sizes(file, config))
    made = family(model_type, "").of(RawConfig(config, str(file.path)))
    _refuse_other_attention(file, row, GENERATES in made.capabilities)
    config |= _layer_types(file, config) | _partial_rope(file, config)
    config["rope_scaling"] = _rope_scaling(file)
    return config


def _refuse_other_attention(file: GGUFSource, row: Architecture, causal: bool) -> None:
    if "attention.sliding_window" not in row.keys and _value(file, "attention.sliding_window"):
        raise ModelFileError(
            f"{file.path}: a sliding window in a GGUF file of {row.name} is not supported"
        )
    sections = file.metadata.get(f"{row.name}.rope.dimension_sections")
    if sections is not None and np.any(np.asarray(sections) != 0):
        raise ModelFileError(
            f"{file.path}: rope.dimension_sections of {row.name}, for positions in images, are not "
            "supported"
        )
    if _value(file, "attention.causal") not in (None, causal):
        seen = "in both directions" if causal else "of earlier tokens alone"
        raise ModelFileError(
            f"{file.path}: {row.name} with attention.causal {str(not causal).lower()}, {seen}, is "
            "not supported"
        )


def _layer_types(file: GGUFSource, config: dict[str, Any]) -> dict[str, Any]:
    """`layer_types`, where the file says which layers have the window: a flag for each, or of how
    many the last has none."""
    name = f"{file.metadata['general.architecture']}.attention.sliding_window_pattern"
    pattern, layers = file.metadata.get(name), config["num_hidden_layers"]
    if pattern is None or not config.get("sliding_window"):
        return {}
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        pattern = np.arange(layers) % pattern < pattern - 1
    flags = np.asarray(pattern)
    if flags.dtype != np.bool_ or flags.shape != (layers,):
        raise ModelFileError(f"{file.path}: {name} must be {layers} flags, got {pattern!r:.80}")
    return {"layer_types": ["sliding_attention" if f else "full_attention" for f in flags]}


def _value(file: GGUFSource, key: str) -> int | float | bool | None:
    """The metadata of the file's architecture under a key."""
    name = f"{file.metadata['general.architecture']}.{key}"
    value = file.metadata.get(name)
    if value is not None and not isinstance(value, int | float):
        raise ModelFileError(f"{file.path}: {name} must be one number, got {value!r:.80}")
    return value


def _with_sizes(file: GGUFSource, config: dict[str, Any]) -> dict[str, Any]:
    """The config, which must have what every model has."""
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
        size = config.get(name)
        if not isinstance(size, int) or size < 1:
            raise ModelFileError(f"{file.path}: the metadata lacks {name} of 1 or more: {size!r}")
    return config


def _partial_rope(file: GGUFSource, config: dict[str, Any]) -> dict[str, Any]:
    """`partial_rotary_factor`, where fewer dimensions than a head has are rotated."""
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rotated = _value(file, "rope.dimension_count")
    if not rotated or rotated == width:
        return {"partial_rotary_factor": 1.0}
    if not isinstance(rotated, int) or not isinstance(width, int) or not 0 < rotated < width:
        raise ModelFileError(
            f"{file.path}: rope.dimension_count must be 1 to the {width} of a head, got {rotated}"
        )
    factor = rotated / width
    return {"partial_rotary_factor": factor if int(width * factor) == rotated
            else math.nextafter(factor, 2)}  # fmt: skip


def _rope_scaling(file: GGUFSource) -> dict[str, Any]:
    """As config.json has it; frequency factors are ours: what divides each frequency."""
    kind = file.metadata.get(f"{file.metadata['general.architecture']}.rope.scaling.type", "none")
    if "rope_factors_long.weight" in file.tensors:
        kind = "longrope"
    if not isinstance(kind, str) or kind not in _ROPE_TYPES:
        raise ModelFileError(
            f"{file.path}: rope scaling {kind!r:.80} in GGUF; known: {', '.join(_ROPE_TYPES)}"
        )
    old = _value(file, "rope.scale_linear")  # files of 2023
    if kind == "none" and old not in (None, 1):
        kind = "linear"
    scaling: dict[str, Any] = {
        "rope_type": "default" if kind == "none" else kind,
        "factor": _value(file, "rope.scaling.factor") or old,
        "original_max_position_embeddings": _value(file, "rope.scaling.original_context_length"),
    }
    scaling["llama_4_scaling_beta"] = _value(file, "attention.temperature_scale")
    if kind == "yarn":
        scaling |= _yarn(file, scaling["factor"])
    if kind == "longrope":
        for name in ("long", "short"):
            scaling[f"{name}_factor"] = _numbers(file, f"rope_factors_{name}.weight")
        scaling["attention_factor"] = _value(file, "rope.scaling.attn_factor")
    if "rope_freqs.weight" in file.tensors:
        scaling["frequency_factors"] = _numbers(file, "rope_freqs.weight")
    return scaling


def _yarn(file: GGUFSource, factor: float | None) -> dict[str, Any]:
    """YaRN's numbers. Source: llama.cpp, llama-context.cpp and its converter."""
    extrapolation = _value(file, "rope.scaling.yarn_ext_factor")
    if extrapolation not in (None, 1):
        raise ModelFileError(
            f"{file.path}: rope.scaling.yarn_ext_factor must be 1, got {extrapolation}"
        )
    scaling: dict[str, Any] = {
        "beta_fast": _value(file, "rope.scaling.yarn_beta_fast"),
        "beta_slow": _value(file, "rope.scaling.yarn_beta_slow"),
    }
    attention = _value(file, "rope.scaling.yarn_attn_factor")
    multiplier = _value(file, "rope.scaling.yarn_log_multiplier")
    if attention is None and factor is not None:
        grown = math.log(max(factor, 1.0))
        attention = (0.1 * grown + 1) / (0.1 * (multiplier or 0.0) * grown + 1)
    times = _value(file, "rope.scaling.attn_factor")
    if attention is not None:
        scaling["attention_factor"] = attention * (1.0 if times is None else times)
    return scaling


def _numbers(file: GGUFSource, name: str) -> list[float]:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.type not in ("F32", "F16", "BF16") or len(tensor.shape) != 1:
        raise ModelFileError(f"{file.path}: expected a vector {name} for the rope, got {tensor}")
    numbers = np.asarray(tensor.data, np.float64)
    if not np.all(np.isfinite(numbers) & (numbers > 0)):
        raise ModelFileError(f"{file.path}: {name} must be positive numbers")
    return numbers.tolist()
