"""Random models of real shapes as GGUF files, for llama.cpp beside us.

    python benchmarks/random_gguf.py 1B F16 1B-F16.gguf        any type, or mix of types; needs gguf

They have no tokenizer, which llama-bench does not ask for.
"""

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from model_shapes import MODELS

from boostr.models.gguf_mix import MIXES, Mix
from boostr.quant.gguf import BLOCK_TYPES, blocks

TYPES = ("F32", "F16", *BLOCK_TYPES)
ARCHITECTURES = {"llama": "llama", "gemma3_text": "gemma3"}  # of model types


def write(name: str, form: str, path: Path) -> None:
    """Write the model of that name in `model_shapes.MODELS`, in a type or a mix such as Q4_K_M."""
    config = MODELS[name]
    writer = gguf.GGUFWriter(path, ARCHITECTURES[config.get("model_type", "llama")])
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    sharing, tied = heads // config["num_key_value_heads"], config["tie_word_embeddings"]
    mix = None if form in TYPES else Mix(form, config["num_hidden_layers"], sharing, tied)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    head = config.get("head_dim", hidden // heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    for tensor, shape in _shapes(config).items():
        if len(shape) == 1:
            writer.add_tensor(tensor, np.ones(shape, np.float32))
        else:
            kind = gguf.GGMLQuantizationType[form if mix is None else mix.type_of(tensor, shape)]
            writer.add_tensor(tensor, _rows(shape, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim", hidden // heads)
    q, kv = heads * head, config["num_key_value_heads"] * head
    layer = {
        "attn_norm": (hidden,), "attn_q": (q, hidden), "attn_k": (kv, hidden),
        "attn_v": (kv, hidden), "attn_output": (hidden, q), "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
    }  # fmt: skip
    if config.get("model_type") == "gemma3_text":
        layer |= {"attn_q_norm": (head,), "attn_k_norm": (head,)}
        layer |= {"post_attention_norm": (hidden,), "post_ffw_norm": (hidden,)}
    shapes = {"token_embd.weight": (config["vocab_size"], hidden), "output_norm.weight": (hidden,)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"blk.{i}.{part}.weight": shape for part, shape in layer.items()}
    if not config["tie_word_embeddings"]:
        shapes["output.weight"] = shapes["token_embd.weight"]
    return shapes


def _rows(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Random rows of length 1, about; the first 64 over and over."""
    rows = np.random.default_rng(0).standard_normal((64, shape[1]), np.float32) * shape[1] ** -0.5
    try:
        stored = gguf.quants.quantize(rows, kind)
    except NotImplementedError:  # the package only reads K-quants
        stored = _random_blocks(kind.name, 64, shape[1])
    return np.resize(stored, (shape[0], stored.shape[1]))


def _random_blocks(kind: str, N: int, K: int) -> np.ndarray:
    """Rows of random codes, under scales that keep weights small."""
    rng, parts = np.random.default_rng(0), {}
    for name, part in BLOCK_TYPES[kind].scheme.parts.items():
        shape = (N, part.columns(K))
        if part.dtype.kind == "f":
            parts[name] = np.full(shape, 2.0**-14, part.dtype)
        else:  # small scales fit 6 bits
            top = 256 if name in ("codes", "high") else 32
            parts[name] = rng.integers(0, top, shape).astype(np.uint8).view(part.dtype)
    return blocks(kind, parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("form", choices=dict.fromkeys((*TYPES, *MIXES)))
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    write(options.model, options.form, options.path)


if __name__ == "__main__":
    main()
