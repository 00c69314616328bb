"""Time of each CPU kernel on SmolLM2-135M's shapes, beside its composite and the machine's limits.

    python benchmarks/cpu_kernels.py [name ...]

Each line: best and median time of one call replayed from a program, over enough copies of its
inputs that the inner caches do not flatter it (16), GB/s or GFLOP/s, that as a share of the read
bandwidth or sgemm speed measured between the runs of the same kernel (small inputs live in outer
caches and exceed it), and how many times as long the composite takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from boostr import Tensor, backends, capture, ops
from boostr.backends import Backend
from boostr.ops import core

E, H, K, D, F, V = 576, 9, 3, 64, 1536, 49152
LAYERS = 16  # copies of the inputs, taken in turn


@dataclass(frozen=True)
class Case:
    """One kernel: `make(rng)` draws its arguments, `call(*tensors)` runs it."""

    name: str
    make: Callable[[np.random.Generator], tuple[Any, ...]]
    call: Callable[..., Any]
    nbytes: int = 0
    flops: int = 0


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def _int(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def _decode(kv_len: int, batch: int = 1) -> Case:
    def make(rng):
        caches = [_normal(rng, batch, kv_len, K, D) for _ in range(2)]
        table = np.arange(batch, dtype=np.int32).reshape(-1, 1)
        lens = np.full(batch, kv_len, np.int32)
        return (
            _normal(rng, batch, H, D),
            *caches,
            np.arange(batch + 1, dtype=np.int32),
            table,
            lens,
        )

    return Case(f"paged decode B={batch} kv={kv_len}", make, ops.paged_attention,
                nbytes=batch * kv_len * K * D * 8)  # fmt: skip


def _prefill(S: int) -> Case:
    def make(rng):
        q, k, v = (_normal(rng, S, heads, D) for heads in (H, K, K))
        return q, k, v, _int(0, S), _int(0, S)

    return Case(
        f"attention S={S} causal", make, lambda *a: ops.varlen_attention(*a, causal=True),
        flops=2 * H * D * S * S,
    )  # fmt: skip


def _rows(T: int) -> list[Case]:
    """The elementwise and row kernels of T tokens."""

    def rope(rng):
        tables = _normal(rng, 4096, D // 2), _normal(rng, 4096, D // 2)
        return _normal(rng, T, H, D), *tables, np.arange(T, dtype=np.int32)

    def write(rng):
        new = [_normal(rng, T, K, D) for _ in range(2)]
        caches = [np.zeros((1, 4096, K, D), np.float32) for _ in range(2)]
        return (*new, *caches, np.arange(T, dtype=np.int32))

    return [
        Case(f"rms_norm T={T}", lambda rng: (_normal(rng, T, E), _normal(rng, E)), ops.rms_norm,
             nbytes=T * E * 8),
        Case(f"add_rms_norm T={T}",
             lambda rng: (_normal(rng, T, E), _normal(rng, E), _normal(rng, T, E)),
             lambda x, w, r: ops.rms_norm(x, w, residual=r), nbytes=T * E * 16),
        Case(f"rope T={T}", rope, ops.rope, nbytes=T * H * D * 8),
        Case(f"swiglu T={T}", lambda rng: (_normal(rng, T, F), _normal(rng, T, F)), ops.swiglu,
             nbytes=T * F * 12),
        Case(f"gelu T={T}", lambda rng: (_normal(rng, T, F),), ops.gelu, nbytes=T * F * 8),
        Case(f"kv_write T={T}", write, ops.kv_write, nbytes=T * K * D * 16),
        Case(f"embedding T={T}", lambda rng: (rng.integers(0, V, T, np.int32), _normal(rng, V, E)),
             ops.embedding, nbytes=T * E * 8),
    ]  # fmt: skip


def _sampling(name: str, top_k: int, top_p: float) -> Case:
    def make(rng):
        options = (
            np.full(1, 0.8, np.float32),
            _int(top_k),
            np.full(1, top_p, np.float32),
            np.zeros(1, np.float32),
        )
        return _normal(rng, 1, V) * 3, *options, np.array([[1, 2]], np.uint32), _int(3)

    return Case(f"sample {name} V={V}", make, ops.sample, nbytes=V * 4)


def cases() -> list[Case]:
    def logits(rng):
        return (_normal(rng, 1, V),)

    return [
        *_rows(1), *_rows(512), _decode(128), _decode(2048), _decode(512, 8), _prefill(128),
        _prefill(512), _prefill(2048),
        Case(f"argmax V={V}", logits, lambda x: core.argmax(x, -1), nbytes=V * 4),
        Case(f"softmax V={V}", logits, ops.softmax, nbytes=V * 8),
        _sampling("plain", 0, 1.0), _sampling("k=50 p=0.95", 50, 0.95), _sampling("p=0.9", 0, 0.9),
    ]  # fmt: skip


class Limits:
    """Read bandwidth and sgemm speed of this moment: machines are shared."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._long = _normal(rng, 1 << 24)
        self._a, self._b = _normal(rng, 512, E), _normal(rng, E, F)
        self.gbs = self.gflops = 0.0

    def measure(self) -> None:
        seconds = _time(lambda: self._long.max())
        self.gbs = max(self.gbs, self._long.nbytes / seconds / 1e9)
        seconds = _time(lambda: self._a @ self._b)
        self.gflops = max(self.gflops, 2 * 512 * E * F / seconds / 1e9)


def _time(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _arguments(case: Case, backend: Backend, rng: np.random.Generator) -> list[list[Tensor]]:
    copies = 1 if "embedding" in case.name or case.flops else LAYERS
    return [[Tensor(x, backend=backend) for x in case.make(rng)] for _ in range(copies)]


def measure(case: Case, backend: Backend, rng: np.random.Generator, limits: Limits) -> str:
    """One line of the table."""
    layers = _arguments(case, backend, rng)
    program = capture(lambda: [case.call(*args) for args in layers], backend)
    best, times = np.inf, []
    limits.gbs = limits.gflops = 0.0
    deadline = time.perf_counter() + 1.5
    while time.perf_counter() < deadline or len(times) < 5:
        times.append(_time(program.run) / len(layers))
        best = min(best, times[-1])
        if len(times) % 8 == 1:
            limits.measure()
    if case.flops:
        speed = f"{case.flops / best / 1e9:7.1f} GFLOP/s"
        share = case.flops / best / 1e9 / limits.gflops
    else:
        speed = f"{case.nbytes / best / 1e9:7.1f} GB/s   "
        share = case.nbytes / best / 1e9 / limits.gbs
    kernel, backend._kernels = backend._kernels, _NoKernels()  # type: ignore[attr-defined]
    try:
        composite = min(_time(lambda: case.call(*layers[0])) for _ in range(2))
    finally:
        backend._kernels = kernel  # type: ignore[attr-defined]
    start = f"{case.name:28} {best * 1e6:8.1f} {np.median(times) * 1e6:8.1f} {speed}"
    return f"{start} {share:6.0%} {composite / best:8.1f}x"


class _NoKernels(dict):
    """Stands for a backend's table of kernels while composites are timed."""

    def __contains__(self, op: object) -> bool:
        return True

    def __getitem__(self, op: str) -> str:
        return "the benchmark times the composite"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only cases whose name has one of these")
    wanted = parser.parse_args().names
    rng = np.random.default_rng(0)
    backend, limits = backends.get("numpy"), Limits(rng)
    print(f"{'kernel':28} {'best us':>8} {'median':>8} {'speed':>15} {'share':>6} {'composite':>9}")
    for case in cases():
        if not wanted or any(name in case.name for name in wanted):
            print(measure(case, backend, rng, limits), flush=True)


if __name__ == "__main__":
    main()
