"""Tiny llamas whose weights are packed by the rules of each method, and what these mean in float64.

Written from the methods' own descriptions, without boostr's readers: a packer takes the numbers of
a weight apart (codes, scales, zeros), gives the tensors that hold them, and the weight.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import oracles

from boostr.io.safetensors import save

Arrays = dict[str, np.ndarray]
Packer = Callable[[np.random.Generator, str, int, int], tuple[Arrays, np.ndarray]]
BF16, E4M3, E8M0 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu
HEADS, KV_HEADS, LAYERS, VOCABULARY = 4, 2, 2, 130
IDS = np.array([3, 129, 0, 77, 12, 12, 64], np.int32)


def make(folder: Path, packer: Packer, config: dict[str, Any], sizes=(128, 256), embed=False):
    """Write a llama of (hidden, intermediate) sizes; its logits [T, V] in float64.

    `embed`: the embedding and the head are packed too.
    """
    E, F = sizes
    rng = np.random.default_rng(11)
    kv = KV_HEADS * E // HEADS
    shapes = {"self_attn.q_proj": (E, E), "self_attn.k_proj": (kv, E), "self_attn.v_proj": (kv, E),
              "self_attn.o_proj": (E, E), "mlp.gate_proj": (F, E), "mlp.up_proj": (F, E),
              "mlp.down_proj": (E, F)}  # fmt: skip
    names = {f"model.layers.{i}.{n}": shape for i in range(LAYERS) for n, shape in shapes.items()}
    tables = {"model.embed_tokens": (VOCABULARY, E), "lm_head": (VOCABULARY, E)}
    stored, meant = {}, {}
    for name, (N, K) in (names | (tables if embed else {})).items():
        arrays, meant[name] = packer(rng, name, N, K)
        assert meant[name].shape == (N, K)
        stored |= {f"{name}.{part}": array for part, array in arrays.items()}
    norms = [f"model.layers.{i}.{n}_layernorm" for i in range(LAYERS)
             for n in ("input", "post_attention")]  # fmt: skip
    plain = dict.fromkeys([*norms, "model.norm"], (E,)) | ({} if embed else tables)
    for name, shape in plain.items():
        array = rng.standard_normal(shape, "f4")
        stored[f"{name}.weight"], meant[name] = array, array.astype(np.float64)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "model.safetensors", stored)
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llama", "hidden_size": E, "intermediate_size": F,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY,
        "max_position_embeddings": 64, "tie_word_embeddings": False, **config,
    }))  # fmt: skip
    return meant


def logits(meant: Arrays, ids: np.ndarray = IDS) -> np.ndarray:
    """[T, V] of a llama in float64."""
    T, E = len(ids), meant["model.norm"].shape[0]
    D = E // HEADS
    cos, sin = oracles.rope_tables(np.arange(T), *oracles.rope_inv_freq(D, {"rope_theta": 10000.0}))
    ends = np.array([0, T])
    x = meant["model.embed_tokens"][ids]
    for i in range(LAYERS):
        w = {n.removeprefix(f"model.layers.{i}."): a for n, a in meant.items()}
        h = oracles.rms_norm(x, w["input_layernorm"])[0]
        q, k, v = ((h @ w[f"self_attn.{n}_proj"].T).reshape(T, -1, D) for n in "qkv")
        q, k = oracles.rope(q, cos, sin), oracles.rope(k, cos, sin)
        out, _ = oracles.varlen_attention(q, k, v, ends, ends, causal=True)
        x = x + out.reshape(T, E) @ w["self_attn.o_proj"].T
        h = oracles.rms_norm(x, w["post_attention_layernorm"])[0]
        gated = oracles.swiglu(h @ w["mlp.gate_proj"].T, h @ w["mlp.up_proj"].T)
        x = x + gated @ w["mlp.down_proj"].T
    return oracles.rms_norm(x, meant["model.norm"])[0] @ meant["lm_head"].T


# -- pieces --------------------------------------------------------------------------------------
def dense(codes: np.ndarray, bits: int, word: str = "<i4") -> np.ndarray:
    """Codes [R, C] as words of rows, code i at bit i · bits."""
    R, C = codes.shape
    every = (codes.astype(np.uint8)[..., None] >> np.arange(bits, dtype=np.uint8) & 1).reshape(
        R, -1
    )
    every = np.pad(every, ((0, 0), (0, -(C * bits) % (8 * np.dtype(word).itemsize))))
    return np.packbits(every, axis=1, bitorder="little").view(word)


def spaced(codes: np.ndarray, bits: int) -> np.ndarray:
    """As many codes as fit into each int32."""
    each = 32 // bits
    units = np.pad(codes.astype(np.int64), ((0, 0), (0, -codes.shape[1] % each)))
    units = units.reshape(len(codes), -1, each) << np.arange(0, 32 - bits + 1, bits)[:each]
    return units.sum(-1).astype(np.uint32).view(np.int32)


def drawn_scales(rng, shape, dtype: Any = BF16, size=0.02) -> np.ndarray:
    """Scales of usual sizes."""
    return (size * (0.5 + rng.random(shape))).astype(dtype)


def spread(scales: np.ndarray, group: int, K: int) -> np.ndarray:
    """[N, G] for each input, float64."""
    return np.repeat(scales.astype(np.float64), group, 1)[:, :K]


# -- compressed-tensors --------------------------------------------------------------------------
def ct(layout="pack-quantized", inputs=None, ignore=("lm_head",), **weights) -> dict[str, Any]:
    """A config of one group."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", **weights}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"dtype": "bfloat16", "quantization_config": {
        "quant_method": "compressed-tensors", "format": layout, "ignore": list(ignore),
        "config_groups": {"group_0": group}, "quantization_status": "compressed",
    }}  # fmt: skip


def ct_packed(bits=4, group=32, symmetric=True, dtype: Any = BF16, pack=dense, act_order=False):
    """pack-quantized: unsigned codes in int32, zeros along the rows."""

    def packer(rng, name, N, K):
        size = group or K
        G = K // size
        q = rng.integers(0, 1 << bits, (N, K))
        z = np.full((N, G), 1 << bits - 1)
        if not symmetric:
            z = rng.integers(0, 1 << bits, (N, G))
        scales = drawn_scales(rng, (N, G), dtype, 0.15 / (1 << bits))
        g = np.arange(K) // size
        g = rng.permutation(g) if act_order else g
        arrays = {"weight_packed": pack(q, bits), "weight_scale": scales,
                  "weight_shape": np.array([N, K])}  # fmt: skip
        if not symmetric:
            arrays["weight_zero_point"] = np.ascontiguousarray(pack(z.T, bits).T)
        if act_order:
            arrays["weight_g_idx"] = g.astype(np.int32)
        return arrays, (q - z[:, g]) * scales.astype(np.float64)[:, g]

    return packer


def ct_int(group=0, symmetric=True, tensor=False, dtype: Any = BF16):
    """int-quantized: int8 codes."""

    def packer(rng, name, N, K):
        size = group or K
        q = rng.integers(-128, 128, (N, K)).astype(np.int8)
        shape = (1,) if tensor else (N, K // size)
        scales = drawn_scales(rng, shape, dtype, 0.001)
        arrays = {"weight": q, "weight_scale": scales}
        z = np.zeros((N, K // size))
        if not symmetric:
            z = rng.integers(-128, 128, (N, K // size)).astype(np.int8)
            arrays["weight_zero_point"] = z
        wide = spread(np.broadcast_to(scales, (N, K // size)), size, K)
        return arrays, (q - spread(z, size, K)) * wide

    return packer


# -- MLX -----------------------------------------------------------------------------------------
def mlx(**settings) -> dict[str, Any]:
    table = {"group_size": 64, "bits": 4, **settings}
    return {"dtype": "bfloat16", "quantization": table, "quantization_config": table}


def mlx_affine(bits=4, group=64, dtype: Any = BF16):
    """Unsigned codes in uint32, scales and biases."""

    def packer(rng, name, N, K):
        q = rng.integers(0, 1 << bits, (N, K))
        scales = drawn_scales(rng, (N, K // group), dtype, 0.15 / (1 << bits))
        biases = (-0.1 * rng.random((N, K // group))).astype(dtype)
        meant = q * spread(scales, group, K) + spread(biases, group, K)
        return {"weight": dense(q, bits, "<u4"), "scales": scales, "biases": biases}, meant

    return packer
