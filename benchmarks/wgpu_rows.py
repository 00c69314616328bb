"""Kernels that go over rows on a WebGPU device, beside the time that their bytes need.

    BOOSTR_BACKEND=wgpu python benchmarks/wgpu_rows.py [--quick] [--only NAME] [--size N]

bf16 unless said. "TB/s" counts the bytes that an operation has to move at least; the floor is a
copy on the same GPU. Calls are recorded as a program on buffers in turn and timed by the GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import wgpu_timing as timing

from boostr import Tensor, dtypes, ops
from boostr.ops import norm as norm_ops
from boostr.ops.activation import _swiglu_backward
from boostr.ops.cache import kv_write
from boostr.ops.embedding import _embedding_backward, embedding
from boostr.ops.loss import _backward as loss_backward
from boostr.ops.loss import _cross_entropy
from boostr.ops.optim import adamw, global_norm
from boostr.ops.rope import _rope_backward

EPS = 1e-6
_BLOCK = np.random.default_rng(0).standard_normal((1 << 20) + 37).astype(np.float32)


def draw(*shape: int, dtype: str = "bfloat16") -> Tensor:
    """Random numbers, the same ones again and again in large arrays."""
    return Tensor(_drawn(shape, dtype), backend=timing.backend())


@lru_cache(4)
def _drawn(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.resize(_BLOCK.astype(dtypes.parse(dtype)), shape)


def integers(high: int, *shape: int) -> Tensor:
    array = np.random.default_rng(1).integers(0, high, shape).astype(np.int32)
    return Tensor(array, backend=timing.backend())


@dataclass
class Case:
    """One row of the table: the inputs, the call on them, and the bytes that it moves."""

    name: str
    shape: tuple[int, ...]
    moved: float
    inputs: Callable[[], tuple[Any, ...]]
    call: Callable[..., Any]

    def row(self, most: int = 4) -> list[Any]:
        large = self.moved > 8 * timing.L2_BYTES
        count = 1 if large else min(most, timing.rotation(self.moved))
        sets = [self.inputs() for _ in range(count)]
        spent = timing.time_us([lambda x=x: self.call(*x) for x in sets])
        rate = timing.terabytes(self.moved, spent)
        share = rate * 1e12 / timing.copy_bytes()
        return [self.name, "x".join(map(str, self.shape)), spent, rate, share]


def norms(T: int, E: int) -> Iterator[Case]:
    one = 2.0 * T * E

    def rows(count: int) -> Callable[[], tuple[Any, ...]]:
        return lambda: (draw(E), draw(E), *(draw(T, E) for _ in range(count)))

    for name, passes, count, call in (
        ("rms_norm", 2, 1, lambda w, b, x: ops.rms_norm(x, w, eps=EPS)),
        ("add rms_norm", 4, 2, lambda w, b, x, r: ops.rms_norm(x, w, eps=EPS, residual=r)),
        ("layer_norm", 2, 1, lambda w, b, x: ops.layer_norm(x, w, b, eps=EPS)),
        ("rms_norm backward", 3, 2,
         lambda w, b, x, g: norm_ops._rms_norm_backward(g, None, x, w, EPS, 0.0, True)),
        ("layer_norm backward", 3, 2,
         lambda w, b, x, g: norm_ops._layer_norm_backward(g, None, x, w, EPS, True)),
        ("swiglu", 3, 2, lambda w, b, x, u: ops.swiglu(x, u)),
        ("geglu (erf)", 3, 2, lambda w, b, x, u: ops.geglu(x, u)),
        ("swiglu backward", 5, 3, lambda w, b, x, u, g: _swiglu_backward(g, x, u)),
        ("softmax", 2, 1, lambda w, b, x: ops.softmax(x)),
    ):  # fmt: skip
        yield Case(name, (T, E), one * passes, rows(count), call)


def tables(T: int, V: int) -> Iterator[Case]:
    H, D, E = 32, 128, 2048
    moved = 4.0 * T * H * D

    def turned() -> tuple[Any, ...]:
        angles = [draw(T, D // 2, dtype="float32") for _ in range(2)]
        return (
            draw(T, H, D),
            *angles,
            Tensor(np.arange(T, dtype=np.int32), backend=timing.backend()),
        )

    for layout in ("split-half", "interleaved"):
        yield Case(f"rope {layout}", (T, H, D), moved, turned,
                   lambda *a, layout=layout: ops.rope(*a, layout=layout))  # fmt: skip
    yield Case("rope backward", (T, H, D), moved, turned,
               lambda *a: _rope_backward(*a, "split-half"))  # fmt: skip
    yield Case("embedding", (T, E, V), 4.0 * T * E, lambda: (integers(V, T), draw(V, E)),
               lambda ids, w: embedding(ids, w))  # fmt: skip
    yield Case("embedding backward", (T, E, V), 2.0 * (T + V) * E,
               lambda: (draw(T, E), integers(V, T)),
               lambda g, ids: _embedding_backward(g, ids, V, dtypes.bfloat16))  # fmt: skip
    K = 8
    yield Case(
        "kv_write", (T, K, D), 8.0 * T * K * D,
        lambda: (draw(T, K, D), draw(T, K, D), *(draw(T // 16, 16, K, D) for _ in range(2)),
                 Tensor(np.random.default_rng(2).permutation(T).astype(np.int32),
                        backend=timing.backend())),
        kv_write,
    )  # fmt: skip


def losses(T: int, V: int) -> Iterator[Case]:
    moved = 2.0 * T * V
    for name, dtype, item in (
        ("cross_entropy", "bfloat16", 2),
        ("cross_entropy f32", "float32", 4),
    ):
        yield Case(name, (T, V), item * T * V,
                   lambda dtype=dtype: (draw(T, V, dtype=dtype), integers(V, T)),
                   lambda x, t: _cross_entropy(x, t, -100, 0.0, "mean"))  # fmt: skip
    yield Case("cross_entropy", (16, V), 32.0 * V, lambda: (draw(16, V), integers(V, 16)),
               lambda x, t: _cross_entropy(x, t, -100, 0.0, "mean"))  # fmt: skip

    def prepared() -> tuple[Any, ...]:
        x, t = draw(T, V), integers(V, T)
        return (Tensor(np.float32(1), backend=timing.backend()), x, t,
                *_cross_entropy(x, t, -100, 0.0, "mean")[1:])  # fmt: skip

    yield Case(
        "cross_entropy backward", (T, V), 2 * moved, prepared,
        lambda g, x, t, lse, n: loss_backward(g, lse, n, x, t, -100, 0.0, "mean"),
    )  # fmt: skip
    yield Case("softmax f32", (16, V), 128.0 * V, lambda: (draw(16, V, dtype="float32"),),
               lambda x: ops.softmax(x))  # fmt: skip


def steps(n: int) -> Iterator[Case]:
    def state(dtype: str) -> tuple[Any, ...]:
        wide = [draw(n, dtype="float32") * 0 for _ in range(3)]
        return draw(n, dtype=dtype), draw(n, dtype=dtype), *wide

    yield Case("adamw f32", (n,), 28.0 * n, lambda: state("float32"),
               lambda p, g, m, v, w: adamw(p, g, m, v, 3, lr=1e-3))  # fmt: skip
    yield Case("adamw bf16, master", (n,), 28.0 * n, lambda: state("bfloat16"),
               lambda p, g, m, v, w: adamw(p, g, m, v, 3, lr=1e-3, master=w))  # fmt: skip
    yield Case("global_norm", (n,), 2.0 * n, lambda: (draw(n),), lambda x: global_norm([x]))


def cases(quick: bool, size: int) -> Iterator[Case]:
    for T, E in ((size, 2048),) if quick else ((size, 2048), (size // 2, 4096), (size // 4, 8192)):
        yield from norms(T, E)
    if not quick:
        yield from list(norms(64, 2048))[:2]
        yield from list(norms(size * 16, 128))[:2]
    yield from tables(size, 8 * size)
    yield from losses(size // 16, 8 * size)
    yield from steps(2048 * size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one shape of each")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--size", type=int, default=16384, help="rows; 64 for a software adapter")
    options = parser.parse_args()
    head = ["op (bf16)", "shape", "us", "TB/s", "of a copy"]
    print(f"{timing.backend().caps.name}\n\n{timing.table(head, [])}", flush=True)
    for case in cases(options.quick, options.size):
        if options.only is None or options.only in case.name:
            print(timing.table(head, [case.row()]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
