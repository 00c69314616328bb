"""Are folders that the packages themselves pack read as the packages read them? Run by hand.

In an environment of its own: torch (for CPUs is enough), transformers, compressed-tensors,
bitsandbytes, mlx[cpu], and, without what they depend on, autoawq and auto-round.

    PYTHONPATH=. python tests/models/check_quantized_peers.py

For each form a tiny llama is made whose weights a package packs; its logits by boostr are compared
with those of the weights as the package decodes them, in float64, and with transformers' own where
it loads the folder on a CPU. One line a form; 3e-4 of the largest logit is equal.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import ml_dtypes
import numpy as np
import packed_files as files
import torch

import boostr

LIMIT = 3e-4


def host(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as numpy's, its bits the same."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return tensor.numpy()


def drawn(rng, N: int, K: int) -> torch.Tensor:
    return torch.from_numpy((0.05 * rng.standard_normal((N, K))).astype(np.float32))


def compressed_tensors(layout: str, **weights: Any) -> files.Packer:
    """By its own compressors; scales by its own observers' formulas."""

    def packer(rng, name, N, K):
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from compressed_tensors.quantization.utils import calculate_qparams

        args = QuantizationArgs(**weights)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        compressor: Any = BaseCompressor.get_value_from_registry(layout)
        w = drawn(rng, N, K)
        size = args.group_size or (N * K if args.strategy == "tensor" else K)
        if args.strategy == "block":
            high, wide = args.block_structure  # type: ignore[misc]
            blocks = w.reshape(N // high, high, K // wide, wide).permute(0, 2, 1, 3)
            parts = blocks.reshape(N // high, K // wide, high * wide)
        else:
            parts = w.reshape(1 if args.strategy == "tensor" else N, -1, size)
        extra = {}
        if args.strategy == "tensor_group":
            extra["weight_global_scale"] = (448 * 6 / w.abs().max()).reshape(1)
        scale, zero = calculate_qparams(
            parts.amin(-1), parts.amax(-1), args, global_scale=extra.get("weight_global_scale")
        )
        scale = scale.reshape(1) if args.strategy == "tensor" else scale
        state = {"weight": w, "weight_scale": scale, "weight_zero_point": zero, **extra}
        packed = compressor.compress(state, scheme)
        back = compressor.decompress(packed, scheme)["weight"]
        if args.strategy == "tensor_group":  # which decodes to bfloat16
            values = unpack_fp4_from_uint8(packed["weight_packed"], N, K, torch.float64)
            scale = packed["weight_scale"].double() / packed["weight_global_scale"].double()
            back = values * scale.repeat_interleave(16, 1)
        return {n: host(t) for n, t in packed.items()}, host(back.double())

    return packer


def bitsandbytes4(kind: str, nested: bool) -> files.Packer:
    def packer(rng, name, N, K):
        import bitsandbytes.functional as bnb

        w, state = bnb.quantize_4bit(
            drawn(rng, N, K).bfloat16(), blocksize=64, compress_statistics=nested, quant_type=kind
        )
        state.dtype = torch.float32  # so that it decodes without rounding
        meant = host(bnb.dequantize_4bit(w, state).double())
        arrays = {f"weight.{n}": host(t) for n, t in state.as_dict(packed=True).items()}
        return {"weight": host(w), **arrays}, meant

    return packer


def bitsandbytes8(rng, name, N, K):
    import bitsandbytes.functional as bnb

    w = drawn(rng, N, K)
    q, absmax, _ = bnb.int8_vectorwise_quant(w.half())
    meant = host(q.double() * absmax.double()[:, None] / 127)
    return {"weight": host(q), "SCB": host(absmax), "weight_format": np.array(0, np.uint8)}, meant


def mlx(mode: str, group: int, bits: int) -> files.Packer:
    def packer(rng, name, N, K):
        import mlx.core as mx

        w = mx.array(drawn(rng, N, K).numpy())
        settings = {"group_size": group, "bits": bits, "mode": mode}
        made = mx.quantize(w, **settings)
        meant = np.array(mx.dequantize(*made, **settings, dtype=mx.float32), np.float64)
        names = ("weight", "scales", "biases")[: len(made)]
        return {n: np.array(a) for n, a in zip(names, made, strict=True)}, meant

    return packer


def grid(w: torch.Tensor, group: int, bits: int, symmetric: bool):
    """(scales, zeros) [N, G] of round-to-nearest, in what float16 holds."""
    parts = w.reshape(len(w), -1, group)
    if symmetric:
        scale = (parts.abs().amax(-1) / ((1 << bits - 1) - 1)).half().float()
        return scale, torch.full_like(scale, 1 << bits - 1)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scale = ((high - low) / ((1 << bits) - 1)).half().float()
    return scale, torch.round(-low / scale).clamp(0, (1 << bits) - 1)


def decoded(w: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, group: int):
    """What round-to-nearest on a grid means."""
    s, z = (t.double().repeat_interleave(group, 1) for t in (scale, zero))
    q = torch.round(w.double() / s + z).clamp(0, (1 << bits) - 1)
    return host((q - z) * s)


def auto_gptq(bits: int, symmetric: bool, less_one: bool) -> files.Packer:
    """By AutoRound's packers, with zeros less 1 or as they are."""

    def packer(rng, name, N, K):
        from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

        module = qlinear_torch_zp if less_one else qlinear_torch
        w = drawn(rng, N, K)
        scale, zero = grid(w, 32, bits, symmetric)
        linear = torch.nn.Linear(K, N, bias=False)
        # on the grid, so that packers that do not clip have nothing to
        linear.weight.data = torch.from_numpy(decoded(w, scale, zero, bits, 32)).float()
        made = module.QuantLinear(bits, 32, K, N, False)
        made.device = "cpu"  # which one of its paths asks for
        made.pack(linear, scale, zero, device="cpu")
        arrays = {n: host(getattr(made, n)) for n in ("qweight", "qzeros", "scales")}
        return arrays, decoded(w, scale, zero, bits, 32)

    return packer


def awq(rng, name, N, K):
    """By AutoAWQ's packer, and its own unpacking."""
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    w = drawn(rng, N, K)
    scale, zero = grid(w, 32, 4, False)
    linear = torch.nn.Linear(K, N, bias=False)
    linear.weight.data = torch.from_numpy(decoded(w, scale, zero, 4, 32)).float()
    made = WQLinear_GEMM.from_linear(
        linear, 4, 32, scales=scale.t().contiguous(), zeros=zero.t().contiguous()
    )
    arrays = {n: host(getattr(made, n)) for n in ("qweight", "qzeros", "scales")}
    meant = dequantize_gemm(made.qweight, made.qzeros, made.scales.double(), 4, 32)
    return arrays, host(meant.t())


def forms() -> dict[str, tuple[files.Packer, dict[str, Any]]]:
    """Name -> (packer, config)."""
    found: dict[str, tuple[files.Packer, dict[str, Any]]] = {}
    ints = {"group_size": 32, "strategy": "group", "type": "int"}
    for layout, name, weights in (
        *(("pack-quantized", f"w{b}", {**ints, "num_bits": b}) for b in range(1, 9)),
        ("pack-quantized", "w4 zeros", {**ints, "num_bits": 4, "symmetric": False}),
        ("pack-quantized", "w3 zeros", {**ints, "num_bits": 3, "symmetric": False}),
        ("pack-quantized", "w4 rows", {"num_bits": 4, "strategy": "channel"}),
        ("int-quantized", "w8 rows", {"num_bits": 8, "strategy": "channel"}),
        ("int-quantized", "w8 tensor", {"num_bits": 8, "strategy": "tensor"}),
        ("float-quantized", "rows", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        ("float-quantized", "tensor", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
        ("float-quantized", "blocks", {"num_bits": 8, "type": "float", "strategy": "block",
                                       "block_structure": [64, 64]}),
        ("nvfp4-pack-quantized", "", {"num_bits": 4, "type": "float", "group_size": 16,
                                      "strategy": "tensor_group", "scale_dtype": "float8_e4m3fn"}),
        ("mxfp4-pack-quantized", "", {"num_bits": 4, "type": "float", "group_size": 32,
                                      "strategy": "group", "scale_dtype": "uint8"}),
    ):  # fmt: skip
        settings = {k: v for k, v in weights.items() if k != "scale_dtype"}
        full = {"symmetric": True, **weights}
        if full.get("scale_dtype"):
            full["scale_dtype"] = getattr(torch, full["scale_dtype"])
        found[f"compressed-tensors {layout} {name}"] = (
            compressed_tensors(layout, **full), files.ct(layout, **settings),
        )  # fmt: skip
    bnb = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    for kind, nested in (("nf4", False), ("nf4", True), ("fp4", True)):
        config = {"quantization_config": {**bnb, "bnb_4bit_quant_type": kind,
                                          "bnb_4bit_use_double_quant": nested}}  # fmt: skip
        name = f"bitsandbytes {kind}{' nested' * nested}"
        found[name] = bitsandbytes4(kind, nested), config
    int8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    found["bitsandbytes int8"] = bitsandbytes8, {"quantization_config": int8}
    for mode, group, bits in (*(("affine", 64, b) for b in (2, 3, 4, 5, 6, 8)),
                              ("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)):  # fmt: skip
        config = files.mlx(group_size=group, bits=bits, mode=mode)
        found[f"mlx {mode} {bits}"] = mlx(mode, group, bits), config
    for bits in range(2, 9):
        for symmetric, less_one in ((True, True), (False, True), (False, False)):
            layout = "auto_round:auto_gptq" if less_one else "auto_round"
            config = {"quant_method": "auto-round", "packing_format": layout, "bits": bits,
                      "group_size": 32, "sym": symmetric}  # fmt: skip
            name = f"auto-round {bits}{'' if symmetric else ' zeros'}{' less 1' * less_one}"
            made = auto_gptq(bits, symmetric, less_one)
            found[name] = made, {"quantization_config": config}
    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "dequantize": True}
    packer = files.fp8("weight_scale_inv", "block")  # transformers packs on GPUs only
    found["fp8 blocks"] = packer, {"quantization_config": config}
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    found["autoawq gemm"] = awq, {"quantization_config": config}
    return found


def transformers_logits(folder: Path) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(files.IDS.astype(np.int64))[None]).logits[0].float().numpy()


def main() -> None:
    """A line for each form; ends with 1 if one is not equal."""
    failed = 0
    for name, (packer, config) in forms().items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                meant = files.make(Path(folder), packer, {**config, "dtype": "float32"})
            except ImportError as error:
                print(f"{name:48} its package is not here: {error}")
                continue
            want = files.logits(meant)
            got = boostr.load(folder, backend="numpy").logits(files.IDS)  # type: ignore[union-attr]
            error = np.abs(got - want).max() / np.abs(want).max()
            failed += not error < LIMIT
            try:
                theirs = transformers_logits(Path(folder))
                beside = f"{np.abs(got - theirs).max() / np.abs(theirs).max():.1e}"
            except Exception as reason:  # a peer that does not load it: say so, and go on
                beside = f"not loaded: {type(reason).__name__}: {str(reason).splitlines()[0]:.60}"
        print(f"{name:48} {error:.1e} {'' if error < LIMIT else 'WRONG':6} transformers {beside}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
