"""The gradient of causal attention on a CUDA device, beside PyTorch's kernels.

    python benchmarks/cuda_attention_backward.py

TFLOP/s count 10 * H * D * (pairs of query and key that see each other): 2.5 times the forward.
Peers: FlashAttention-2 and cuDNN through `scaled_dot_product_attention` (equal lengths), and
`torch.nn.attention.varlen.varlen_attn` (packed sequences of different lengths).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from cuda_timing import BF16_FLOPS, table, time_us, torch_time_us

from boostr import Tensor, backends, no_grad
from boostr.ops import varlen_attention
from boostr.ops.attention import _backward as attention_backward
from boostr.options import attention_options

EQUAL = [(128, 32, True), (128, 32, False), (64, 32, True), (64, 32, False), (128, 8, True)]
PEERS = ("FLASH_ATTENTION", "CUDNN_ATTENTION")
HEAD = ["head_dim", "kv heads", "causal", "lengths", "ours", "in order", "FA2", "cuDNN",
        "ours / FA2", "ours / cuDNN", "of 798"]  # fmt: skip


def pairs(lengths: Sequence[int], causal: bool) -> float:
    """How many queries and keys see each other."""
    return sum(n * n for n in lengths) / (2 if causal else 1)


def ours(lengths: Sequence[int], H: int, K: int, D: int, causal: bool) -> tuple[float, float]:
    """Microseconds of our kernels: as they are by default, and with BOOSTR_DETERMINISTIC=1."""
    import cupy

    backend = backends.get("cupy")
    T = sum(lengths)

    def draw(heads: int) -> Tensor:
        x = cupy.random.standard_normal((T, heads, D), dtype=np.float32)
        return Tensor.wrap(x.astype(ml_dtypes.bfloat16), backend)

    q, k, v, g = draw(H), draw(K), draw(K), draw(H)
    cu = Tensor(np.cumsum([0, *lengths]).astype(np.int32), backend=backend)
    with no_grad():
        out, lse = varlen_attention(q, k, v, cu, cu, causal=causal)
    options = attention_options("benchmark", D, causal, None, None, None, "bottom-right")
    args = (g, lse.full_like(0), out, lse, q, k, v, cu, cu, None, options)
    times = []
    for ordered in ("0", "1"):
        os.environ["BOOSTR_DETERMINISTIC"] = ordered
        times.append(time_us(lambda: attention_backward(*args), 10))
    return times[0], times[1]


def peer(name: str, lengths: Sequence[int], K: int, D: int, causal: bool) -> float | None:
    """Microseconds of PyTorch's backward alone; None where that kernel refuses."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    B, S, H = len(lengths), lengths[0], 32

    def draw(heads: int) -> Any:
        return torch.randn(B, heads, S, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    leaves = q, k, v = draw(H), draw(K), draw(K)
    try:
        with sdpa_kernel(getattr(SDPBackend, name)):
            out = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=H != K)
    except RuntimeError:
        return None
    g = torch.randn_like(out)
    return torch_time_us(lambda: torch.autograd.grad(out, leaves, g, retain_graph=True), 10)


def varlen_peer(lengths: Sequence[int], H: int, D: int) -> float:
    """Microseconds of `varlen_attn`'s backward, causal."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    T, longest = sum(lengths), max(lengths)
    leaves = q, k, v = [
        torch.randn(T, H, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    ]
    cu = torch.tensor(np.cumsum([0, *lengths]), device="cuda", dtype=torch.int32)
    try:
        out = varlen_attn(q, k, v, cu, cu, longest, longest, window_size=(-1, 0))
    except TypeError:  # before torch 2.11
        out = varlen_attn(q, k, v, cu, cu, longest, longest, is_causal=True)
    g = torch.randn_like(out)
    return torch_time_us(lambda: torch.autograd.grad(out, leaves, g, retain_graph=True), 10)


def row(lengths: Sequence[int], K: int, D: int, causal: bool, words: str, peers: list) -> list:
    """One line of the table; `peers`: microseconds of FA2 and cuDNN, or None."""
    flops = 10 * 32 * D * pairs(lengths, causal)
    here, ordered = (flops / t / 1e6 for t in ours(lengths, 32, K, D, causal))
    rates = [None if t is None else flops / t / 1e6 for t in peers]
    ratios = ["" if rate is None else f"{here / rate:.2f}" for rate in rates]
    shown = ["" if rate is None else f"{rate:.0f}" for rate in rates]
    share = f"{here * 1e12 / BF16_FLOPS:.0%}"
    sees = "yes" if causal else "no"
    return [str(D), str(K), sees, words, f"{here:.0f}", f"{ordered:.0f}", *shown, *ratios, share]


def rows() -> Iterator[list[str]]:
    """The table's lines, as they are measured."""
    for D, K, causal in EQUAL:
        lengths = [4096] * 4
        peers = [peer(name, lengths, K, D, causal) for name in PEERS]
        yield row(lengths, K, D, causal, "4 x 4096", peers)
    lengths = np.random.default_rng(1).integers(256, 2049, 32).tolist()
    for D in (128, 64):
        peers = [varlen_peer(lengths, 32, D), None]
        yield row(lengths, 32, D, True, "32 of 256-2048, packed", peers)


def main() -> None:
    print("bf16, 32 heads, TFLOP/s\n")
    for i, line in enumerate(rows()):
        print("\n".join(table(HEAD, [line]).splitlines()[2 * (i > 0) :]), flush=True)


if __name__ == "__main__":
    main()
