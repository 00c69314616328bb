"""GGUF as checkpoints: metadata as a config.json, tensors under Hugging Face names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from boostr.backends.base import Backend
from boostr.errors import ModelFileError
from boostr.io.gguf import GGUFFile
from boostr.models.weights import WeightSource
from boostr.nn.module import Weight
from boostr.quant.scheme import SCHEMES, QuantizedTensor
from boostr.tensor import Tensor

# general.architecture -> model_type, and how its rope pairs lie in the file
ARCHITECTURES = {
    "llama": ("llama", "interleaved"),  # the converter permutes q and k
    "qwen2": ("qwen2", "split-half"),
    "qwen3": ("qwen3", "split-half"),
}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
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
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}


def hf_config(file: GGUFFile) -> dict[str, Any]:
    """The config.json that the file's metadata amounts to, and `rope_layout`."""
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelFileError(
            f"{file.path}: unknown architecture {architecture!r}; boostr reads GGUF of "
            f"{', '.join(ARCHITECTURES)}"
        )
    model_type, layout = ARCHITECTURES[architecture]
    config: dict[str, Any] = {"model_type": model_type, "rope_layout": layout}
    for key, name in _KEYS.items():
        value = metadata.get(f"{architecture}.{key}")
        if value is not None:
            config[name] = _plain(file, f"{architecture}.{key}", value)
    if config.get("sliding_window") is not None:
        raise ModelFileError(f"{file.path}: a sliding window in a GGUF file is not supported")
    if "vocab_size" not in config and "token_embd.weight" in file.tensors:
        config["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    config["rope_scaling"] = _rope_scaling(file, metadata, architecture)
    config["eos_token_id"] = metadata.get("tokenizer.ggml.eos_token_id")
    config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    return config


def _plain(file: GGUFFile, key: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelFileError(f"{file.path}: {key} must be one number, got {value!r}")
    return value


def _rope_scaling(file: GGUFFile, metadata: Mapping[str, Any], architecture: str) -> dict | None:
    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if "rope_freqs.weight" in file.tensors:
        raise ModelFileError(
            f"{file.path}: frequency factors (rope_freqs.weight) are not supported in GGUF; load "
            "the model from its Hugging Face folder"
        )
    if kind in ("none", None):
        return None
    factor = metadata.get(f"{architecture}.rope.scaling.factor")
    original = metadata.get(f"{architecture}.rope.scaling.original_context_length")
    if kind not in ("linear", "yarn"):
        raise ModelFileError(
            f"{file.path}: rope scaling {kind!r} in GGUF; known: none, linear, yarn"
        )
    return {
        "rope_type": kind, "factor": factor, "original_max_position_embeddings": original,
    }  # fmt: skip


class GGUFWeights(WeightSource):
    """The tensors of a GGUF file under Hugging Face names; blocks stay as they lie in the file."""

    def __init__(self, file: GGUFFile) -> None:
        self.path = str(file.path)
        self._tensors = {_hf_name(name): t for name, t in file.tensors.items()}

    @property
    def names(self) -> Iterable[str]:
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def weight(self, name: str, backend: Backend) -> Weight:
        tensor = self._tensors[name]
        data = Tensor(tensor.data, backend=backend)
        scheme = SCHEMES.get(tensor.type.lower())
        if scheme is None:
            return data
        N, K = tensor.shape
        return QuantizedTensor(scheme, (N, K), {"blocks": data})


def _hf_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; unknown names stay."""
    if name in _TOP:
        return _TOP[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER:
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{parts[3]}"
    return name
