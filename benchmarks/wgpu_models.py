"""Whole models on a WebGPU device, random weights of real shapes, beside llama.cpp's Vulkan one.

    BOOSTR_BACKEND=wgpu python benchmarks/wgpu_models.py [--models 135M,1B,8B]
        [--weights bf16,int8] [--tests decode,prefill] [--repetitions 5] [--kernels]

decode: 128 tokens after a prompt of 128, batch 1; the bound is the bytes that a step must read
(weights and cache) at 3.0 TB/s. "host" is what starting a step costs the CPU, "GPU" what its
commands take by the GPU's clock, both microseconds. prefill: 512 tokens. The peer's figures are
llama.cpp's (build 11434, Vulkan, random weights, flash attention; F16 and Q8_0, its 8B has a tied
head) on the same H100; they are recorded, not measured in this run. Rates are tokens per second,
medians.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import wgpu_timing

from boostr import dtypes
from boostr.engine.options import SamplingOptions
from boostr.engine.runner import Decoder, Runner
from boostr.engine.sampler import Sampler
from boostr.models import family
from boostr.models.config import RawConfig
from boostr.models.weights import load_parameters
from boostr.quant.scheme import SCHEMES, QuantizedTensor
from boostr.tensor import Tensor

PROMPT, NEW, PREFILL = 128, 128, 512
MODELS: dict[str, dict[str, Any]] = {
    "135M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "tie_word_embeddings": True, "rope_theta": 100000.0,
    },
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": True, "rope_theta": 500000.0,
    },
    "8B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": False, "rope_theta": 500000.0,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "tie_word_embeddings": True, "rope_theta": 10000.0,
    },
}  # fmt: skip
# llama.cpp's Vulkan backend on an H100: (model, weights) -> (prefill of 512, decode)
PEER = {
    ("135M", "bf16"): (8300.0, 468.0), ("135M", "int8"): (10000.0, 491.0),
    ("1B", "bf16"): (14600.0, 498.0), ("1B", "int8"): (14700.0, 610.0),
    ("8B", "bf16"): (2580.0, 143.0), ("8B", "int8"): (2460.0, 200.0),
}  # fmt: skip


class RandomWeights:
    """A checkpoint of random numbers: one block is uploaded, and copied on the device.

    form: a float dtype, or a scheme of int8 weights.
    """

    path = "random"

    def __init__(self, module: Any, form: str, backend: Any) -> None:
        self._shapes = {
            name: getattr(owner, attribute).shape for name, owner, attribute in module.parameters()
        }
        self._scheme = SCHEMES.get(form)
        self._dtype = np.dtype(np.int8) if self._scheme else dtypes.parse(form)
        size = min(1 << 22, max(np.prod(s) for s in self._shapes.values()))
        rng, self._backend = np.random.default_rng(0), backend
        if self._scheme:
            block = rng.integers(-127, 128, size, np.int8)
        else:
            block = rng.standard_normal(size, np.float32).astype(self._dtype)
        self._block = backend.from_numpy(block)

    @property
    def names(self) -> Iterator[str]:
        yield from self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def weight(self, name: str, backend: Any) -> Tensor | QuantizedTensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return Tensor(np.ones(shape, np.float32), backend=backend)
        values = self._filled(shape)
        if self._scheme is None:
            return values
        groups = -(-shape[1] // (self._scheme.group_size or shape[1]))
        scales = np.full((shape[0], groups), shape[1] ** -0.5 / 73, np.float32)
        parts = {"values": values, "scales": Tensor(scales, backend=backend)}
        return QuantizedTensor(self._scheme, (shape[0], shape[1]), parts)

    def _filled(self, shape: tuple[int, ...]) -> Tensor:
        """The block over and over; rows of other lengths than its own are all different."""
        backend, block, size = self._backend, self._block, int(np.prod(shape))
        made = backend.empty(shape, self._dtype)
        for at in range(0, size, block.size):
            count = min(block.size, size - at)
            part = made.view(shape=(count,), strides=(1,), offset=at)
            backend.assign(part, block.view(shape=(count,), strides=(1,)))
        if self._scheme is None:  # rows of length 1, about
            scaled = Tensor.wrap(made, backend) * float(shape[1] ** -0.5)
            return scaled.to(self._dtype)
        return Tensor.wrap(made, backend)


def random_runner(config: dict[str, Any], form: str) -> Runner:
    """A model of that config on the GPU, with bf16 activations."""
    raw = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, **config}
    made = family("llama", "random")
    module: Any = made(made.read_config(RawConfig(raw, "random")))
    backend = wgpu_timing.backend()
    load_parameters(module, RandomWeights(module, form, backend), backend)
    module.model.embed_tokens.dtype = dtypes.bfloat16
    return Runner(module, backend)


def step_bytes(runner: Runner, length: int) -> int:
    """Bytes that a decode step must read: all matrices but an untied embedding, and the cache."""
    module: Any = runner.module
    weights = module.weights()
    skipped = [] if module.lm_head is None else ["model.embed_tokens.weight"]
    matrices = sum(w.nbytes for name, w in weights.items() if name not in skipped)
    c = module.config
    row = 2 * c.num_key_value_heads * c.head_dim * module.activation_dtype.itemsize
    return matrices + length * row * c.num_hidden_layers


def prompt(length: int, vocab: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, vocab, (1, length)).tolist()


def decode(runner: Runner, repetitions: int) -> tuple[float, float, float, list[str]]:
    """(tokens per second, microseconds of host and of GPU time a step, the step's commands)."""
    backend: Any = runner.backend
    vocab = runner.module.config.vocab_size
    cache = runner.new_cache(1, PROMPT + NEW + 8)
    runner.prefill(cache, [0], prompt(PROMPT, vocab))
    seconds = []
    for _ in range(repetitions):
        sampler = Sampler(backend, [SamplingOptions()], [[]], vocab)
        decoder = Decoder(runner, cache, sampler, [0], [1], [PROMPT], NEW + 1, backend.run_ahead)
        decoder.step()
        start = time.perf_counter()
        for _ in range(NEW):
            decoder.step()
        seconds.append(time.perf_counter() - start)
    program: Any = decoder._program
    micro = statistics.median(busy_seconds(program) for _ in range(5)) * 1e6
    start = time.perf_counter()
    for _ in range(8):
        program.run()
    host = (time.perf_counter() - start) / 8 * 1e6
    backend.synchronize()
    return NEW / statistics.median(seconds), host, micro, decoder.describe()


def busy_seconds(program: Any) -> float:
    """Of GPU time, right after other work: the clocks of an idle GPU are low."""
    for _ in range(4):
        program.run()
    return program.seconds()


def prefill(runner: Runner, repetitions: int) -> float:
    """Tokens per second of one prompt, until its last logits are on the device."""
    cache = runner.new_cache(1, PREFILL)
    tokens = prompt(PREFILL, runner.module.config.vocab_size)
    seconds = []
    for _ in range(repetitions + 1):
        runner.backend.synchronize()
        start = time.perf_counter()
        runner.prefill(cache, [0], tokens)
        runner.backend.synchronize()
        seconds.append(time.perf_counter() - start)
    return PREFILL / statistics.median(seconds[1:])


def measure(name: str, form: str, options: argparse.Namespace) -> list[list[Any]]:
    """Rows of one model in one form of weights."""
    runner, rows, none = random_runner(MODELS[name], form), [], float("nan")
    peers = PEER.get((name, form), (none, none))
    if "decode" in options.tests:
        rate, host, micro, names = decode(runner, options.repetitions)
        bound = wgpu_timing.COPY_BYTES / step_bytes(runner, PROMPT + NEW // 2)
        rows.append(
            [name, form, "decode", rate, bound, rate / bound, peers[1], rate / peers[1], host,
             micro, len(names)]
        )  # fmt: skip
        if options.kernels:
            print(f"{name} {form}: {summary(names)}", file=sys.stderr)
    if "prefill" in options.tests:
        rate = prefill(runner, options.repetitions)
        rows.append(
            [name, form, "prefill 512", rate, none, none, peers[0], rate / peers[0], none, none, ""]
        )
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
            "GPU µs", "commands"]  # fmt: skip
    print(wgpu_timing.table(head, []))
    for name in options.models.split(","):
        for form in options.weights.split(","):
            rows = measure(name, form, options)
            print(*wgpu_timing.table(head, rows).splitlines()[2:], sep="\n", flush=True)
            gc.collect()
            wgpu_timing.backend().release_memory()


if __name__ == "__main__":
    main()
