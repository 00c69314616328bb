"""Matrix products on one NVIDIA GPU at the shapes of models, beside torch's (cuBLAS).

    python benchmarks/cuda_gemm.py [--tables prefill,skinny] [--formats 'Q4_K;nf4'] [--rows 512]

prefill: bf16, 4096 rows, through cuBLASLt. skinny: 16 to 64 rows, as a batch of sequences decodes,
next weights fetched early; the floor is reading the weight at a copy's speed. packed: the forms of
every format at several numbers of rows, against torch's bf16.
Everything runs in CUDA graphs, weights rotate past the L2 cache.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import cuda_timing
import numpy as np

from boostr import backends, dtypes
from boostr.ops.linear import linear
from boostr.quant.scheme import QuantizedTensor, Scheme
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
SKINNY = (None, "int8", "int4-g128", "Q4_K", "Q6_K")  # None: bf16
ROWS = (16, 32, 64, 512, 4096)
SHAPES = ((14336, 4096), (4096, 14336), (4096, 4096), (8192, 2048))
K_QUANT = {"scale": "i8", "super_size": 256}
E2M1 = tuple(sign * v for sign in (1.0, -1.0) for v in (0.0, 1, 2, 3, 4, 6, 8, 12))
INT8_TABLE = (-127.0, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
NF4 = tuple(float(np.float32(np.tanh((i - 7.3) / 6))) for i in range(16))  # as many bits as nf4's
# how files of these formats are held
FORMATS = {
    "int8": Scheme("int8"),
    "int8-g32": Scheme("int8-g32", 32),
    "int8-g128": Scheme("int8-g128", 128),
    "w8a8": Scheme("w8a8", activations_int8=True),
    "int4-g32": Scheme("int4-g32", 32, bits=4, zero=8, scale="bf16"),
    "int4-g128": Scheme("int4-g128", 128, bits=4, zero=8, scale="bf16"),
    "AWQ, GPTQ": Scheme("int4-g128-zeros", 128, bits=4, scale="f16", offsets="zeros"),
    "MLX 4": Scheme("int4-g64-offsets", 64, bits=4, scale="bf16", offsets="bf16"),
    "MLX 6": Scheme("int6-g64-offsets", 64, bits=6, scale="bf16", offsets="bf16"),
    "MLX 8": Scheme("int8-g64-offsets", 64, zero=-128, scale="bf16", offsets="bf16"),
    "nf4": Scheme("nf4", 64, bits=4, values=NF4),
    "fp8": Scheme("e4m3", values="e4m3"),
    "fp8-g128": Scheme("e4m3-g128", 128, values="e4m3"),
    "MXFP4": Scheme("mxfp4", 32, bits=4, values=E2M1, scale="e8m0", factor=0.5),
    "NVFP4": Scheme("nvfp4", 16, bits=4, values=E2M1, scale="e4m3", factor=0.5, super_size=256),
    "Q8_0": Scheme("q8_0", 32, scale="f16"),
    "Q6_K": Scheme("q6_k", 16, bits=6, zero=32, **K_QUANT),
    "Q5_K": Scheme("q5_k", 32, bits=5, offsets="u8", **K_QUANT),
    "Q5_0": Scheme("q5_0", 32, bits=5, zero=16, scale="f16"),
    "Q4_K": Scheme("q4_k", 32, bits=4, offsets="u8", **K_QUANT),
    "Q4_1": Scheme("q4_1", 32, bits=4, scale="f16", offsets="f16"),
    "Q4_0": Scheme("q4_0", 32, bits=4, zero=8, scale="f16"),
    "IQ4_NL": Scheme("iq4_nl", 32, bits=4, values=INT8_TABLE, scale="f16"),
    "IQ4_XS": Scheme("iq4_xs", 32, bits=4, values=INT8_TABLE, **K_QUANT),
    "Q3_K": Scheme("q3_k", 16, bits=3, zero=4, **K_QUANT),
    "IQ2_S": Scheme("iq2", 16, bits=3, values=INT8_TABLE[4:12], **K_QUANT),
    "Q2_K": Scheme("q2_k", 16, bits=2, offsets="u8", **K_QUANT),
    "TQ2_0": Scheme("tq2_0", 256, bits=2, zero=1, scale="f16"),
}


class Bench:
    """Random weights on both sides, made once: every product takes a window of them."""

    def __init__(self) -> None:
        import cupy
        import torch

        self.backend: Any = backends.get("cupy")
        elements = 1 << 28
        self.pool = cupy.random.standard_normal(elements, np.float32).astype(dtypes.bfloat16)
        self.bytes = cupy.random.randint(-127, 128, elements, np.int8)
        scales = cupy.random.uniform(0.001, 0.002, elements // 16, np.float32)
        floats = (dtypes.float32, dtypes.float16, dtypes.bfloat16)
        self.scales = {t: scales.astype(t) for t in floats}
        self.small_bytes = cupy.random.randint(20, 60, elements // 16, np.uint8)
        self.torch_pool = torch.randn(elements, device="cuda", dtype=torch.bfloat16)

    def windows(self, N: int, K: int, item: float) -> Iterator[int]:
        """Starts of as many weights as do not fit the L2 cache together, over and over."""
        room = len(self.pool) // (N * K)
        count = max(1, min(cuda_timing.rotation(N * K * item), room))
        while True:
            yield from (i * N * K for i in range(count))

    def ours(
        self, M: int, N: int, K: int, scheme: Scheme | None, calls: int, early: bool = False
    ) -> tuple[float, int]:
        """(microseconds of one product, bytes of its weight); no scheme is bf16.

        early: as in a decode step, whose weights are constant.
        """
        x = Tensor.wrap(self.pool[: M * K].reshape(M, K), self.backend)
        starts = self.windows(N, K, scheme.bits / 8 if scheme else 2)
        weights = [self.weight(next(starts), N, K, scheme) for _ in range(calls)]
        with self.backend.constant_weights() if early else nullcontext():
            us = cuda_timing.graph_time_us([_call(linear, x, w) for w in weights])
        return us, weights[0].nbytes

    def weight(self, start: int, N: int, K: int, scheme: Scheme | None) -> Any:
        if scheme is None:
            return Tensor.wrap(self.pool[start : start + N * K].reshape(N, K), self.backend)
        parts = {}
        for name, part in scheme.parts.items():
            columns = part.columns(K)
            if name in ("codes", "high"):
                pool = self.bytes
            elif part.dtype.kind in "iu":
                pool = self.small_bytes
            else:
                pool = self.scales[part.dtype]
            first = start // K * columns
            flat = pool[first : first + N * columns].view(part.dtype)
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
        (ours, _), theirs = bench.ours(PREFILL, N, K, None, 8), bench.torch(PREFILL, N, K, 8)
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
            for form in SKINNY:
                us, nbytes = bench.ours(M, N, K, FORMATS[form] if form else None, 24, early=True)
                share = cuda_timing.terabytes(nbytes, us) * 1e12 / cuda_timing.copy_bytes()
                row.append(f"{us:.1f}, {theirs / us:.2f}, {share:.0%}")
            rows.append(row)
    head = ("weights", "rows", "torch bf16 us")
    return cuda_timing.table(head + tuple(f"{f or 'bf16'}: us, ratio, floor" for f in SKINNY), rows)


def packed(bench: Bench, formats: list[str], all_rows: list[int]) -> str:
    """The ratio of torch's time to ours, and the TFLOP/s."""
    rows = []
    for (N, K), M in itertools.product(SHAPES, all_rows):
        calls = 8 if M > 64 else 24
        theirs = bench.torch(M, N, K, calls)
        row: list[Any] = [f"{N}x{K}", M, theirs]
        for name in formats:
            us, _ = bench.ours(M, N, K, FORMATS[name], calls)
            row.append(f"{theirs / us:.2f} ({2 * M * N * K / us / 1e6:.0f})")
        rows.append(row)
    head = ("weights", "rows", "torch bf16 us", *formats)
    return f"ratio (TFLOP/s)\n\n{cuda_timing.table(head, rows)}"


TABLES = ("prefill", "skinny", "packed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--formats", default=";".join(FORMATS), help="separated by semicolons")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    args = parser.parse_args()
    bench = Bench()
    tables: dict[str, Callable[[], str]] = {
        "prefill": lambda: prefill(bench),
        "skinny": lambda: skinny(bench),
        "packed": lambda: packed(
            bench, args.formats.split(";"), [int(M) for M in args.rows.split(",")]
        ),
    }
    for name in args.tables.split(","):
        print(f"\n{tables[name]()}", flush=True)


if __name__ == "__main__":
    main()
