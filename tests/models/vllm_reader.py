"""Folders run by vLLM, for `check_written_vllm.py`, in a process of its own: vLLM's search for its
Triton kernels breaks on numba, which boostr imports.

    python vllm_reader.py JOBS.json

A job: {"folder", "dtype", "ranks", "ids", "out"}. `out`, a .npz, gets the logits and, of one rank,
the numbers of every packed weight as vLLM's loader has put it: of modules that it fuses, one after
the other. Of more ranks each is a process that has loaded its shard.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from vllm import LLM, SamplingParams, _custom_ops
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.kernels import linear
from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    unpack_quantized_values_into_int32,
)
from vllm.platforms import PlatformEnum

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine of one rank here
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # ranks may have to share a core
}
CPU = PlatformEnum.CPU


def numbers(layer: torch.nn.Module) -> torch.Tensor:
    """float32 [N, K] of what the loader has filled in, before a kernel lays it out anew."""
    if hasattr(layer, "weight_packed"):
        kind = layer.scheme.quant_type
        codes = unpack_quantized_values_into_int32(layer.weight_packed, kind, 1) - kind.bias
    else:
        codes = layer.weight
    scales = layer.weight_scale.float()
    return codes.float() * scales.repeat_interleave(codes.shape[1] // scales.shape[1], 1)


def hold_numbers() -> None:
    """Have every packed layer keep its numbers."""
    method = compressed_tensors.CompressedTensorsLinearMethod
    lay_out = method.process_weights_after_loading

    def process(self, layer: torch.nn.Module) -> None:
        layer.numbers = numbers(layer)
        lay_out(self, layer)

    method.process_weights_after_loading = process


def product(self, layer, x, bias=None) -> torch.Tensor:
    return torch.nn.functional.linear(x, layer.numbers.to(x.dtype), bias)


class ReferenceWNA16(linear.MPLinearKernel):
    """Integers as floats: vLLM has no product of 8-bit ones for CPUs."""

    get_min_capability = classmethod(lambda cls: -1)
    can_implement = classmethod(lambda cls, config: (True, None))
    apply_weights = product

    def process_weights_after_loading(self, layer) -> None:
        pass


class ReferenceFp8(linear.FP8ScaledMMLinearKernel):
    """The same for 8-bit floats whose inputs stay as they are."""

    is_supported = classmethod(lambda cls, capability=None: (True, None))
    can_implement = classmethod(lambda cls, config: (True, None))
    apply_weights = product

    def apply_scaled_mm(self, **parts) -> torch.Tensor:
        raise NotImplementedError


class ReferenceInt8(linear.CPUInt8ScaledMMLinearKernel):
    """vLLM's own rounding of inputs, and the product of what it gives."""

    def process_weights_after_loading(self, layer) -> None:
        pass

    def apply_weights(self, layer, x, bias=None) -> torch.Tensor:
        codes, scales, _ = _custom_ops.onednn_scaled_int8_quant(x)
        return product(self, layer, codes.float() * scales, bias).to(x.dtype)


def offer_kernels() -> None:
    """First in the tables that vLLM chooses from."""
    # its own product of 4 bits is there on AVX-512 alone, and not of float32
    linear._POSSIBLE_KERNELS[CPU].insert(0, ReferenceWNA16)
    linear._POSSIBLE_WFP8A16_KERNELS[CPU].insert(0, ReferenceFp8)
    if not torch.cpu._is_vnni_supported():  # its sums saturate at 16 bits: they are 20 % off
        linear._POSSIBLE_INT8_KERNELS[CPU].insert(0, ReferenceInt8)


def packed(model: torch.nn.Module) -> dict[str, tuple[str, torch.Tensor]]:
    """(scheme and kernel, numbers) of each packed module."""
    found = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "numbers"):
            scheme = layer.scheme
            kernel = getattr(scheme, "kernel", None) or scheme.linear_kernel
            made_of = f"{type(scheme).__name__} by {type(kernel).__name__}"
            found[name] = made_of, layer.numbers
    return found


def read(folder: str, dtype: str, ranks: int, ids: list[int], out: str) -> None:
    llm = LLM(
        model=folder, dtype=dtype, skip_tokenizer_init=True, enforce_eager=True, max_model_len=256,
        max_num_seqs=2, max_logprobs=-1, logprobs_mode="raw_logits", enable_prefix_caching=False,
        tensor_parallel_size=ranks, distributed_executor_backend="uni" if ranks == 1 else "mp",
    )  # fmt: skip
    modules = llm.apply_model(packed)[0] if ranks == 1 else {}
    every = SamplingParams(
        max_tokens=1, temperature=0, prompt_logprobs=-1, logprobs=-1, detokenize=False
    )
    (answer,) = llm.generate({"prompt_token_ids": ids}, every, use_tqdm=False)
    rows = [*answer.prompt_logprobs[1:], answer.outputs[0].logprobs[0]]
    logits = [[row[token].logprob for token in range(len(row))] for row in rows]
    np.savez(
        out,
        logits=np.array(logits, np.float32),
        made_of=json.dumps({name: made_of for name, (made_of, _) in modules.items()}),
        **{name: numbers.numpy() for name, (_, numbers) in modules.items()},
    )


def main(jobs: str) -> None:
    for job in json.loads(Path(jobs).read_text()):
        read(**job)
        gc.collect()
        cleanup_dist_env_and_memory()


os.environ |= ENVIRONMENT  # here, since ranks are processes that import this file
hold_numbers()
offer_kernels()

if __name__ == "__main__":
    main(sys.argv[1])
