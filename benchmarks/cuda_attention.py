"""Attention over many queries on a CUDA device beside PyTorch's kernels.

    python benchmarks/cuda_attention.py [name ...]

TFLOP/s in bf16, counting 4 H D for each pair of a query and a key, half of the pairs when causal.
`mma` is our kernel without Hopper's instructions, as other GPUs run it. The peers, in the same
process: F.scaled_dot_product_attention with its FLASH_ATTENTION (FA2) and CUDNN_ATTENTION backends
(equal lengths only) and torch.nn.attention.varlen.varlen_attn (packed sequences). The ratio is to
FA2, for packed sequences to varlen_attn; the share is that of 798 TFLOP/s, the best of cuBLAS on
one H100. For a turn of a chat, few new tokens on a long cache, the peer is SDPA with a mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cuda_timing as timing
import cupy
import ml_dtypes
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from boostr import Tensor, backends
from boostr.backends.cupy.attention import attention
from boostr.ops.attention import paged_attention, varlen_attention

PACKED = tuple(int(n) for n in np.random.default_rng(1).integers(256, 2049, 32))
REPEATS = 10
SHORT = 5e10  # floating-point operations


@dataclass(frozen=True)
class Shape:
    """Lengths of the sequences, heads, width; paged if there is a block size.

    new: tokens at the end of each sequence that ask; 0: all.
    """

    name: str
    lengths: tuple[int, ...]
    H: int
    K: int
    D: int
    causal: bool = True
    block_size: int = 0
    new: int = 0

    @property
    def equal(self) -> bool:
        return len(set(self.lengths)) == 1

    @property
    def flops(self) -> float:
        pairs = sum(
            (self.new or n) * (n - (self.new or n) / 2 if self.causal else n) for n in self.lengths
        )
        return 4.0 * self.H * self.D * pairs

    @property
    def starts(self) -> np.ndarray:
        return np.cumsum([0, *(self.new or n for n in self.lengths)]).astype(np.int32)


SHAPES = [
    *(Shape(f"4 x 4096, D {D}", (4096,) * 4, 32, 32, D) for D in (128, 64)),
    *(Shape(f"4 x 4096, D {D}, full", (4096,) * 4, 32, 32, D, False) for D in (128, 64)),
    *(Shape(f"1 x 16384, D {D}", (16384,), 32, 32, D) for D in (128, 64)),
    *(Shape(f"32 of 256-2048, D {D}", PACKED, 32, 32, D) for D in (128, 64)),
    *(Shape(f"4 x 4096, D {D}", (4096,) * 4, 16, 16, D) for D in (80, 96, 256)),
    Shape("64 x 128, D 32, full", (128,) * 64, 12, 12, 32, False),
    *(Shape(f"4 x 4096, D 128, GQA 4, blocks of {n}", (4096,) * 4, 32, 8, 128, True, n)
      for n in (16, 128)),
    *(Shape(f"64 new on 16384, D {D}, GQA 4", (16384,), 32, 8, D, True, 16384, 64)
      for D in (128, 64)),
    *(Shape(f"{new} new on {keys}, D 64, GQA 4, blocks of 128", (keys,), 32, 8, 64, True, 128, new)
      for keys in (1024, 4096, 16384) for new in (32, 96, 128, 256)),
]  # fmt: skip


# -- ours ------------------------------------------------------------------------------------------
def random(*shape: int) -> Tensor:
    values = cupy.random.standard_normal(shape, dtype=cupy.float32).astype(ml_dtypes.bfloat16)
    return Tensor.wrap(values, backends.get("cupy"))


def on_device(values: Any) -> Tensor:
    return Tensor(np.asarray(values, np.int32), backend="cupy")


def ours(shape: Shape) -> Callable[[], Any]:
    q, cu = random(int(shape.starts[-1]), shape.H, shape.D), on_device(shape.starts)
    if not shape.block_size:
        k, v = (random(sum(shape.lengths), shape.K, shape.D) for _ in range(2))
        return lambda: varlen_attention(q, k, v, cu, cu, causal=shape.causal)
    blocks = sum(shape.lengths) // shape.block_size
    k, v = (random(blocks, shape.block_size, shape.K, shape.D) for _ in range(2))
    order = np.random.default_rng(0).permutation(blocks)
    table, lens = on_device(order.reshape(len(shape.lengths), -1)), on_device(shape.lengths)
    return lambda: paged_attention(q, k, v, cu, table, lens, causal=shape.causal)


@contextmanager
def only_mma() -> Iterator[None]:
    kept, attention._specialist = attention._specialist, lambda *args: None
    try:
        yield
    finally:
        attention._specialist = kept


# -- peers -----------------------------------------------------------------------------------------
def torch_random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def sdpa(shape: Shape, backend: SDPBackend) -> Callable[[], Any]:
    B, n, new = len(shape.lengths), shape.lengths[0], shape.new or shape.lengths[0]
    q, k, v = (
        torch_random(B, heads, rows, shape.D)
        for heads, rows in ((shape.H, new), (shape.K, n), (shape.K, n))
    )
    options: dict[str, Any] = {"is_causal": shape.causal, "enable_gqa": shape.H != shape.K}
    if shape.new:
        mask = torch.ones(new, n, dtype=torch.bool, device="cuda").tril(n - new)
        options |= {"is_causal": False, "attn_mask": mask}

    def run() -> torch.Tensor:
        with sdpa_kernel([backend, SDPBackend.EFFICIENT_ATTENTION] if shape.new else backend):
            return scaled_dot_product_attention(q, k, v, **options)

    return run


def varlen(shape: Shape) -> Callable[[], Any]:
    longest = max(shape.lengths)
    q, k, v = (torch_random(sum(shape.lengths), shape.H, shape.D) for _ in range(3))
    cu = torch.from_numpy(shape.starts).cuda()
    window = (-1, 0 if shape.causal else -1)
    return lambda: varlen_attn(q, k, v, cu, cu, longest, longest, window_size=window)


def peers(shape: Shape) -> list[float | None]:
    """Microseconds of FA2, cuDNN and varlen_attn; None where one does not take the shape."""
    made: list[Callable[[], Callable[[], Any]] | None] = [
        (lambda: sdpa(shape, SDPBackend.FLASH_ATTENTION)) if shape.equal else None,
        (lambda: sdpa(shape, SDPBackend.CUDNN_ATTENTION)) if shape.equal else None,
        (lambda: varlen(shape)) if shape.H == shape.K else None,
    ]
    found: list[float | None] = []
    for make in made:
        try:
            with torch.no_grad():
                found.append(make and torch_us(shape, make()))
        except (RuntimeError, TypeError):
            found.append(None)
        torch.cuda.empty_cache()
    return found


# -- time: what is short in a CUDA graph, where launching costs the host nothing -------------------
def our_us(shape: Shape) -> float:
    call = ours(shape)
    if shape.flops < SHORT:
        return timing.graph_time_us([call] * 20)
    return timing.time_us(call, REPEATS)


def torch_us(shape: Shape, call: Callable[[], Any]) -> float:
    if shape.flops < SHORT:
        return timing.torch_graph_time_us([call] * 20)
    return timing.torch_time_us(call, REPEATS)


# -- table -----------------------------------------------------------------------------------------
def row(shape: Shape) -> list[str]:
    best = our_us(shape)
    with only_mma():
        mma = our_us(shape)
    cupy.get_default_memory_pool().free_all_blocks()
    others = peers(shape)
    base = others[0] if shape.equal else others[2]
    base = base or next((x for x in others if x), None)
    cells = [f"{shape.flops / x / 1e6:.0f}" if x else "-" for x in (best, mma, *others)]
    share = 100 * shape.flops / best * 1e6 / timing.BF16_FLOPS
    ratio = f"{base / best:.2f}" if base else "-"
    mask = "" if "full" in shape.name else ", causal"
    return [shape.name + mask, f"{best:.0f}", *cells, ratio, f"{share:.0f} %"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only shapes whose name contains one of these")
    names = parser.parse_args().names
    head = ["shape", "us", "ours", "mma", "FA2", "cuDNN", "varlen_attn", "ours/peer", "of 798"]
    shapes = [s for s in SHAPES if not names or any(name in s.name for name in names)]
    for i, shape in enumerate(shapes):
        lines = timing.table(head, [row(shape)]).splitlines()
        print("\n".join(lines if i == 0 else lines[2:]), flush=True)


if __name__ == "__main__":
    main()
