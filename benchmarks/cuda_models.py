"""Whole models on one NVIDIA GPU, random weights of real shapes: boostr beside transformers.

    python benchmarks/cuda_models.py [--models 135M,1B,8B] [--tests decode,prefill,batch]
        [--weights bf16,int8,int4-g128/int8] [--peer none|eager|compile] [--repetitions 5]
        [--kernels]

decode: 128 tokens after a prompt of 128, batch 1; the bound is the bytes that a step must read
(weights and cache) at a copy's speed. batch: the same for 32 sequences. prefill: 4096 tokens. The
peer is transformers in bf16 on the same GPU, in the same run: "eager" or a static cache with
torch.compile (whose compilation takes about a minute a model and is not timed). `--kernels` prints
where a step's time goes. Rates are tokens per second, medians.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any

import cuda_timing
from model_shapes import MODELS, RandomWeights, decoder_module, prefill_rate, prompts, step_bytes

from boostr import backends, dtypes
from boostr.engine.fixed_rows import FixedRows
from boostr.engine.runner import Runner
from boostr.models.weights import load_parameters
from boostr.quant.scheme import QuantizedTensor

PROMPT, NEW, PREFILL, BATCH = 128, 128, 4096, 32


def fill(made: Any, block: Any) -> None:
    """Write a block over and over."""
    flat = made.reshape(-1)
    for at in range(0, flat.size, block.size):
        part = flat[at : at + block.size]
        part[...] = block[: part.size]


def random_runner(config: dict[str, Any], form: str) -> Runner:
    """A model of that config on the GPU, with bf16 activations, or those of its floats."""
    module = decoder_module(config)
    backend = backends.get("cupy")
    load_parameters(module, RandomWeights(module, form, backend, fill), backend)
    if isinstance(module.model.embed_tokens.weight, QuantizedTensor):
        module.model.embed_tokens.dtype = dtypes.bfloat16
    return Runner(module, backend)


def decode_rate(runner: Runner, batch: int, repetitions: int) -> tuple[float, FixedRows]:
    """Tokens per second of all sequences together."""
    vocab = runner.module.config.vocab_size
    rows = FixedRows(runner, batch, PROMPT + NEW + 8, runner.backend.run_ahead)
    rows.prefill(prompts(batch, PROMPT, vocab))
    seconds = []
    for _ in range(repetitions):
        rows.begin([1] * batch, [PROMPT] * batch)
        rows.step()
        start = time.perf_counter()
        for _ in range(NEW):
            rows.step()
        seconds.append(time.perf_counter() - start)
    return batch * NEW / statistics.median(seconds), rows


# -- the peer ------------------------------------------------------------------------------------
class Peer:
    """transformers, bf16, random weights of the same shape."""

    def __init__(self, config: dict[str, Any], compiled: bool) -> None:
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        torch.set_float32_matmul_precision("high")
        self._compiled = compiled
        settings = LlamaConfig(**config, max_position_embeddings=8192)
        with torch.device("cuda"):
            self._model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).eval()
        self._vocab = config["vocab_size"]

    def decode_rate(self, batch: int, repetitions: int) -> float:
        import torch

        ids = torch.randint(0, self._vocab, (batch, PROMPT), device="cuda")
        options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        if self._compiled:
            options["cache_implementation"] = "static"

        def run(new: int) -> float:
            torch.cuda.synchronize()
            start = time.perf_counter()
            with torch.no_grad():
                self._model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
                    min_new_tokens=new, **options,
                )  # fmt: skip
            torch.cuda.synchronize()
            return time.perf_counter() - start

        for _ in range(2 if self._compiled else 1):
            run(NEW + 1)
        times = [run(NEW + 1) - run(1) for _ in range(min(repetitions, 3))]
        return batch * NEW / statistics.median(times)

    def prefill_rate(self, repetitions: int) -> float:
        import torch

        ids = torch.randint(0, self._vocab, (1, PREFILL), device="cuda")
        seconds = []
        for _ in range(repetitions + 1):
            torch.cuda.synchronize()
            start = time.perf_counter()
            with torch.no_grad():
                self._model(ids, use_cache=True, logits_to_keep=1)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return PREFILL / statistics.median(seconds[1:])


# -- the table -----------------------------------------------------------------------------------
def measure(name: str, options: argparse.Namespace, form: str) -> list[list[Any]]:
    """Rows of one model in one form of weights."""
    config, tests = MODELS[name], options.tests.split(",")
    runner = random_runner(config, form)
    ours: dict[str, tuple[float, float]] = {}
    for test, batch in (("decode", 1), ("batch", BATCH)):
        if test in tests:
            rate, decoder = decode_rate(runner, batch, options.repetitions)
            bound = batch * cuda_timing.copy_bytes() / step_bytes(runner, batch, PROMPT + NEW // 2)
            ours[test] = rate, bound
            if options.kernels:
                print(f"{name} {form} {test}: {len(decoder.calls())} own "
                      f"kernels a step: {summary(decoder.calls())}")  # fmt: skip
            del decoder
    if "prefill" in tests:
        ours["prefill"] = prefill_rate(runner, PREFILL, options.repetitions), float("nan")
    packed = any(isinstance(w, QuantizedTensor) for w in runner.module.weights().values())
    del runner
    free()
    theirs = peer_rates(config, ours, options) if not packed else {}
    return [
        [name, form, test, rate, bound, rate / bound,
         theirs.get(test, float("nan")), rate / theirs.get(test, float("nan"))]
        for test, (rate, bound) in ours.items()
    ]  # fmt: skip


def summary(names: list[str]) -> str:
    """Kernels by how often they are launched."""
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def peer_rates(config: dict[str, Any], tests: Any, options: argparse.Namespace) -> dict:
    if options.peer == "none":
        return {}
    peer = Peer(config, options.peer == "compile")
    rates = {}
    if "prefill" in tests:  # first: generate may compile the forward pass
        rates["prefill"] = peer.prefill_rate(options.repetitions)
    for test, batch in (("decode", 1), ("batch", BATCH)):
        if test in tests:
            rates[test] = peer.decode_rate(batch, options.repetitions)
    del peer
    free()
    return rates


def free() -> None:
    """Give the device's memory back."""
    import cupy

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    try:
        import torch
    except ImportError:
        return
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="135M,1B,8B")
    parser.add_argument("--tests", default="decode,prefill,batch")
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--peer", choices=("none", "eager", "compile"), default="compile")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--kernels", action="store_true")
    options = parser.parse_args()
    rows = []
    for name in options.models.split(","):
        for form in options.weights.split(","):
            rows += measure(name, options, form)
    print(cuda_timing.table(
        ["model", "weights", "test", "tok/s", "bound", "share", "transformers", "ratio"], rows
    ))  # fmt: skip


if __name__ == "__main__":
    main()
