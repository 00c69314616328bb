"""What a GGUF file says of a model, from its config: `gguf_config` read backwards."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from boostr.errors import ModelFileError
from boostr.models import FAMILIES, family
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.lazy import LazyWeight, whole
from boostr.nn.specs import NormSpec
from boostr.ops.rope_tables import RopeConfig, frequencies


def architecture_for(config: ModelConfig, source: str) -> Architecture:
    """How a model is written as GGUF."""
    model_type = config.model_type
    rows = family(model_type, source).of(RawConfig(config.extra, source)).gguf
    if not rows:
        known = ", ".join(name for name in FAMILIES if family(name, source).gguf)
        raise ModelFileError(
            f"{source}: {model_type} has no form in GGUF that boostr writes; known: {known}"
        )
    return rows[0]


def as_written(config: ModelConfig, row: Architecture) -> ModelConfig:
    """The model as a file has it: of learned positions the rows that texts take, which forgets that
    an id of padding in a text takes none (RoBERTa); and with a head of its own."""
    spec = config.embedding
    if row.untied and config.head is not None:
        config = replace(config, head=replace(config.head, tied=False))
    if spec.positions is None or not spec.first_position:
        return config
    rows = spec.positions - spec.first_position
    return replace(config, embedding=replace(spec, positions=rows, first_position=0, padding=None))


def gguf_metadata(config: ModelConfig, source: str) -> dict[str, Any]:
    """Keys and values of the model itself.

    Raises:
        ModelFileError: something of the model that GGUF has no key for.
    """
    row = architecture_for(config, source)
    layer, rope = config.layers[0], config.ropes.get("full")
    mixer, norm = layer.mixer, config.norm or layer.norms.after_mixer or NormSpec()
    keys: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": rope.max_positions if rope else config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": layer.mlp.hidden,
        "attention.head_count": mixer.heads,
        "attention.head_count_kv": mixer.kv_heads,
        "attention.key_length": mixer.head_dim,
        "attention.value_length": mixer.head_dim,
        "vocab_size": config.vocab_size,
    }
    own = "rms_epsilon" if norm.kind == "rms" else "epsilon"
    keys[f"attention.layer_norm_{own}"] = norm.eps
    if rope is not None:
        keys |= {"rope.dimension_count": rope.rotary_dim, "rope.freq_base": float(rope.theta)}
        keys |= _scaling(rope, source)
        if rope.parameters.get("llama_4_scaling_beta"):
            keys["attention.temperature_scale"] = rope.number("llama_4_scaling_beta")
    if not mixer.causal:
        keys["attention.causal"] = False
    keys |= row.writes(config)
    named = {f"{row.name}.{key}": value for key, value in keys.items()}
    if config.embedding.types is not None or row.name == "bert":  # DistilBERT has none
        named["tokenizer.ggml.token_type_count"] = config.embedding.types or 1
    return {"general.architecture": row.name, **named}


def layer_numbers(row: Architecture, weights: dict[str, LazyWeight], layers: int) -> dict[str, Any]:
    """The parameters that are numbers in the metadata; they are taken out of the weights."""
    keys: dict[str, Any] = {}
    for key, what in row.numbers.items():
        if not isinstance(what, tuple):
            keys[key] = np.full(layers, what, np.float32)
            continue
        name, _ = what
        taken = [weights.pop(f"model.layers.{i}.{name}") for i in range(layers)]
        numbers = [np.asarray(weight.read(whole(weight.shape)), np.float32) for weight in taken]
        keys[key] = np.concatenate([n.reshape(1) for n in numbers])
    return keys


def _scaling(rope: RopeConfig, source: str) -> dict[str, Any]:
    kind, given = rope.rope_type, rope.parameters
    if kind in ("default", "llama3"):  # llama3's is a tensor
        return {}
    if kind not in ("linear", "yarn", "longrope"):
        raise ModelFileError(f"{source}: GGUF has no rope scaling of type {kind!r}")
    if kind == "yarn" and not given.get("truncate", True):
        raise ModelFileError(f"{source}: GGUF has no yarn whose ramp is not truncated")
    keys: dict[str, Any] = {"type": kind}
    factor, attention = given.get("factor"), frequencies(rope, 1)[1]
    if kind == "yarn":
        factor = rope.number("factor", rope.max_positions / rope.original_positions)
        grown, multiplier = 0.1 * math.log(max(factor, 1.0)), given.get("mscale_all_dim")
        if multiplier:
            keys["yarn_log_multiplier"] = float(multiplier)
        attention *= ((multiplier or 0.0) * grown + 1) / (grown + 1)  # programs have this inverse
    if factor is not None:
        keys["factor"] = float(factor)
    if kind != "linear":
        keys["original_context_length"] = rope.original_positions
    if kind == "longrope" or abs(attention - 1) > 1e-6:
        keys["attn_factor"] = attention
    for name in ("beta_fast", "beta_slow"):
        if given.get(name) is not None:
            keys[f"yarn_{name}"] = float(given[name])
    return {f"rope.scaling.{key}": value for key, value in keys.items()}


def rope_tensors(rope: RopeConfig | None) -> dict[str, np.ndarray]:
    """Factors of frequencies, which GGUF has as tensors, float32 [R / 2]."""
    if rope is None:
        return {}
    given = rope.parameters
    if rope.rope_type == "longrope":
        return {
            f"rope_factors_{name}.weight": np.asarray(given[f"{name}_factor"], np.float32)
            for name in ("long", "short")
        }
    if rope.rope_type == "llama3":
        return {"rope_freqs.weight": llama3_factors(rope)}
    if given.get("frequency_factors") is not None:
        return {"rope_freqs.weight": np.asarray(given["frequency_factors"], np.float32)}
    return {}


def llama3_factors(rope: RopeConfig) -> np.ndarray:
    """What divides each frequency: 1 for short waves, `factor` for long ones, and between."""
    low, high = rope.number("low_freq_factor", 1.0), rope.number("high_freq_factor", 4.0)
    context, factor = rope.original_positions, rope.number("factor")
    frequencies = rope.theta ** -(np.arange(0, rope.rotary_dim, 2) / rope.rotary_dim)
    turns = context * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def differing(config: ModelConfig, other: ModelConfig) -> tuple[str, Any, Any] | None:
    """Something that two configs say otherwise, beside how weights lie: its name, and both."""
    ours, theirs = _facts(config), _facts(other)
    names = (name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
    return next(((name, ours.get(name), theirs.get(name)) for name in names), None)


_ANOTHER_WAY = ("layout", "offset")  # of the weights: the file has them so


def _facts(config: ModelConfig) -> dict[str, Any]:
    """All that a config says, by a name for messages."""
    facts = {f"{name}.theta": float(rope.theta) for name, rope in config.ropes.items()}
    facts |= {f"{name}.rotary_dim": rope.rotary_dim for name, rope in config.ropes.items()}
    for name in ("embedding", "norm", "head"):
        spec = getattr(config, name)
        facts |= {} if spec is None else _flat(name, asdict(spec))
    for i, layer in enumerate(config.layers):
        facts |= _flat(f"layer {i}", asdict(layer))
    return facts


def _flat(name: str, table: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(f"{name}.{key}", value)
        elif key not in _ANOTHER_WAY:
            flat[f"{name}.{key}"] = value
    return flat
