"""Decode attention over the cache (one query per sequence) on a WebGPU device.

    BOOSTR_BACKEND=wgpu python benchmarks/wgpu_decode_attention.py [--torch] [name ...]

`ours` is the whole op (its splits and their combination), `partials` its first kernel alone, as the
fused decode step uses it, `blocks of 16` the op over a cache in small blocks. All run as programs
over caches in turn, which exceed the L2 cache together unless they are many. The floor is the bytes
of keys and values at a copy's speed, and 2 us of a dispatch. With --torch the same GPU also runs
torch's `scaled_dot_product_attention` (its flash kernel, in a CUDA graph) on contiguous caches.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import wgpu_timing as timing

from boostr import Tensor, dtypes
from boostr.backends.wgpu.attention import attention_decode as decode
from boostr.options import AttentionOptions

_HELD = 3e9  # bytes of caches, at most
_MOST_COPIES = 40


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

    @property
    def nbytes(self) -> int:
        return 2 * self.B * self.context * self.K * self.D * dtypes.parse(self.dtype).itemsize

    @property
    def copies(self) -> int:
        """Of the caches: so many that each is read from memory again, where that is not many."""
        held = self.nbytes * max(self.capacity, self.context) // self.context
        return max(2, min(timing.rotation(self.nbytes), int(_HELD // held), _MOST_COPIES))


CASES = [
    Case("8B 32k b1", 1, 32768),
    Case("8B 32k b4", 4, 32768),
    Case("8B 1k b32", 32, 1024),
    Case("8B 4k b1", 1, 4096),
    Case("8B 128 b1", 1, 128, capacity=2048),
    Case("135M 128 b1", 1, 128, 9, 3, 64, capacity=2048),
    Case("135M 2k b1", 1, 2048, 9, 3, 64),
    Case("1B 8k b1", 1, 8192, 32, 8, 64),
    Case("MHA 4k b4", 4, 4096, 32, 32, 128),
    Case("256 wide 8k b4", 4, 8192, 8, 4, 256),
    Case("f32 135M 2k b1", 1, 2048, 9, 3, 64, "float32"),
]


def inputs(case: Case, block: int = 0) -> list[tuple[Any, ...]]:
    """Arguments of `attend` for each copy of the caches; `block` 0: one block per sequence."""
    where, rng = timing.backend(), np.random.default_rng(0)
    capacity = case.capacity or case.context
    block = block or capacity
    columns = -(-capacity // block)
    dtype = dtypes.parse(case.dtype)
    some = rng.standard_normal(1 << 20, np.float32).astype(dtype)

    def random(*shape: int) -> Tensor:
        return Tensor(np.resize(some, shape), backend=where)

    def numbers(values: Any) -> Tensor:
        return Tensor(np.asarray(values, np.int32), backend=where)

    table = numbers(rng.permutation(case.B * columns).reshape(case.B, columns))
    shape = (case.B * columns, block, case.K, case.D)
    rest = [numbers(range(case.B + 1)), table, numbers([case.context] * case.B), None]
    q = random(case.B, case.H, case.D)
    return [(q, random(*shape), random(*shape), *rest) for _ in range(case.copies)]


def ours(case: Case, arguments: list[tuple[Any, ...]]) -> tuple[float, float]:
    """Microseconds of (attend, partials alone)."""
    o = AttentionOptions(True, -1, 0, case.D**-0.5, 0.0, True)
    where = timing.backend()
    whole = [lambda a=a: decode.attend(*a, None, o) for a in arguments]
    first = [lambda a=a: decode.partials(where, *a, o) for a in arguments]
    many = max(1, 20 // len(arguments))
    return timing.time_us(whole * many), timing.time_us(first * many)


def flash(case: Case) -> float:
    """Microseconds of torch's flash attention through CUDA, in a graph."""
    import cuda_timing
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def random(*shape: int) -> Any:
        return torch.randn(shape, device="cuda", dtype=getattr(torch, case.dtype))

    cache = (case.B, case.K, case.context, case.D)
    sets = [
        (random(case.B, case.H, 1, case.D), random(*cache), random(*cache))
        for _ in range(case.copies)
    ]
    attend = torch.nn.functional.scaled_dot_product_attention
    calls = [lambda s=s: attend(*s, enable_gqa=case.H != case.K) for s in sets]
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.no_grad():
            return cuda_timing.torch_graph_time_us(calls * max(1, 20 // len(calls)))
    except RuntimeError:
        return float("nan")  # refused: not for these types


def row(case: Case, with_torch: bool) -> list[Any]:
    whole, first = ours(case, inputs(case))
    paged, _ = ours(case, inputs(case, block=16))
    floor = case.nbytes / timing.copy_bytes() * 1e6 + timing.DISPATCH_US
    peer = [flash(case)] if with_torch else []
    timing.backend().release_memory()
    return [case.name, whole, first, paged, floor, floor / whole, *peer]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="cases whose names contain one of these")
    parser.add_argument("--torch", action="store_true", help="also torch's, through CUDA")
    args = parser.parse_args()
    head = ["shape", "ours µs", "partials µs", "blocks of 16 µs", "floor µs", "floor / ours"]
    head += ["torch flash (CUDA) µs"] if args.torch else []
    print(timing.table(head, []), flush=True)
    for case in CASES:
        if not args.names or any(n in case.name for n in args.names):
            print(timing.table(head, [row(case, args.torch)]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
