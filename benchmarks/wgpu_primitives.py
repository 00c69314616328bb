"""Primitives of the wgpu backend beside the bandwidth of a plain copy.

    python benchmarks/wgpu_primitives.py

Bytes are those that must be read and written once; the floor is a copy's speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from wgpu_timing import backend, copy_bytes, rotation, table, terabytes, time_us

from boostr import Tensor
from boostr.ops import core

N = 1 << 26  # elements of the large arrays
Case = tuple[str, float, list[Callable[[], Any]]]


def arrays(shape: tuple[int, ...], dtype: str, copies: int) -> list[Tensor]:
    """Different random numbers in memory of their own."""
    rng = np.random.default_rng(0)
    first = Tensor(rng.random(shape, np.float32) * 100, backend=backend())
    return [(first + i).to(dtype) if dtype != "float32" else first + i for i in range(copies)]


def each(xs: list[Tensor], fn: Callable[[Tensor], Any]) -> list[Callable[[], Any]]:
    return [lambda x=x: fn(x) for x in xs]


def elementwise() -> Iterator[Case]:
    for dtype in ("float32", "bfloat16", "int8"):
        xs = arrays((N // 2048, 2048), dtype, 2)
        b = xs[0].nbytes
        yield f"copy {dtype}", 2 * b, each(xs, lambda x: backend().copy(x.data))
        yield f"x + x' {dtype}", 3 * b, each(xs, lambda x, y=xs[0]: x + y)
        if dtype == "int8":
            continue
        yield f"x * 2 {dtype}", 2 * b, each(xs, lambda x: x * 2)
        yield f"exp(x) {dtype}", 2 * b, each(xs, core.exp)
        yield f"erf(x) {dtype}", 2 * b, each(xs, core.erf)
        row = xs[0][0].contiguous()
        yield f"x * row {dtype}", 2 * b, each(xs, lambda x, r=row: x * r)
        column = xs[0][:, :1].contiguous()
        yield f"x * column {dtype}", 2 * b, each(xs, lambda x, c=column: x * c)
        yield (
            f"where(x > 1, x, 0) {dtype}",
            3.5 * b if b == 4 * N else 4 * b,
            each(xs, lambda x: core.where(x > 1, x, 0)),
        )
        other = "bfloat16" if dtype == "float32" else "float32"
        yield f"{dtype} to {other}", 6 * N, each(xs, lambda x, d=other: x.to(d))
        yield f"transposed copy {dtype}", 2 * b, each(xs, lambda x: x.T.contiguous())
        heads = [x.reshape(-1, 16, 128) for x in xs]
        yield (
            f"[T, H, D] to [H, T, D] {dtype}",
            2 * b,
            each(heads, lambda x: x.permute(1, 0, 2).contiguous()),
        )
        yield f"x[:, 1:] copied {dtype}", 2 * b, each(xs, lambda x: x[:, 1:].contiguous())
    yield "full float32", 4 * N, [lambda: xs[0].full_like(0)] * 2


def reductions() -> Iterator[Case]:
    for dtype in ("float32", "bfloat16"):
        for rows, columns in ((1 << 15, 2048), (256, 1 << 18), (1 << 20, 64)):
            xs = arrays((rows, columns), dtype, 2)
            b, shape = xs[0].nbytes, f"[{rows}, {columns}] {dtype}"
            yield f"sum of rows {shape}", b, each(xs, lambda x: core.sum(x, 1))
            yield f"sum of columns {shape}", b, each(xs, lambda x: core.sum(x, 0))
            if rows == 1 << 15:
                yield f"sum of all {shape}", b, each(xs, core.sum)
                yield f"max of rows {shape}", b, each(xs, lambda x: core.max(x, 1))
        xs = arrays((64, 128_256), dtype, 4)
        yield (
            f"argmax [64, 128256] {dtype}",
            xs[0].nbytes,
            each(xs, lambda x: backend().argmax(x.data, 1)),
        )
    xs = arrays((64, 128_256), "float32", 4)
    yield "cumsum [64, 128256]", 2 * xs[0].nbytes, each(xs, core.cumsum)
    xs = arrays((4096, 1024), "float32", 4)
    yield "cumsum [4096, 1024]", 2 * xs[0].nbytes, each(xs, core.cumsum)


def indexing() -> Iterator[Case]:
    rng = np.random.default_rng(1)
    where = backend()
    for shape in ((1, 1 << 18), (64, 128_256), (4096, 512)):
        xs = arrays(shape, "float32", 2)
        yield f"argsort {list(shape)}", 2 * xs[0].nbytes, each(xs, lambda x: core.argsort(x, 1))
    i = Tensor(rng.integers(0, 32_000, 8192).astype(np.int32), backend=where)
    for dtype in ("float32", "bfloat16"):
        xs = arrays((32_000, 2048), dtype, 2)
        b = 8192 * 2048 * xs[0].dtype.itemsize
        yield f"take 8192 of [32000, 2048] {dtype}", 2 * b, each(xs, lambda x: core.take(x, i))
        rows = [core.take(x, i) for x in xs]
        total = xs[0].nbytes + b
        yield (
            f"scatter_add 8192 to [32000, 2048] {dtype}",
            total,
            each(rows, lambda r: core.scatter_add((32_000, 2048), i, r)),
        )
        yield f"concat of two {dtype}", 4 * b, each(rows, lambda r: core.concat([r, r], 1))
        yield f"assign to columns {dtype}", 2 * b, each(rows, lambda r, x=xs[0]: x[:8192].assign(r))


def main() -> None:
    rows = []
    for cases in (elementwise(), reductions(), indexing()):
        for name, nbytes, calls in cases:
            calls = calls * max(1, rotation(nbytes) // len(calls))
            us = time_us(calls[:8], repeats=5)
            rate = terabytes(nbytes, us)
            rows.append((name, us, rate, rate * 1e12 / copy_bytes()))
    print(f"{backend().caps.name}\n")
    print(table(("primitive", "us", "TB/s", "of a copy"), rows))


if __name__ == "__main__":
    main()
