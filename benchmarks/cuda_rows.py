"""Norms, gated activations, rope and embedding, forward and backward, beside PyTorch.

    python benchmarks/cuda_rows.py [--quick] [--only NAME] [--peers none|compile|all]

bf16. Every call is timed in a CUDA graph on buffers in turn, for us and for the peers (torch eager,
torch.compile). "TB/s" counts the bytes that the operation has to move at least; the floor is a
copy on the same GPU. A ratio above 1 means that we take less time.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import cuda_timing as timing
import cupy
import ml_dtypes
import numpy as np
import torch
from torch.nn import functional

from boostr import Tensor, backends, ops
from boostr.backends.cupy.rows.rope import Norms, Tables, rope_write
from boostr.ops import norm as norm_ops
from boostr.ops.activation import _swiglu_backward
from boostr.ops.embedding import _embedding_backward, embedding

BF16 = np.dtype(ml_dtypes.bfloat16)
BACKEND = backends.get("cupy")
EPS = 1e-6


def ours(x: torch.Tensor) -> Tensor:
    """The same memory as a tensor of ours."""
    if x.dtype != torch.bfloat16:
        return Tensor.wrap(cupy.from_dlpack(x), BACKEND)
    return Tensor.wrap(cupy.from_dlpack(x.view(torch.int16)).view(BF16), BACKEND)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def rotate_half(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def prepare(qkv, q_gain, k_gain, cos, sin, slots, k_cache, v_cache):
    """What a prompt does between the qkv product and attention, in the way of a model in torch."""
    D, K = q_gain.shape[0], k_cache.shape[1]
    heads = qkv.view(len(qkv), -1, D)
    q, k, v = heads.split([heads.shape[1] - 2 * K, K, K], 1)
    q = rotate_half(functional.rms_norm(q, (D,), q_gain, EPS), cos, sin)
    k = rotate_half(functional.rms_norm(k, (D,), k_gain, EPS), cos, sin)
    k_cache.index_copy_(0, slots, k)
    v_cache.index_copy_(0, slots, v)
    return q


class Case:
    """One row of the table: how to draw the inputs, our call, the peer's, and the bytes."""

    def __init__(self, name: str, shape: tuple[int, ...], moved: float) -> None:
        self.name, self.shape, self.moved = name, shape, moved

    def sets(self) -> list[Any]:
        count = min(8, timing.rotation(self.moved))
        return [self.inputs() for _ in range(count)]

    def inputs(self) -> Any:
        T, E = self.shape[:2]
        if self.name == "norm, rope, cache":
            H, K, D = self.shape[1:]
            gains, tables = draw(2, D).float(), torch.rand(2, T, D // 2, device="cuda")
            caches = torch.zeros(2, T, K, D, device="cuda", dtype=torch.bfloat16)
            return draw(T, (H + 2 * K) * D), *gains, *tables, torch.randperm(T).cuda(), *caches
        if self.name == "rope":
            H, D = E, self.shape[2]
            tables = [torch.rand(T, D // 2, device="cuda") for _ in range(2)]
            return draw(T, H, D), *tables, torch.arange(T, device="cuda", dtype=torch.int32)
        if self.name.startswith("embedding"):
            V = self.shape[2]
            return (
                torch.randint(0, V, (T,), device="cuda", dtype=torch.int32),
                draw(V, E),
                draw(T, E),
            )
        return *(draw(T, E) for _ in range(4)), draw(E), draw(E)

    def mine(self, *x: torch.Tensor) -> Callable[[], Any]:
        t = [ours(a) for a in x]
        if self.name == "norm, rope, cache":
            H, K, D = self.shape[1:]
            qkv, q_gain, k_gain, cos, sin, slots, *caches = (a.data for a in t)
            rows = cupy.arange(len(qkv), dtype=np.int32)
            slots, (k, v) = slots.astype(np.int32), [c.reshape(-1, 64, K, D) for c in caches]
            norms, tables = Norms(q_gain, k_gain, EPS), Tables(cos, sin, rows)
            return lambda: rope_write(BACKEND, qkv, H, K, D, norms, tables, k, v, slots)
        if self.name == "rope":
            return lambda: ops.rope(*t)
        if self.name == "embedding":
            return lambda: embedding(t[0], t[1])
        if self.name == "embedding backward":
            return lambda: _embedding_backward(t[2], t[0], len(t[1]), BF16)
        a, b, g, p, w, bias = t
        return {
            "rms_norm": lambda: ops.rms_norm(a, w, eps=EPS),
            "add rms_norm": lambda: ops.rms_norm(a, w, eps=EPS, residual=b),
            "layer_norm": lambda: ops.layer_norm(a, w, bias, eps=EPS),
            "swiglu": lambda: ops.swiglu(a, b),
            "rms_norm backward": lambda: norm_ops._rms_norm_backward(g, None, a, w, EPS, 0.0, True),
            "add rms_norm backward": lambda: norm_ops._rms_norm_backward(
                g, p, a, w, EPS, 0.0, True
            ),
            "layer_norm backward": lambda: norm_ops._layer_norm_backward(g, None, a, w, EPS, True),
            "swiglu backward": lambda: _swiglu_backward(g, a, b),
        }[self.name]

    def peer(self, *x: torch.Tensor) -> tuple[Callable[..., Any], tuple, Any]:
        """(forward function, its inputs, gradient or None: time the forward)."""
        if self.name == "norm, rope, cache":
            qkv, q_gain, k_gain, cos, sin, *rest = x
            return prepare, (qkv, q_gain.bfloat16(), k_gain.bfloat16(), cos[:, None], sin[:, None],
                             *rest), None  # fmt: skip
        if self.name == "rope":
            a, cos, sin, _ = x
            return rotate_half, (a, cos[:, None], sin[:, None]), None
        if self.name.startswith("embedding"):
            ids, table, g = x
            back = self.name.endswith("backward")
            return functional.embedding, (ids, table), g if back else None
        a, b, g, p, w, bias = x
        E = self.shape[1]
        grad: Any = g if self.name.endswith("backward") else None
        plain = self.name.removesuffix(" backward")
        if plain == "add rms_norm":

            def added(a, b, w):
                h = a + b
                return functional.rms_norm(h, (E,), w, EPS), h

            return added, (a, b, w), None if grad is None else (g, p)
        if plain == "rms_norm":
            return (lambda a, w: functional.rms_norm(a, (E,), w, EPS)), (a, w), grad
        if plain == "layer_norm":
            return (lambda a, w, c: functional.layer_norm(a, (E,), w, c, EPS)), (a, w, bias), grad
        return (lambda a, b: functional.silu(a) * b), (a, b), grad


def peer_calls(case: Case, sets: list[Any], compiled: bool) -> list[Callable[[], Any]]:
    """Calls of the peer on each set of inputs; of a backward, with the forward already run."""
    calls = []
    function = None
    for x in sets:
        own, args, grad = case.peer(*x)
        if function is None:
            function = torch.compile(own, dynamic=False) if compiled else own
        if grad is None:
            calls.append(lambda args=args, f=function: f(*args))
            continue
        leaves = [a.detach().requires_grad_() if a.is_floating_point() else a for a in args]
        outputs = function(*leaves)
        wanted = [a for a in leaves if a.requires_grad]
        calls.append(
            lambda o=outputs, w=wanted, g=grad: torch.autograd.grad(o, w, g, retain_graph=True)
        )
    return calls


def our_time(calls: list[Callable[[], Any]], repeats: int) -> float:
    """As `timing.graph_time_us`, with all results alive until the graph is done recording."""
    kept: list[Any] = []
    graph_calls = [lambda c=c: kept.append(c()) for c in calls] * repeats
    elapsed = timing.graph_time_us(graph_calls)
    kept.clear()
    return elapsed


def measure(case: Case, sets: list[Any]) -> list[Any]:
    """Our microseconds, TB/s and share of the floor."""
    with torch.no_grad():
        mine = our_time([case.mine(*x) for x in sets], times(sets))
    rate = timing.terabytes(case.moved, mine)
    return [mine, rate, rate * 1e12 / timing.copy_bytes()]


def measure_peer(case: Case, sets: list[Any], compiled: bool) -> float:
    """The peer's microseconds, in a CUDA graph too.

    A backward runs on the stream of its forward, so all is done on the stream that records.
    """
    side = torch.cuda.Stream()
    graph, kept = torch.cuda.CUDAGraph(), []
    with torch.cuda.stream(side), torch.set_grad_enabled(case.name.endswith("backward")):
        calls = peer_calls(case, sets, compiled)
        for call in calls:
            call()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            for _ in range(times(sets)):
                kept.extend([call() for call in calls])
    elapsed = timing.torch_time_us(graph.replay, 10, 2) / (times(sets) * len(calls))
    del kept
    return elapsed


def times(sets: list[Any]) -> int:
    """How often the buffers are gone through in one graph."""
    return max(1, math.ceil(6 / len(sets)))


def row(case: Case, peers: tuple[bool, ...]) -> list[Any]:
    sets = case.sets()
    found = measure(case, sets)
    for compiled in peers:
        try:
            theirs = measure_peer(case, sets, compiled)
            found += [theirs, theirs / found[0]]
        except RuntimeError as error:
            found += [str(error).splitlines()[0], ""]
        torch._dynamo.reset()
    del sets
    torch.cuda.empty_cache()
    cupy.get_default_memory_pool().free_all_blocks()
    return [case.name, "x".join(map(str, case.shape)), *found]


def cases(quick: bool) -> list[Case]:
    shapes = [(8192, 2048)] if quick else [(8192, 2048), (65536, 2048), (16384, 4096), (8192, 8192)]
    found = []
    for T, E in shapes:
        one = 2.0 * T * E
        for name, passes in (
            ("rms_norm backward", 3), ("swiglu backward", 5), ("rms_norm", 2), ("swiglu", 3),
            ("add rms_norm", 4), ("layer_norm", 2), ("layer_norm backward", 3),
            ("add rms_norm backward", 4),
        ):  # fmt: skip
            found.append(Case(name, (T, E), one * passes))
    for T, H, D in ((8192, 32, 64), (8192, 32, 128)):
        found.append(Case("rope", (T, H, D), 4.0 * T * H * D))
    T, H, K, D = 8192, 32, 8, 128
    found.append(Case("norm, rope, cache", (T, H, K, D), 4.0 * T * (H + 2 * K) * D))
    V = 128256
    found.append(Case("embedding", (65536, 2048, V), 4.0 * 65536 * 2048))
    found.insert(1, Case("embedding backward", (65536, 2048, V), 2.0 * (65536 + V) * 2048))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one shape of each")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--peers", choices=("none", "compile", "all"), default="all")
    options = parser.parse_args()
    peers = {"none": (), "compile": (True,), "all": (False, True)}[options.peers]
    head = ["op (bf16)", "shape", "ours us", "TB/s", "of a copy"]
    for compiled in peers:
        head += ["torch.compile us" if compiled else "torch us", "ratio"]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n", flush=True)
    print(timing.table(head, []), flush=True)
    for case in cases(options.quick):
        if options.only is None or options.only in case.name:
            line = timing.table(head, [row(case, peers)]).splitlines()[-1]
            print(line, flush=True)


if __name__ == "__main__":
    main()
