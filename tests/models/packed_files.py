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
    """Write a llama of (hidden, intermediate) sizes; what its weights mean, in float64.

    `embed`: the embedding and the head are packed too. Tied in the config, they are one.
    """
    E, F = sizes
    rng = np.random.default_rng(11)
    kv = KV_HEADS * E // HEADS
    shapes = {"self_attn.q_proj": (E, E), "self_attn.k_proj": (kv, E), "self_attn.v_proj": (kv, E),
              "self_attn.o_proj": (E, E), "mlp.gate_proj": (F, E), "mlp.up_proj": (F, E),
              "mlp.down_proj": (E, F)}  # fmt: skip
    names = {f"model.layers.{i}.{n}": shape for i in range(LAYERS) for n, shape in shapes.items()}
    tables = {"model.embed_tokens": (VOCABULARY, E), "lm_head": (VOCABULARY, E)}
    if config.get("tie_word_embeddings"):
        del tables["lm_head"]
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
    meant.setdefault("lm_head", meant["model.embed_tokens"])
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "model.safetensors", stored)
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llama", "hidden_size": E, "intermediate_size": F,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY,
        "max_position_embeddings": 64, "tie_word_embeddings": False, **config,
    }))  # fmt: skip
    return meant


def logits(meant: Arrays, ids: np.ndarray = IDS, rounded=False) -> np.ndarray:
    """[T, V] of a llama in float64; `rounded`: what its layers read is int8 by token."""

    def product(x, name):
        if rounded:
            q, scale = oracles.quantize_int8(x)
            x = q * scale.astype(np.float64)
        return x @ w[name].T

    T, E = len(ids), meant["model.norm"].shape[0]
    D = E // HEADS
    cos, sin = oracles.rope_tables(np.arange(T), *oracles.rope_inv_freq(D, {"rope_theta": 10000.0}))
    ends = np.array([0, T])
    x = meant["model.embed_tokens"][ids]
    for i in range(LAYERS):
        w = {n.removeprefix(f"model.layers.{i}."): a for n, a in meant.items()}
        h = oracles.rms_norm(x, w["input_layernorm"])[0]
        q, k, v = (product(h, f"self_attn.{n}_proj").reshape(T, -1, D) for n in "qkv")
        q, k = oracles.rope(q, cos, sin), oracles.rope(k, cos, sin)
        out, _ = oracles.varlen_attention(q, k, v, ends, ends, causal=True)
        x = x + product(out.reshape(T, E), "self_attn.o_proj")
        h = oracles.rms_norm(x, w["post_attention_layernorm"])[0]
        gated = oracles.swiglu(product(h, "mlp.gate_proj"), product(h, "mlp.up_proj"))
        x = x + product(gated, "mlp.down_proj")
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


# -- floats of 8 and 4 bits ----------------------------------------------------------------------
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = np.concatenate([E2M1, -E2M1])


def drawn_fp8(rng, shape) -> np.ndarray:
    """Random e4m3 but NaN."""
    raw = rng.integers(0, 256, shape).astype(np.uint8)
    raw[raw & 0x7F == 0x7F] = 0
    return raw.view(E4M3)


def fp8(
    name="weight_scale",
    over: str | int = "row",
    block=(128, 128),
    dtype: Any = np.float32,
    shape=None,
):
    """e4m3 whose scales are over a "row", the "tensor", "block"s, or groups of so many inputs."""

    def packer(rng, module, N, K):
        w = drawn_fp8(rng, (N, K))
        rows, columns = {"row": (1, K), "tensor": (N, K), "block": block}.get(str(over), (1, over))
        grid = -(-N // rows), -(-K // columns)
        scales = drawn_scales(rng, grid, np.float32, 4e-4).astype(dtype)
        wide = np.repeat(np.repeat(scales.astype(np.float64), rows, 0), columns, 1)[:N, :K]
        stored = scales if shape is None else scales.reshape(shape)
        return {"weight": w, name: stored}, w.astype(np.float64) * wide

    return packer


def nvfp4(weight, scale, tensor, divides=False, word="u1"):
    """e2m1, e4m3 for 16 inputs, float32 for the tensor."""

    def packer(rng, module, N, K):
        q = rng.integers(0, 16, (N, K))
        scales = drawn_scales(rng, (N, K // 16), E4M3, 100)
        arrays = {weight: dense(q, 4, word), scale: scales}
        over = 1e-4 * (1 + rng.random())
        if tensor:
            arrays[tensor] = np.array([1 / over if divides else over], np.float32)
            over = float(arrays[tensor][0])
            over = 1 / over if divides else over
        else:
            scales = arrays[scale] = drawn_scales(rng, scales.shape, E4M3, 0.02)
            over, arrays[scale] = 1.0, scales.view(np.uint8)
        return arrays, E2M1[q] * spread(scales, 16, K) * over

    return packer


def mxfp4(weight="weight_packed", scale="weight_scale", word="u1"):
    """e2m1 and a power of two for 32 inputs."""

    def packer(rng, module, N, K):
        q, e = rng.integers(0, 16, (N, K)), rng.integers(119, 123, (N, K // 32)).astype(np.uint8)
        return {weight: dense(q, 4, word), scale: e}, E2M1[q] * spread(e.view(E8M0), 32, K)

    return packer


def mlx_mxfp8(rng, module, N, K):
    """e4m3 in uint32 and a power of two for 32 inputs."""
    w, e = drawn_fp8(rng, (N, K)), rng.integers(110, 113, (N, K // 32)).astype(np.uint8)
    meant = w.astype(np.float64) * spread(e.view(E8M0), 32, K)
    return {"weight": w.view("<u4"), "scales": e}, meant


# -- GPTQ and AWQ --------------------------------------------------------------------------------
def gptq(bits=4, group=32, symmetric=True, less_one=True, act_order=False, bias=False):
    """Words along the inputs; zeros less 1 in the first format."""

    def packer(rng, module, N, K):
        size = group if group > 0 else K
        G = K // size
        q, z = rng.integers(0, 1 << bits, (N, K)), np.full((N, G), 1 << bits - 1)
        if not symmetric:
            z = rng.integers(0, 1 << bits, (N, G))
        scales = drawn_scales(rng, (G, N), np.float16, 0.15 / (1 << bits))
        g = np.arange(K) // size
        g = rng.permutation(g) if act_order else g
        stored = (z - less_one) % (1 << bits)
        arrays = {
            "qweight": np.ascontiguousarray(dense(q, bits).T), "scales": scales,
            "qzeros": dense(stored.T, bits), "g_idx": g.astype(np.int32),
        }  # fmt: skip
        if bias:  # as AutoGPTQ writes where the model has none
            arrays["bias"] = np.zeros(N, np.float16)
        return arrays, (q - z[:, g]) * scales.astype(np.float64).T[:, g]

    return packer


def awq(group=32, symmetric=False):
    """Words along the outputs, shuffled."""

    def packer(rng, module, N, K):
        def shuffled(numbers):
            eights = numbers.T.reshape(numbers.shape[1], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
            return dense(eights.reshape(numbers.shape[1], -1), 4)

        q, z = rng.integers(0, 16, (N, K)), np.full((N, K // group), 8)
        if not symmetric:
            z = rng.integers(0, 16, z.shape)
        scales = drawn_scales(rng, (K // group, N), np.float16, 0.01)
        arrays = {"qweight": shuffled(q), "qzeros": shuffled(z), "scales": scales}
        return arrays, (q - spread(z, group, K)) * spread(scales.T, group, K)

    return packer


# -- bitsandbytes --------------------------------------------------------------------------------
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
], np.float32)  # fmt: skip
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / 12
FP4 = np.concatenate([FP4, -FP4])


def bnb4(kind="nf4", block=64, nested=False, storage: Any = np.uint8, dtype="bfloat16"):
    """Codes over the flat weight, the high nibble first."""
    table = {"nf4": NF4, "fp4": FP4}[kind]

    def packer(rng, module, N, K):
        q, blocks = rng.integers(0, 16, N * K), -(-N * K // block)
        flat = np.pad(q, (0, N * K % 2)).astype(np.uint8)
        state = {"quant_type": kind, "blocksize": block, "dtype": dtype, "shape": [N, K]}
        arrays = {"weight": (flat[::2] << 4 | flat[1::2]).view(storage).reshape(-1, 1),
                  "weight.quant_map": table}  # fmt: skip
        absmax = drawn_scales(rng, blocks, np.float32, 0.1)
        if nested:
            codes = rng.integers(0, 256, blocks).astype(np.uint8)
            inner = np.linspace(-0.05, 0.05, 256).astype(np.float32)
            outer = drawn_scales(rng, -(-blocks // 256), np.float32, 1)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.12}
            arrays |= {"weight.nested_quant_map": inner, "weight.nested_absmax": outer}
            absmax = np.float32(0.12) + inner[codes] * np.repeat(outer, 256)[:blocks]
            arrays["weight.absmax"] = codes
        else:
            arrays["weight.absmax"] = absmax
        text = json.dumps(state).encode()
        name = f"weight.quant_state.bitsandbytes__{kind}"
        arrays[name] = np.frombuffer(text, np.uint8)
        scales = np.repeat(absmax.astype(np.float64), block)[: N * K]
        return arrays, (table[q] * scales).reshape(N, K)

    return packer


def bnb8(rng, module, N, K):
    """int8 by rows."""
    q, absmax = rng.integers(-127, 128, (N, K)).astype(np.int8), drawn_scales(rng, N, "f4", 0.2)
    arrays = {"weight": q, "SCB": absmax, "weight_format": np.array(0, np.uint8)}
    return arrays, q * absmax[:, None].astype(np.float64) / 127
