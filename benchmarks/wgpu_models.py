"""Whole models on a WebGPU device, random weights of real shapes, beside llama.cpp's Vulkan one.

    BOOSTR_BACKEND=wgpu LLAMA_BENCH=llama-bench python benchmarks/wgpu_models.py
        [--models 135M,1B,8B] [--weights bf16,int8,int4-g128/int8]
        [--tests decode,prefill] [--repetitions 5] [--kernels]

decode: 128 tokens after a prompt of 128, batch 1; the bound is the bytes that a step must read
(weights and cache) at a copy's speed. "host" is the CPU time of a step on the thread that
generates, "threads" of those that encode and submit commands ahead, "GPU" what its commands take by
the GPU's clock, all in microseconds. prefill: 512 tokens. The peer is the program that LLAMA_BENCH
names, a build of llama.cpp for Vulkan (F16 and Q8_0, random weights, flash attention); without it,
figures of build 11434 are shown on an H100, where they were recorded, whose 8B has a tied head.
Rates are tokens per second, medians.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import wgpu_timing
from model_shapes import MODELS, RandomWeights, decoder_module, prefill_rate, prompts, step_bytes

from boostr import dtypes
from boostr.engine.fixed_rows import FixedRows
from boostr.engine.runner import Runner
from boostr.models.weights import load_parameters

PROMPT, NEW, PREFILL = 128, 128, 512
# llama.cpp's Vulkan backend on an H100: (model, weights) -> (prefill of 512, decode)
RECORDED = {
    ("135M", "bf16"): (8300.0, 468.0), ("135M", "int8"): (10000.0, 491.0),
    ("1B", "bf16"): (14600.0, 498.0), ("1B", "int8"): (14700.0, 610.0),
    ("8B", "bf16"): (2580.0, 143.0), ("8B", "int8"): (2460.0, 200.0),
}  # fmt: skip


def fill(made: Any, block: Any) -> None:
    """Write a block over and over."""
    for at in range(0, made.size, block.size):
        count = min(block.size, made.size - at)
        part = made.view(shape=(count,), strides=(1,), offset=at)
        wgpu_timing.backend().assign(part, block.view(shape=(count,), strides=(1,)))


def random_runner(config: dict[str, Any], form: str) -> Runner:
    """A model of that config on the GPU, with bf16 activations."""
    module = decoder_module(config)
    backend = wgpu_timing.backend()
    load_parameters(module, RandomWeights(module, form, backend, fill), backend)
    module.model.embed_tokens.dtype = dtypes.bfloat16
    return Runner(module, backend)


def decode(runner: Runner, repetitions: int) -> tuple[float, list[float], list[str]]:
    """(tokens per second, microseconds of host, other threads and GPU a step, the commands)."""
    backend: Any = runner.backend
    vocab = runner.module.config.vocab_size
    rows = FixedRows(runner, 1, PROMPT + NEW + 8, backend.run_ahead)
    rows.prefill(prompts(1, PROMPT, vocab))
    clocks = (time.perf_counter, time.thread_time, time.process_time)
    spent = []
    for _ in range(repetitions):
        rows.begin([1], [PROMPT])
        rows.step()
        start = [clock() for clock in clocks]
        for _ in range(NEW):
            rows.step()
        spent.append([(clock() - at) / NEW * 1e6 for clock, at in zip(clocks, start, strict=True)])
    wall, main, process = (statistics.median(column) for column in zip(*spent, strict=True))
    program: Any = rows.program
    micro = statistics.median(busy_seconds(program) for _ in range(5)) * 1e6
    return 1e6 / wall, [main, process - main, micro], program.calls()


def peer_rates(name: str, form: str) -> tuple[float, float]:
    """llama.cpp's tokens per second: (prefill, decode)."""
    if "LLAMA_BENCH" not in os.environ:
        none = float("nan"), float("nan")
        return RECORDED.get((name, form), none) if wgpu_timing.is_recorded() else none
    import peers
    import random_gguf

    kind = {"bf16": "F16", "int8": "Q8_0"}.get(form, form.partition("/")[0].upper())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}-{kind}.gguf"
        random_gguf.write(name, kind, path)
        rates = peers.llama_bench(path, prompt=PREFILL, generate=NEW, gpu=True)
    by_test = {rate.test: rate.mean for rate in rates}
    return by_test[f"pp{PREFILL}"], by_test[f"tg{NEW}"]


def busy_seconds(program: Any) -> float:
    """Of GPU time, right after other work: the clocks of an idle GPU are low."""
    for _ in range(4):
        program.run()
    return program.seconds()


def measure(name: str, form: str, options: argparse.Namespace) -> list[list[Any]]:
    """Rows of one model in one form of weights."""
    runner, rows, none = random_runner(MODELS[name], form), [], float("nan")
    peers = peer_rates(name, form)
    if "decode" in options.tests:
        rate, micro, names = decode(runner, options.repetitions)
        bound = wgpu_timing.copy_bytes() / step_bytes(runner, 1, PROMPT + NEW // 2)
        rows.append(
            [name, form, "decode", rate, bound, rate / bound, peers[1], rate / peers[1], *micro,
             len(names)]
        )  # fmt: skip
        if options.kernels:
            print(f"{name} {form}: {summary(names)}", file=sys.stderr)
    if "prefill" in options.tests:
        rate = prefill_rate(runner, PREFILL, options.repetitions)
        rows.append([name, form, "prefill 512", rate, none, none, peers[0], rate / peers[0]])
        rows[-1] += [none] * 3 + [""]
    return rows


def summary(names: list[str]) -> str:
    """Kernels by how often they are launched."""
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="135M,1B,8B")
    parser.add_argument("--weights", default="bf16,int8")
    parser.add_argument("--tests", default="decode,prefill")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--kernels", action="store_true")
    options = parser.parse_args()
    head = ["model", "weights", "test", "tok/s", "bound", "share", "llama.cpp", "ratio", "host µs",
            "threads µs", "GPU µs", "commands"]  # fmt: skip
    print(wgpu_timing.table(head, []))
    for name in options.models.split(","):
        for form in options.weights.split(","):
            rows = measure(name, form, options)
            print(*wgpu_timing.table(head, rows).splitlines()[2:], sep="\n", flush=True)
            gc.collect()
            wgpu_timing.backend().release_memory()


if __name__ == "__main__":
    main()
