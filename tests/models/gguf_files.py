"""Tiny checkpoints as GGUF, by the rules of llama.cpp's converter (convert_hf_to_gguf.py).

Written from what the converter was seen to write, without boostr's own tables. What a family has of
its own is in families/NAME.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from families import GGUF, all_families
from gguf import GGMLQuantizationType, GGUFWriter, quants

from boostr.io.safetensors import open_safetensors

FAMILIES = {name: family.gguf for name, family in all_families().items() if family.gguf}
BOTH_WAYS = "use_bidirectional_attention"
_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def convert(
    folder: Path,
    path: Path,
    kind: str = "F32",
    metadata: dict[str, Any] | None = None,
    packed: bool = False,
    parts: int = 1,
    tokenizer: tuple[str, str] | None = None,
    head: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write the checkpoint in `folder` as a GGUF file; the path of (the first part of) it.

    Args:
        kind: type of GGUF for matrices.
        metadata: beside what the converter writes, key after "<architecture>.".
        packed: q, k and v end to end in one tensor, as some architectures have them.
        parts: files to split it into, as llama-gguf-split does.
        tokenizer: what `tokenizer.ggml.model` and `.pre` say, without any token.
        head: tensors beside those of the model, under their names in the file.
    """
    config = json.loads((folder / "config.json").read_text())
    family = FAMILIES[config["model_type"]]
    architecture = family.encoder if config.get(BOTH_WAYS) else family.architecture
    read = _read(folder)
    numbers = _numbers(read, family)
    tensors = _tensors(read, config, family) | _rope_tensors(config) | dict(head or {})
    tensors = _packed(tensors) if packed else tensors
    names = list(tensors)
    for number in range(parts):
        part = path if parts == 1 else part_path(path, number, parts)
        writer = GGUFWriter(part, architecture)
        if number == 0:
            said = {**_metadata(config), **family.metadata(config), **(metadata or {})}
            for key, value in said.items():
                _add(writer, f"{architecture}.{key}", value)
            for key, values in numbers.items():
                writer.add_array(key, values)
            if tokenizer is not None:
                writer.add_tokenizer_model(tokenizer[0])
                writer.add_tokenizer_pre(tokenizer[1])
        if parts > 1:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", parts)
            writer.add_int32("split.tensors.count", len(names))
        for name in names[number::parts]:
            _add_tensor(writer, name, tensors[name], kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path if parts == 1 else part_path(path, 0, parts)


def part_path(path: Path, number: int, parts: int) -> Path:
    """The file of a part, counted from 0."""
    return path.with_name(f"{path.stem}-{number + 1:05d}-of-{parts:05d}.gguf")


def _packed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = dict(tensors)
    for name in tensors:
        if ".attn_q." in name:
            parts = [name.replace("attn_q", f"attn_{part}") for part in "qkv"]
            out[name.replace("attn_q", "attn_qkv")] = np.concatenate([out.pop(p) for p in parts])
    return out


def _add_tensor(writer: GGUFWriter, name: str, tensor: np.ndarray, kind: str) -> None:
    if tensor.ndim == 1 or tensor.shape[1] % 32 or kind == "F32":  # as llama-quantize does
        writer.add_tensor(name, np.ascontiguousarray(tensor))
        return
    blocks = quants.quantize(tensor, GGMLQuantizationType[kind])
    writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType[kind])


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(key, value)
        return
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    add.get(type(value), writer.add_string)(key, value)


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    """Of the keys that most have under Llama's names; None where the config lacks one."""
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    head_dim = config.get("head_dim") or (heads and width // heads)
    rope = config.get("rope_parameters") or {}
    flat = rope.get("full_attention", rope)
    theta = flat.get("rope_theta", config.get("rope_theta"))
    old = config.get("rope_scaling") or {}
    data = {
        "block_count": config.get("num_hidden_layers"),
        "context_length": config.get("max_position_embeddings"),
        "embedding_length": width,
        "feed_forward_length": config.get("intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "attention.key_length": config.get("head_dim"),
        "attention.value_length": config.get("head_dim"),
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
    }
    if flat:
        data["rope.dimension_count"] = int(head_dim * flat.get("partial_rotary_factor", 1.0))
        data["rope.freq_base"] = None if theta is None else float(theta)
    return data | _scaling(flat if flat.get("rope_type", "default") != "default" else old)


def _scaling(rope: dict[str, Any]) -> dict[str, Any]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("linear", "yarn", "longrope"):
        return {}
    data: dict[str, Any] = {"rope.scaling.type": kind}
    if "factor" in rope:
        data["rope.scaling.factor"] = rope["factor"]
    if kind == "linear":
        return data
    data["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    keys = {"attention_factor": "yarn_attn_factor", "beta_fast": "yarn_beta_fast",
            "beta_slow": "yarn_beta_slow"}  # fmt: skip
    return data | {f"rope.scaling.{new}": rope[old] for old, new in keys.items() if old in rope}


def _rope_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{name}.weight": np.asarray(rope[f"{name}_factor"], np.float32)
            for name in ("long", "short")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    D = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    factors = []
    for i in range(0, D, 2):
        wave = 2 * math.pi * theta ** (i / D)
        smooth = (context / wave - low) / (high - low)
        between = 1 / ((1 - smooth) / rope["factor"] + smooth)
        inside = context / high <= wave <= context / low
        factors.append(between if inside else 1.0 if wave < context / high else rope["factor"])
    return {"rope_freqs.weight": np.asarray(factors, np.float32)}


def _read(folder: Path) -> dict[str, np.ndarray]:
    with open_safetensors(folder) as files:
        return {name: files.tensor(name).astype(np.float32) for name in files.names}


def _numbers(tensors: dict[str, np.ndarray], family: GGUF) -> dict[str, list[float]]:
    """By key, a number of each layer, which is no tensor then."""
    return {
        key: [float(tensors.pop(name).item()) for name in list(tensors) if name.endswith(end)]
        for end, key in family.numbers.items()
    }


def _tensors(
    read: dict[str, np.ndarray], config: dict[str, Any], family: GGUF
) -> dict[str, np.ndarray]:
    names = {**_NAMES, **family.names}
    out = {_name(n, names): array for n, array in family.tensors(read, config).items()}
    if config.get("tie_word_embeddings"):
        out.pop("output.weight", None)
    return out


def _name(name: str, names: dict[str, str]) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    base, _, end = name.rpartition(".")
    layer = re.match(r"\D*\.(\d+)\.(.*)", base)
    if layer is None:
        return f"{names[base]}.{end}"
    return f"blk.{layer[1]}.{names[layer[2]]}.{end}"
