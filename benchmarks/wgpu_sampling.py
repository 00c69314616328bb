"""Choosing tokens on a WebGPU device, as a program.

    BOOSTR_BACKEND=wgpu python benchmarks/wgpu_sampling.py [--columns 49152,128256] [--torch]

Logits like a language model's: a bulk, and some tokens far above it. The floor is one read of them
at a copy's speed, and 2 us of a dispatch. With --torch the same GPU also runs, through CUDA, the
chain of transformers' warpers (temperature, top-k, top-p by sorting) and `torch.multinomial`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import wgpu_timing as timing

from boostr import Tensor
from boostr.ops import core
from boostr.ops.sampling import sample, seed_words

BATCHES = (1, 8, 64)
SETTINGS = {
    "top-k 40, top-p 0.9": (40, 0.9, 0.0), "top-p 0.9": (0, 0.9, 0.0), "min-p 0.05": (0, 1.0, 0.05),
    "plain": (0, 1.0, 0.0),
}  # fmt: skip
TEMPERATURE = 0.8
_CALLS = 20


def draw_logits(B: int, V: int) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((B, V), np.float32) * 2
    x[:, ::5000] += 14
    return x


def our_sample(x: Tensor, top_k: int, top_p: float, min_p: float) -> float:
    """Microseconds of a call."""
    B, where = x.shape[0], x.backend
    rows = [np.full(B, TEMPERATURE), np.full(B, top_k), np.full(B, top_p), np.full(B, min_p)]
    types = (np.float32, np.int32, np.float32, np.float32)
    args = [Tensor(r.astype(t), backend=where) for r, t in zip(rows, types, strict=True)]
    args += [Tensor(a, backend=where) for a in (seed_words(range(B)), np.zeros(B, np.int32))]
    return timing.time_us([lambda: sample(x, *args)] * _CALLS)


def torch_sample(x: Any, top_k: float, top_p: float, min_p: float) -> Any:
    import torch

    x = x / TEMPERATURE
    if top_k:
        x = x.masked_fill(x < x.topk(int(top_k), -1).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, ids = x.sort(-1)
        beyond = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        beyond[:, -1] = False
        x = x.masked_fill(beyond.scatter(1, ids, beyond), -torch.inf)
    p = x.softmax(-1)
    if min_p:
        p = p.masked_fill(p < min_p * p.amax(-1, keepdim=True), 0)
    return torch.multinomial(p, 1)


def peer(x: np.ndarray, setting: tuple[int, float, float] | None) -> float:
    """Microseconds of torch's argmax or of its warpers, in a CUDA graph."""
    import cuda_timing
    import torch

    there = torch.from_numpy(x).cuda()
    call = (lambda: torch.argmax(there, -1)) if setting is None else None
    call = call or (lambda: torch_sample(there, *(setting or ())))
    return cuda_timing.torch_graph_time_us([call] * 4)


def rows(V: int, with_torch: bool) -> Iterator[list[Any]]:
    for B in BATCHES:
        values = draw_logits(B, V)
        x = Tensor(values, backend=timing.backend())
        floor = values.nbytes / timing.copy_bytes() * 1e6 + timing.DISPATCH_US
        for name, setting in {"argmax": None, **SETTINGS}.items():
            if setting is None:
                mine = timing.time_us([partial(core.argmax, x, -1)] * _CALLS)
            else:
                mine = our_sample(x, *setting)
            theirs = [peer(values, setting)] if with_torch else []
            yield [name, V, B, mine, floor, floor / mine, *theirs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--columns", default="49152,128256")
    parser.add_argument("--torch", action="store_true", help="also torch's, through CUDA")
    args = parser.parse_args()
    head = ["what", "columns", "rows", "ours µs", "floor µs", "floor / ours"]
    head += ["torch (CUDA) µs"] if args.torch else []
    print(timing.table(head, []), flush=True)
    for V in map(int, args.columns.split(",")):
        for row in rows(V, args.torch):
            print(timing.table(head, [row]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
