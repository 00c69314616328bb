"""Choosing tokens on one GPU, in a CUDA graph: boostr beside PyTorch.

    python benchmarks/cuda_sampling.py

The peer is the chain of transformers' warpers (temperature, top-k, top-p by sorting) and
`torch.multinomial`. Logits like a language model's: a bulk, and some tokens far above it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import cuda_timing as timing
import cupy
import numpy as np
import torch

from boostr import Tensor, backends
from boostr.ops import core
from boostr.ops.sampling import sample, seed_words

V = 128_256
BATCHES = (1, 8, 64)
SETTINGS = {"top-k 40, top-p 0.9": (40, 0.9), "top-p 0.9": (0, 0.9), "plain": (0, 1.0)}
TEMPERATURE = 0.8


def draw_logits(B: int) -> torch.Tensor:
    x = torch.randn(B, V, device="cuda") * 2
    x[:, ::5000] += 14
    return x


def ours(x: torch.Tensor) -> Tensor:
    """The same memory as a tensor of ours."""
    return Tensor.wrap(cupy.from_dlpack(x), backends.get("cupy"))


def our_sample(x: Tensor, top_k: int, top_p: float) -> float:
    """Microseconds of a call."""
    B, where = x.shape[0], x.backend
    rows = [np.full(B, TEMPERATURE), np.full(B, top_k), np.full(B, top_p), np.zeros(B)]
    types = (np.float32, np.int32, np.float32, np.float32)
    args = [Tensor(r.astype(t), backend=where) for r, t in zip(rows, types, strict=True)]
    args += [Tensor(a, backend=where) for a in (seed_words(range(B)), np.zeros(B, np.int32))]
    return timing.graph_time_us([lambda: sample(x, *args)] * 20)


def torch_sample(x: torch.Tensor, top_k: int, top_p: float) -> Any:
    x = x / TEMPERATURE
    if top_k:
        x = x.masked_fill(x < x.topk(top_k, -1).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, ids = x.sort(-1)
        beyond = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        beyond[:, -1] = False
        x = x.masked_fill(beyond.scatter(1, ids, beyond), -torch.inf)
    return torch.multinomial(x.softmax(-1), 1)


def rows() -> Iterator[list[Any]]:
    for B in BATCHES:
        x = draw_logits(B)
        mine = timing.graph_time_us([partial(core.argmax, ours(x), -1)] * 20)
        theirs = timing.torch_graph_time_us([partial(torch.argmax, x, -1)] * 20)
        yield ["argmax", B, mine, theirs, theirs / mine]
        for name, (top_k, top_p) in SETTINGS.items():
            mine = our_sample(ours(x), top_k, top_p)
            theirs = timing.torch_graph_time_us([partial(torch_sample, x, top_k, top_p)] * 4)
            yield [name, B, mine, theirs, theirs / mine]


if __name__ == "__main__":
    print(f"{V} columns, float32\n")
    print(timing.table(["what", "rows", "boostr, us", "torch, us", "boostr is faster by"], rows()))
