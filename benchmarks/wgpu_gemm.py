"""Matrix products of many rows on a WebGPU device: TFLOP/s and shares of an H100's limits.

    BOOSTR_BACKEND=wgpu [BOOSTR_WGPU=wgpudawn] python benchmarks/wgpu_gemm.py
        [--tables square,prefill,forms,batch] [--rounds 5]

square: 4096³ in f32 and bf16. prefill: bf16, 512 rows, the products of a layer of the 1B and 135M
models, and what they add up to in tokens/s if products were all. forms: a weight of 16384 x 2048 in
every stored form, 512 rows. batch: bf16 and int8, 16 to 64 rows; the floor is reading the weight at
a copy's speed. The shares are of 67 TFLOP/s (f32, vector units) and, where Dawn gives tensor cores,
of 989 (bf16, dense). All is compiled first, then measured in rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from model_shapes import MODELS
from wgpu_timing import F32_FLOPS, backend, copy_bytes, table

from boostr import Tensor, capture, dtypes
from boostr.ops.linear import linear
from boostr.quant.scheme import SCHEMES, QuantizedTensor

TENSOR_FLOPS = 989e12  # bf16, dense, by the data sheet
FORMS = ("float32", "bfloat16", "float16", *SCHEMES)
_POOL = 1 << 25  # elements that weights and inputs are windows of


class Race:
    """Programs that are compiled first and then timed in turn, so that clocks treat all alike."""

    def __init__(self, where: Any) -> None:
        self.where = where
        self._programs: dict[Any, tuple[Any, int, list[Any]]] = {}

    def add(self, key: Any, calls: list[Callable[[], Any]]) -> None:
        kept: list[Any] = []
        program: Any = capture(lambda: kept.extend(call() for call in calls), self.where)
        self._programs[key] = program, len(calls), kept

    def run(self, rounds: int) -> dict[Any, float]:
        """Median microseconds of a call by key."""
        found: dict[Any, list[float]] = {key: [] for key in self._programs}
        for turn in range(rounds + 1):
            for key, (program, calls, _) in self._programs.items():
                program.run()
                seconds = program.seconds()
                if turn:
                    found[key].append(seconds / calls * 1e6)
        return {key: statistics.median(times) for key, times in found.items()}


class Bench:
    """Random numbers in device memory: every product takes windows of them."""

    def __init__(self) -> None:
        self.backend = backend()
        rng = np.random.default_rng(0)
        self._some = rng.standard_normal(1 << 20, np.float32)
        self._bytes = rng.integers(0, 0x3C, 1 << 22, np.uint8)
        self._pools: dict[Any, Any] = {}
        self.peak = TENSOR_FLOPS if self.backend.caps.matrices else F32_FLOPS

    def array(self, shape: tuple[int, int], dtype: Any, number: int = 0) -> Any:
        """The `number`-th window of that shape, over again where the pool ends."""
        kind, size = np.dtype(dtype), shape[0] * shape[1]
        if kind not in self._pools:
            of = self._some if dtypes.is_float(kind) else self._bytes
            whole = np.resize(of, max(_POOL, size)).astype(kind)
            self._pools[kind] = self.backend.from_numpy(whole)
        pool = self._pools[kind]
        start = number % max(pool.size // size, 1) * size // 128 * 128
        return pool.view(shape=shape, strides=(shape[1], 1), offset=start)

    def weight(self, form: str, N: int, K: int, number: int = 0) -> Any:
        def part(rows: int, columns: int, dtype: Any) -> Tensor:
            return Tensor.wrap(self.array((rows, columns), dtype, number), self.backend)

        if form not in SCHEMES:
            return part(N, K, dtypes.parse(form))
        parts = {n: part(N, p.columns(K), p.dtype) for n, p in SCHEMES[form].parts.items()}
        return QuantizedTensor(SCHEMES[form], (N, K), parts)

    def calls(self, M: int, N: int, K: int, form: str, dtype: str, count: int) -> list[Any]:
        x = Tensor.wrap(self.array((M, K), dtypes.parse(dtype)), self.backend)
        weights = [self.weight(form, N, K, i) for i in range(count)]
        return [lambda w=w: linear(x, w) for w in weights]


def rate(M: int, N: int, K: int, us: float) -> float:
    """TFLOP/s."""
    return 2 * M * N * K / us / 1e6


def square(bench: Bench, rounds: int) -> str:
    race, n = Race(bench.backend), 4096
    for dtype in ("float32", "bfloat16"):
        race.add(dtype, bench.calls(n, n, n, dtype, dtype, 1))
    rows = []
    for dtype, us in race.run(rounds).items():
        peak = F32_FLOPS if dtype == "float32" else bench.peak
        rows.append((f"{dtype} {n}³", us, rate(n, n, n, us), rate(n, n, n, us) * 1e12 / peak))
    return table(("product", "us", "TFLOP/s", "share of peak"), rows)


def layers(name: str) -> list[tuple[str, int, int]]:
    """(name, N, K) of the products of one layer."""
    c = MODELS[name]
    E, F = c["hidden_size"], c["intermediate_size"]
    D = E // c["num_attention_heads"]
    joined = E + 2 * D * c["num_key_value_heads"]
    return [("qkv", joined, E), ("o", E, E), ("gate+up", 2 * F, E), ("down", E, F)]


def prefill(bench: Bench, rounds: int) -> str:
    race, M, rows = Race(bench.backend), 512, []
    for model in ("1B", "135M"):
        for name, N, K in layers(model):
            race.add((model, name, N, K), bench.calls(M, N, K, "bfloat16", "bfloat16", 2))
    found = race.run(rounds)
    for (model, name, N, K), us in found.items():
        flops = rate(M, N, K, us)
        rows.append((f"{model} {name} {N}x{K}", us, flops, flops * 1e12 / bench.peak))
    for model in ("1B", "135M"):
        whole = sum(us for key, us in found.items() if key[0] == model)
        tokens = M / (whole * MODELS[model]["num_hidden_layers"]) * 1e6
        rows.append((f"{model} all layers", whole, f"{tokens:.0f} tokens/s", ""))
    return table(("bf16, 512 rows", "us", "TFLOP/s", "share of peak"), rows)


def forms(bench: Bench, rounds: int) -> str:
    race, (M, N, K), rows = Race(bench.backend), (512, 16384, 2048), []
    for form in FORMS:
        race.add(form, bench.calls(M, N, K, form, "bfloat16", 1))
    for form, us in race.run(rounds).items():
        flops = rate(M, N, K, us)
        rows.append((form, us, flops, flops * 1e12 / bench.peak))
    return table((f"weight {N}x{K}, bf16 x {M} rows", "us", "TFLOP/s", "share of peak"), rows)


def batch(bench: Bench, rounds: int) -> str:
    race, rows = Race(bench.backend), []
    for name, N, K in layers("1B"):
        for M in (16, 32, 64):
            for form in ("bfloat16", "int8"):
                calls = bench.calls(M, N, K, form, "bfloat16", 2)
                race.add((name, N, K, M, form), calls)
    for (name, N, K, M, form), us in race.run(rounds).items():
        floor = N * K * (2 if form == "bfloat16" else 1) / copy_bytes() * 1e6
        rows.append((f"1B {name} {N}x{K} {form}", M, us, rate(M, N, K, us), floor / us))
    return table(("weight", "rows", "us", "TFLOP/s", "share of a copy"), rows)


TABLES = {"square": square, "prefill": prefill, "forms": forms, "batch": batch}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    bench = Bench()
    caps = bench.backend.caps
    print(f"{caps.name}, driver {caps.driver}, {caps.provider}\n")
    for name in options.tables.split(","):
        print(TABLES[name](bench, options.rounds), flush=True)
        print()


if __name__ == "__main__":
    main()
