"""Attention over many queries on a CUDA device, forward and backward, beside PyTorch's kernels.

    python benchmarks/cuda_attention.py [--forward | --backward]

TFLOP/s in bf16: forward counts 4 H D Σ len_q len_k, half of it when causal; backward 2.5 times
that. Peers, in the same process: F.scaled_dot_product_attention with its FLASH_ATTENTION (FA2) and
CUDNN_ATTENTION backends (equal lengths only), torch.nn.attention.varlen.varlen_attn (packed ones).
`mma` is our kernel without Hopper's instructions. The share is that of 798 TFLOP/s, the best of
cuBLAS on one H100.
"""

from __future__ import annotations

import argparse
import inspect
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
from torch.nn.functional import scaled_dot_product_attention

from boostr import Tensor, backends
from boostr.backends.cupy import attention
from boostr.ops.attention import _backward, paged_attention, varlen_attention

PACKED = tuple(int(n) for n in np.random.default_rng(1).integers(256, 2049, 32))


@dataclass(frozen=True)
class Shape:
    """Lengths of the sequences, heads, widths."""

    lengths: tuple[int, ...]
    H: int
    K: int
    D: int
    causal: bool = True
    block_size: int = 0  # paged if not 0

    @property
    def flops(self) -> float:
        pairs = sum(n * n for n in self.lengths) / (2 if self.causal else 1)
        return 4.0 * self.H * self.D * pairs

    @property
    def name(self) -> str:
        equal = len(set(self.lengths)) == 1
        sequences = (
            f"{len(self.lengths)} x {self.lengths[0]}" if equal else
            f"{len(self.lengths)} of {min(self.lengths)}-{max(self.lengths)}"
        )  # fmt: skip
        paged = f", blocks of {self.block_size}" if self.block_size else ""
        mask = "causal" if self.causal else "full"
        return f"{sequences}, {self.H}/{self.K} heads of {self.D}, {mask}{paged}"


FORWARD = [
    *(Shape((4096,) * 4, 32, 32, D, causal) for D in (128, 64) for causal in (True, False)),
    *(Shape((16384,), 32, 32, D) for D in (128, 64)),
    *(Shape(PACKED, 32, 32, D) for D in (128, 64)),
    Shape((512,) * 32, 32, 8, 128),
    *(Shape((4096,) * 4, 16, 16, D) for D in (80, 96, 256)),
    *(Shape((4096,) * 4, 32, 8, 128, block_size=size) for size in (16, 128)),
]
BACKWARD = [
    *(Shape((4096,) * 4, 32, 32, D, causal) for D in (128, 64) for causal in (True, False)),
    Shape((16384,), 32, 32, 128),
    *(Shape(PACKED, 32, 32, D) for D in (128, 64)),
]


# -- ours ------------------------------------------------------------------------------------------
def random(*shape: int) -> Tensor:
    values = cupy.random.standard_normal(shape, dtype=cupy.float32).astype(ml_dtypes.bfloat16)
    return Tensor.wrap(values, backends.get("cupy"))


def starts(shape: Shape) -> np.ndarray:
    return np.cumsum([0, *shape.lengths]).astype(np.int32)


def inputs(shape: Shape) -> tuple[Tensor, ...]:
    T = sum(shape.lengths)
    cu = Tensor(starts(shape), backend="cupy")
    return (
        random(T, shape.H, shape.D), random(T, shape.K, shape.D), random(T, shape.K, shape.D), cu,
        cu,
    )  # fmt: skip


def our_forward(shape: Shape) -> Callable[[], Any]:
    q, k, v, cu, _ = inputs(shape)
    if not shape.block_size:
        return lambda: varlen_attention(q, k, v, cu, cu, causal=shape.causal)
    size = shape.block_size
    blocks = [-(-n // size) for n in shape.lengths]
    k, v = (random(sum(blocks), size, shape.K, shape.D) for _ in range(2))
    table = np.random.default_rng(0).permutation(sum(blocks)).reshape(len(blocks), -1)
    table, lens = (
        Tensor(np.asarray(x, np.int32), backend="cupy") for x in (table, shape.lengths)
    )  # fmt: skip
    return lambda: paged_attention(q, k, v, cu, table, lens, causal=shape.causal)


def our_backward(shape: Shape) -> Callable[[], Any]:
    from boostr.ops.attention import AttentionOptions

    args = inputs(shape)
    right = 0 if shape.causal else -1
    options = AttentionOptions(shape.causal, -1, right, shape.D**-0.5, 0.0, True)
    out, lse = varlen_attention(*args, causal=shape.causal)
    g, g_lse = random(*out.shape), lse.full_like(0)
    return lambda: _backward(g, g_lse, out, lse, *args, None, options)


@contextmanager
def only_mma() -> Iterator[None]:
    kept, attention._specialist = attention._specialist, lambda *args: None
    try:
        yield
    finally:
        attention._specialist = kept


# -- peers -----------------------------------------------------------------------------------------
def torch_random(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=grad)


def sdpa(shape: Shape, backend: SDPBackend, backward: bool) -> float | None:
    """Microseconds, or None where it does not take the shape."""
    if len(set(shape.lengths)) > 1 or shape.block_size:
        return None
    B, n = len(shape.lengths), shape.lengths[0]
    q, k, v = (torch_random(B, h, n, shape.D, grad=backward) for h in (shape.H, shape.K, shape.K))
    options = {"is_causal": shape.causal, "enable_gqa": shape.H != shape.K}

    def forward() -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, **options)

    return measured(forward, (q, k, v), backward)


def varlen(shape: Shape, backward: bool) -> float | None:
    from torch.nn.attention.varlen import varlen_attn

    if shape.H != shape.K or shape.block_size:
        return None
    T, longest = sum(shape.lengths), max(shape.lengths)
    q, k, v = (torch_random(T, shape.H, shape.D, grad=backward) for _ in range(3))
    cu = torch.from_numpy(starts(shape)).cuda()
    options: dict[str, Any] = {"is_causal": shape.causal}
    if "is_causal" not in inspect.signature(varlen_attn).parameters:  # PyTorch 2.11 and later
        options = {"window_size": (-1, 0 if shape.causal else -1)}

    def forward() -> torch.Tensor:
        return varlen_attn(q, k, v, cu, cu, longest, longest, **options)

    return measured(forward, (q, k, v), backward)


def measured(forward: Callable[[], torch.Tensor], leaves: tuple, backward: bool) -> float | None:
    try:
        if not backward:
            with torch.no_grad():
                return timing.torch_time_us(forward)
        out = forward()
        g = torch.randn_like(out)
        return timing.torch_time_us(
            lambda: torch.autograd.grad(out, leaves, g, retain_graph=True)
        )  # fmt: skip
    except (RuntimeError, TypeError) as error:
        print(f"  (peer: {str(error).splitlines()[0][:100]})")
        return None


# -- tables ----------------------------------------------------------------------------------------
def row(shape: Shape, backward: bool) -> list[Any]:
    flops = shape.flops * (2.5 if backward else 1.0)

    def rate(microseconds: float | None) -> float | None:
        return None if microseconds is None else flops / microseconds / 1e6

    make = our_backward if backward else our_forward
    ours = rate(timing.time_us(make(shape)))
    mma = None
    if not backward:
        with only_mma():
            mma = rate(timing.time_us(make(shape)))
    cupy.get_default_memory_pool().free_all_blocks()
    peers = [
        rate(sdpa(shape, SDPBackend.FLASH_ATTENTION, backward)),
        rate(sdpa(shape, SDPBackend.CUDNN_ATTENTION, backward)),
        rate(varlen(shape, backward)),
    ]
    torch.cuda.empty_cache()
    base = next((p for p in (peers[0], peers[2]) if p), None)
    if base is None or len(set(shape.lengths)) > 1:
        base = peers[2]
    ratio = f"{ours / base:.2f}" if base and ours else "-"
    share = f"{100 * ours / (timing.BF16_FLOPS / 1e12):.0f} %" if ours else "-"
    cells = [f"{x:.0f}" if x else "-" for x in (ours, mma, *peers)]
    return [shape.name, *cells, ratio, share]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forward", action="store_true", help="only the forward table")
    parser.add_argument("--backward", action="store_true", help="only the backward table")
    chosen = parser.parse_args()
    head = ["shape", "ours", "mma", "FA2", "cuDNN", "varlen_attn", "ours/FA2", "of 798"]
    both = chosen.forward == chosen.backward
    for title, shapes, backward, wanted in (
        ("forward", FORWARD, False, both or chosen.forward),
        ("backward", BACKWARD, True, both or chosen.backward),
    ):
        if wanted:
            print(f"\nAttention {title}, bf16, TFLOP/s (packed shapes: ours/varlen_attn)\n")
            for i, shape in enumerate(shapes):
                lines = timing.table(head, [row(shape, backward)]).splitlines()
                print("\n".join(lines if i == 0 else lines[2:]), flush=True)


if __name__ == "__main__":
    main()
