"""Decode attention over the cache (one query per sequence) on a CUDA device, beside torch's.

    python benchmarks/cuda_decode_attention.py [--flex] [name ...]

`ours` is the whole op (partials and their combination), `partials` its first kernel alone, as the
fused decode step uses it; both run in a CUDA graph over caches in turn, which exceed the L2 cache
together. The share is of the bytes of keys and values at a copy's speed. The peers are torch's
`scaled_dot_product_attention` on contiguous [B, K, S, D] caches, in a CUDA graph as well, and with
--flex `flex_attention` under `torch.compile`.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from typing import Any

import cuda_timing as timing
import numpy as np

from boostr import Tensor, backends, dtypes
from boostr.backends.cupy.attention import attention_decode as decode
from boostr.operands import KV
from boostr.ops.cache import kv_write, new_kv
from boostr.options import AttentionOptions
from boostr.quant.kv import KV_FORMS
from boostr.tensor import arange


@dataclass(frozen=True)
class Case:
    """One shape: `context` keys of each of B sequences in a cache of `capacity`."""

    name: str
    B: int
    context: int
    H: int = 32
    K: int = 8
    D: int = 128
    dtype: str = "bfloat16"
    capacity: int = 0
    packed: str = ""  # the form of keys and values; torch's have `dtype`

    @property
    def nbytes(self) -> int:
        row = self.D * dtypes.parse(self.dtype).itemsize
        if self.packed:
            row = KV_FORMS[self.packed].nbytes(self.D)
        return 2 * self.B * self.context * self.K * row

    @property
    def copies(self) -> int:
        """Of the caches: so many that each is read from memory again; at most 600 launches."""
        held = self.nbytes * max(self.capacity, self.context) // self.context
        return min(timing.rotation(self.nbytes, least=1), max(1, int(20e9) // held), 600)


CASES = [
    Case("8B 32k b1", 1, 32768),
    Case("8B 32k b8", 8, 32768),
    Case("8B 1k b32", 32, 1024),
    Case("8B 4k b1", 1, 4096),
    Case("8B 128 b1", 1, 128, capacity=2048),
    Case("135M 128 b1", 1, 128, 9, 3, 64, capacity=2048),
    Case("135M 2k b1", 1, 2048, 9, 3, 64),
    Case("1B 8k b1", 1, 8192, 32, 8, 64),
    Case("MHA 4k b4", 4, 4096, 32, 32, 128),
    Case("256 wide 8k b4", 4, 8192, 8, 4, 256),
    Case("8B 32k b1 int8", 1, 32768, packed="int8"),
    Case("8B 32k b8 int8", 8, 32768, packed="int8"),
    Case("8B 1k b32 int8", 32, 1024, packed="int8"),
    Case("8B 4k b1 int8", 1, 4096, packed="int8"),
    Case("135M 2k b1 int8", 1, 2048, 9, 3, 64, packed="int8"),
    Case("1B 8k b1 int8", 1, 8192, 32, 8, 64, packed="int8"),
    Case("f32 135M 2k b1", 1, 2048, 9, 3, 64, "float32"),
    Case("f32 8k b2", 2, 8192, 32, 8, 128, "float32"),
]


def inputs(case: Case, backend: Any, block: int = 0) -> list[tuple[Any, ...]]:
    """Arguments of `attend` for each copy of the caches; `block` 0: one block per sequence."""
    import cupy

    capacity = case.capacity or case.context
    block = block or capacity
    columns = -(-capacity // block)
    dtype = dtypes.parse(case.dtype)

    def random(*shape: int) -> Tensor:
        made = cupy.random.standard_normal(shape, dtype=np.float32).astype(dtype)
        return Tensor.wrap(made, backend)

    table = cupy.random.permutation(case.B * columns).astype(np.int32).reshape(case.B, columns)
    shape = (case.B * columns, block, case.K, case.D)
    rest = [
        Tensor(np.arange(case.B + 1, dtype=np.int32), backend=backend),
        Tensor.wrap(table, backend),
        Tensor(np.full(case.B, case.context, np.int32), backend=backend),
    ]

    def kept() -> KV:
        if not case.packed:
            return random(*shape)
        cache = new_kv(shape, KV_FORMS[case.packed], backend)
        rows = random(*shape).reshape(-1, case.K, case.D)
        kv_write(rows, rows, cache, cache, arange(len(rows), backend=backend))
        return cache

    return [
        (random(case.B, case.H, case.D), kept(), kept(), *rest, None) for _ in range(case.copies)
    ]


def options(case: Case) -> AttentionOptions:
    return AttentionOptions(True, -1, 0, case.D**-0.5, 0.0, True)


def ours(case: Case, backend: Any, arguments: list[tuple[Any, ...]], **chosen: Any):
    """Microseconds of (attend, partials alone)."""
    o = options(case)
    joined = {n: chosen.pop(n) for n in ("joined",) if n in chosen}
    whole = [lambda a=a: decode.attend(*a, None, o, **joined, **chosen) for a in arguments]
    first = [lambda a=a: decode.partials(backend, *a, o, **chosen) for a in arguments]
    many = max(1, 20 // len(arguments))
    return timing.graph_time_us(whole * many), timing.graph_time_us(first * many)


def _torch_calls(case: Case, copies: int, attend: Any) -> list[Any]:
    import torch

    kind = getattr(torch, case.dtype)

    def random(*shape: int) -> Any:
        return torch.randn(shape, device="cuda", dtype=kind)

    cache = (case.B, case.K, case.context, case.D)
    sets = [
        (random(case.B, case.H, 1, case.D), random(*cache), random(*cache)) for _ in range(copies)
    ]
    return [lambda s=s: attend(*s) for s in sets] * max(1, 20 // copies)


def sdpa(case: Case, kernel: str) -> float | str:
    """Microseconds of torch's scaled_dot_product_attention with one of its kernels."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend(q: Any, k: Any, v: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, enable_gqa=case.H != case.K
        )

    try:
        with sdpa_kernel(getattr(SDPBackend, kernel)), torch.no_grad():
            return timing.torch_graph_time_us(_torch_calls(case, case.copies, attend))
    except RuntimeError as error:
        return "refused" if "vailable" in str(error) else type(error).__name__


def flex(case: Case) -> float | str:
    """Microseconds of torch.compile'd flex_attention."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)
    try:
        with torch.no_grad():
            calls = _torch_calls(
                case, case.copies, lambda q, k, v: compiled(q, k, v, enable_gqa=case.H != case.K)
            )
            return timing.torch_graph_time_us(calls)
    except Exception as error:  # a compiler may fail in many ways; the table says so
        return type(error).__name__


def row(case: Case, backend: Any, with_flex: bool) -> list[Any]:
    import cupy
    import torch

    whole, first = ours(case, backend, inputs(case, backend))
    paged = ours(case, backend, inputs(case, backend, block=16))[0]
    cupy.get_default_memory_pool().free_all_blocks()
    kernels = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
    peers = [sdpa(case, kernel) for kernel in kernels]
    peers += [flex(case)] if with_flex else []
    torch.cuda.empty_cache()
    best = min((x for x in peers if isinstance(x, float)), default=float("nan"))
    share = 100 * timing.terabytes(case.nbytes, whole) / timing.copy_bytes() * 1e12
    return [case.name, whole, first, paged, share, *peers, best / whole]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="cases whose names contain one of these")
    parser.add_argument("--flex", action="store_true", help="also torch.compile(flex_attention)")
    args = parser.parse_args()
    backend: Any = backends.get("cupy")
    warnings.filterwarnings("ignore", category=UserWarning)  # why torch refuses: the table says it
    head = ["shape", "ours µs", "partials µs", "blocks of 16 µs", "% of a copy"]
    head += ["FLASH µs", "cuDNN µs", "efficient µs", *(["flex µs"] if args.flex else [])]
    head += ["best peer / ours"]
    print(timing.table(head, []), flush=True)
    for case in CASES:
        if not args.names or any(n in case.name for n in args.names):
            line = timing.table(head, [row(case, backend, args.flex)]).splitlines()[-1]
            print(line, flush=True)


if __name__ == "__main__":
    main()
