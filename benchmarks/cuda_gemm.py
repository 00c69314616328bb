"""Matrix products on one NVIDIA GPU at the shapes of models, beside torch's (cuBLAS).

    python benchmarks/cuda_gemm.py [--tables prefill,skinny,packed]

prefill: bf16, 4096 rows, through cuBLASLt. skinny: bf16 and int8 weights, 16 to 64 rows, as a batch
of sequences decodes; the floor is reading the weight at a copy's speed. packed: int8 weights (per
row, per group of 32 and 128, and w8a8 with its rounding of x) and GGUF's at 4096 rows against
torch's bf16.
Everything runs in CUDA graphs, weights rotate past the L2 cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import cuda_timing
import numpy as np

from boostr import backends, dtypes
from boostr.ops.linear import linear
from boostr.quant.scheme import SCHEMES, QuantizedTensor
from boostr.tensor import Tensor

# (name, outputs, inputs) of the products of one layer
LAYERS = [
    ("8B qkv", 6144, 4096), ("8B o", 4096, 4096), ("8B gate+up", 28672, 4096),
    ("8B down", 4096, 14336), ("1B qkv", 3072, 2048), ("1B o", 2048, 2048),
    ("1B gate+up", 16384, 2048), ("1B down", 2048, 8192), ("135M qkv", 960, 576),
    ("135M o", 576, 576), ("135M gate+up", 3072, 576), ("135M down", 576, 1536),
]  # fmt: skip
PREFILL = 4096
BATCHES = (16, 32, 64)
FORMS = ("int8", "int8-g32", "int8-g128", "q8_0", "q4_0", "q4_1", "q6_k", "w8a8")


class Bench:
    """Random weights on both sides, made once: every product takes a window of them."""

    def __init__(self) -> None:
        import cupy
        import torch

        self.backend: Any = backends.get("cupy")
        elements = 1 << 28
        self.pool = cupy.random.standard_normal(elements, np.float32).astype(dtypes.bfloat16)
        self.bytes = cupy.random.randint(-127, 128, elements, np.int8)
        scales = cupy.random.uniform(0.001, 0.002, elements // 32, np.float32)
        self.scales = {t: scales.astype(t) for t in (dtypes.float32, dtypes.float16)}
        self.torch_pool = torch.randn(elements, device="cuda", dtype=torch.bfloat16)

    def windows(self, N: int, K: int, item: int) -> Iterator[int]:
        """Starts of as many weights as do not fit the L2 cache together, over and over."""
        room = len(self.pool) // (N * K)
        count = max(1, min(cuda_timing.rotation(N * K * item), room))
        while True:
            yield from (i * N * K for i in range(count))

    def ours(self, M: int, N: int, K: int, form: str, calls: int) -> float:
        x = Tensor.wrap(self.pool[: M * K].reshape(M, K), self.backend)
        starts = self.windows(N, K, 2 if form == "bf16" else 1)
        weights = [self._weight(next(starts), N, K, form) for _ in range(calls)]
        return cuda_timing.graph_time_us([_call(linear, x, w) for w in weights])

    def _weight(self, start: int, N: int, K: int, form: str) -> Any:
        if form == "bf16":
            return Tensor.wrap(self.pool[start : start + N * K].reshape(N, K), self.backend)
        scheme = SCHEMES[form]
        parts = {}
        for name, part in scheme.parts.items():
            columns = part.columns(K)
            if part.dtype.kind in "iu":
                flat = self.bytes[start : start + N * columns].view(part.dtype)
            else:
                flat = self.scales[part.dtype][: N * columns]
            parts[name] = Tensor.wrap(flat.reshape(N, columns), self.backend)
        return QuantizedTensor(scheme, (N, K), parts)

    def torch(self, M: int, N: int, K: int, calls: int) -> float:
        from torch.nn.functional import linear as torch_linear

        x = self.torch_pool[: M * K].view(M, K)
        starts = self.windows(N, K, 2)
        chosen = [next(starts) for _ in range(calls)]
        weights = [self.torch_pool[start : start + N * K].view(N, K) for start in chosen]
        return cuda_timing.torch_graph_time_us([_call(torch_linear, x, w) for w in weights])


def _call(fn: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: fn(*args)


def prefill(bench: Bench) -> str:
    rows = []
    for name, N, K in LAYERS:
        flops = 2 * PREFILL * N * K
        ours, theirs = bench.ours(PREFILL, N, K, "bf16", 8), bench.torch(PREFILL, N, K, 8)
        share = flops / ours * 1e6 / cuda_timing.BF16_FLOPS
        rows.append((f"{name} {N}x{K}", ours, theirs, theirs / ours, flops / ours / 1e6, share))
    head = ("bf16, 4096 rows", "ours us", "torch us", "ratio", "TFLOP/s", "share of 798")
    return cuda_timing.table(head, rows)


def skinny(bench: Bench) -> str:
    rows = []
    for name, N, K in LAYERS[:8]:
        for M in BATCHES:
            theirs = bench.torch(M, N, K, 24)
            row: list[Any] = [f"{name} {N}x{K}", M, theirs]
            for form, item in (("bf16", 2), ("int8", 1)):
                ours = bench.ours(M, N, K, form, 24)
                rate = cuda_timing.terabytes(N * K * item, ours)
                row += [ours, theirs / ours, rate * 1e12 / cuda_timing.copy_bytes()]
            rows.append(row)
    head = ("weights", "rows", "torch bf16 us")
    for form in ("bf16", "int8"):
        head += (f"{form} us", "ratio", "share of a copy")
    return cuda_timing.table(head, rows)


def packed(bench: Bench) -> str:
    rows = []
    for name, N, K in LAYERS[:8]:
        theirs = bench.torch(PREFILL, N, K, 8)
        times = [bench.ours(PREFILL, N, K, form, 8) for form in FORMS]
        rates = [2 * PREFILL * N * K / us / 1e6 for us in times]
        rows.append((f"{name} {N}x{K}", theirs, *(f"{theirs / us:.2f} ({rate:.0f})"
                     for us, rate in zip(times, rates, strict=True))))  # fmt: skip
    head = ("4096 rows", "torch bf16 us", *(f"{form}: ratio (TFLOP/s)" for form in FORMS))
    return cuda_timing.table(head, rows)


TABLES: dict[str, Callable[[Bench], str]] = {
    "prefill": prefill,
    "skinny": skinny,
    "packed": packed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", default=",".join(TABLES))
    chosen = parser.parse_args().tables.split(",")
    bench = Bench()
    for name in chosen:
        print(f"\n{TABLES[name](bench)}", flush=True)


if __name__ == "__main__":
    main()
