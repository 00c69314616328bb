"""Write the variants of SmolLM2-135M-Instruct that the benchmarks compare, from its Q4_1 GGUF.

    python benchmarks/make_models.py model.Q4_1.gguf FOLDER

FOLDER/SmolLM2-135M-{Q4_1,F32,F16,BF16,Q8_0}.gguf   for llama.cpp and for us; needs llama-quantize
                                                   (LLAMA_QUANTIZE, or on the PATH)
FOLDER/smollm2-{f32,bf16}/                         the same weights as HF folders

All hold the dequantized Q4_1 weights (the embedding is Q8_0 there), so every engine computes with
the same numbers, up to the rounding of its format. Needs gguf, safetensors, tokenizers, ml-dtypes.
"""

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import save_file

HF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def metadata(reader):
    return {key: field.contents() for key, field in reader.fields.items()}


def hf_name(name):
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    if name.startswith("blk."):
        _, layer, kind, suffix = name.split(".")
        return f"model.layers.{layer}.{HF_NAMES[kind]}.{suffix}"
    top = {"token_embd": "embed_tokens", "output_norm": "norm"}
    return f"model.{top[name.removesuffix('.weight')]}.weight"


def split_half(weight, heads):
    """Undo GGUF's row order of llama q and k: interleaved rope pairs -> HF's split halves."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def hf_weights(reader):
    """name -> float32 array, in HF's names and layout; the head is tied, so it has no entry."""
    meta, weights = metadata(reader), {}
    for tensor in reader.tensors:
        w = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name.endswith("attn_q.weight"):
            w = split_half(w, meta["llama.attention.head_count"])
        if tensor.name.endswith("attn_k.weight"):
            w = split_half(w, meta["llama.attention.head_count_kv"])
        weights[hf_name(tensor.name)] = np.ascontiguousarray(w)
    return weights


def hf_config(meta, dtype):
    heads, hidden = meta["llama.attention.head_count"], meta["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": meta["llama.block_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": meta["llama.rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": True,
        "dtype": dtype,
        "vocab_size": meta["llama.vocab_size"],
    }


def hf_tokenizer(meta):
    """Byte-level BPE with every digit on its own: what `tokenizer.ggml.pre` "smollm" stands for."""
    tokens, merges = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.merges"]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, [tuple(pair.split(" ")) for pair in merges])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    control = [
        t for t, kind in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True) if kind == 3
    ]
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True) for t in control])
    return tokenizer


def write_hf_folder(reader, folder, dtype):
    meta = metadata(reader)
    folder.mkdir(parents=True, exist_ok=True)
    store = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[dtype]
    weights = {name: w.astype(store) for name, w in hf_weights(reader).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(hf_config(meta, dtype), indent=2) + "\n")
    hf_tokenizer(meta).save(str(folder / "tokenizer.json"))
    tokens = meta["tokenizer.ggml.tokens"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "chat_template": meta["tokenizer.chat_template"],
        "model_max_length": meta["llama.context_length"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def write_gguf_variants(source, folder, types=("F32", "F16", "BF16", "Q8_0")):
    quantize = os.environ.get("LLAMA_QUANTIZE") or shutil.which("llama-quantize")
    if not quantize:
        raise SystemExit("llama-quantize not found: set LLAMA_QUANTIZE or put it on the PATH")
    shutil.copyfile(source, folder / "SmolLM2-135M-Q4_1.gguf")
    f32 = folder / "SmolLM2-135M-F32.gguf"
    for kind in types:  # F32 first: the others are made from it
        target = folder / f"SmolLM2-135M-{kind}.gguf"
        origin = source if kind == "F32" else f32
        command = [quantize, "--allow-requantize", str(origin), str(target), kind, "2"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(arguments.gguf)
    for dtype, name in (("float32", "f32"), ("bfloat16", "bf16")):
        write_hf_folder(reader, arguments.folder / f"smollm2-{name}", dtype)
    write_gguf_variants(arguments.gguf, arguments.folder)


if __name__ == "__main__":
    main()
