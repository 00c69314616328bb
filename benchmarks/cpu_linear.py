"""The linear kernels of the numpy backend against this machine's limits.

    python benchmarks/cpu_linear.py [--tables bytes,rows,gemm] [--forms q8_0,bf16] [--threads 2]
        [--rounds 5] [--shapes 8192x2048,...] [--rotation 128]

bytes: weights' bytes per second with few rows of x, as a share of the read bandwidth that all
threads reach, measured in the same rounds. rows: the time of more rows of x against one row's, all
in turns. In both each shape is run over as many different matrices as fill 128 MB (--rotation),
more than the last-level cache, as a decode step does; random data. gemm: GFLOP/s with many rows
beside numpy's BLAS, alternating with it. Best (and median) of the rounds: where others use the
machine too, the best of both columns is what to compare. One thread is timed by its own clock,
which stands still while others have the core.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from boostr import backends, capture, dtypes, env, strict
from boostr.backends.numpy.runtime import jit, threads
from boostr.ops.linear import linear
from boostr.quant.scheme import SCHEMES, QuantizedTensor
from boostr.tensor import Tensor

# (out, in) of SmolLM2-135M: q and o, k and v, gate and up, down, head
SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536), (49152, 576))
WIDE = ((1536, 576), (8192, 2048), (49152, 576))  # of the table of rows
PRODUCTS = ((512, 1536, 576), (512, 576, 1536), (512, 576, 576), (2048, 2048, 2048))
READ = 128 << 20  # bytes of the read that the first table compares with
Shapes = tuple[tuple[int, int], ...]
FLOATS = {"f32": np.dtype("f4"), "bf16": dtypes.bfloat16, "f16": np.dtype("f2")}


def bytes_read():
    """A kernel that only reads: item i is 4096 bytes at params[0] + 4096 i."""
    from boostr.backends.numpy.kernels.runtime.memory import f32, load
    from boostr.backends.numpy.kernels.runtime.simd import LANES, add, fill
    from boostr.backends.numpy.kernels.runtime.vmath import reduce_add

    def kernel(params, start, stop):
        total = fill(4, 0.0)
        for item in range(start, stop):
            p = f32(params[0]) + item * 1024
            for i in range(0, 1024, 4 * LANES):
                four = (p, p + LANES, p + 2 * LANES, p + 3 * LANES)
                total = add(total, load(four, i))
        sums = reduce_add(total)
        f32(params[1])[start] = sums[0] + sums[1] + sums[2] + sums[3]

    return jit.from_function(kernel)


def weight(rng: np.random.Generator, form: str, N: int, K: int) -> Tensor | QuantizedTensor:
    """Random elements of a form whose floats are ordinary numbers."""
    if form in FLOATS:
        return _random(rng, (N, K), FLOATS[form])
    scheme = SCHEMES[form]
    parts = {n: _random(rng, (N, p.columns(K)), p.dtype) for n, p in scheme.parts.items()}
    return QuantizedTensor(scheme, (N, K), parts)


def _random(rng: np.random.Generator, shape: tuple[int, int], dtype: np.dtype) -> Tensor:
    backend = backends.get("numpy")
    made = backend.room(shape, dtype)  # type: ignore[attr-defined]
    if dtype.kind in "fV":  # V: bfloat16
        for row in made:
            row[:] = rng.random(shape[1], np.float32) * 0.01
    else:
        made.view(np.uint8)[:] = rng.integers(0, 256, made.view(np.uint8).shape, np.uint8)
    return Tensor.wrap(made, backend)


def nbytes(weight: Tensor | QuantizedTensor) -> int:
    parts = [weight] if isinstance(weight, Tensor) else weight.parts.values()
    return sum(part.data.nbytes for part in parts)


def rotation(
    rng: np.random.Generator, form: str, shape: tuple[int, int], size: int
) -> list[Tensor | QuantizedTensor]:
    """Matrices that fill `size` bytes."""
    first = weight(rng, form, *shape)
    return [first] + [weight(rng, form, *shape) for _ in range(size // nbytes(first) - 1)]


def products(rng: np.random.Generator, rows: int, weights: list) -> Callable[[], object]:
    """Replays the products of one x [rows, K] with each of the weights."""
    x = Tensor(rng.standard_normal((rows, weights[0].shape[1]), np.float32), backend="numpy")
    return capture(lambda: [linear(x, w) for w in weights][-1], "numpy").run


def timed(run: Callable[[], object]) -> float:
    clock = time.thread_time if threads.pool().threads == 1 else time.perf_counter
    started = clock()
    run()
    return clock() - started


def fits(form: str, K: int) -> bool:
    return form in FLOATS or K % SCHEMES[form].multiple == 0


def read_shares(
    forms: list[str], shapes: Shapes, size: int, rows: tuple[int, ...], rounds: int
) -> None:
    """The table of GB/s with few rows of x."""
    rng = np.random.default_rng(0)
    plain, sink = np.ones(READ // 4, np.float32), np.zeros(READ // 4096, np.float32)
    reader = threads.Calls()
    read_params = np.array([plain.ctypes.data, sink.ctypes.data], np.int64)
    reader.add(bytes_read(), read_params, READ // 4096, 16)
    reading = reader.freeze().records
    print(f"\n{threads.pool().threads} threads; GB/s of weights, best (median)")
    print(f"{'weights':10} {'shape':>12} {'rows':>5} {'read':>14} {'kernel':>14} {'share':>6}")
    for form, (N, K) in ((f, s) for f in forms for s in shapes if fits(f, s[1])):
        weights = rotation(rng, form, (N, K), size)
        gigabytes = sum(map(nbytes, weights)) / 1e9
        for M in rows:
            run, read, ran = products(rng, M, weights), [], []
            for _ in range(rounds + 1):
                read.append(READ / 1e9 / timed(lambda: threads.pool().run(reading)))
                ran.append(gigabytes / timed(run))
            print(f"{form:10} {f'{N}x{K}':>12} {M:5} {beside(read, ran)}", flush=True)


def row_costs(
    forms: list[str], shapes: Shapes, size: int, rows: tuple[int, ...], rounds: int
) -> None:
    """The table of the time of more rows against one."""
    rng = np.random.default_rng(2)
    print(
        f"\n{threads.pool().threads} threads; µs of one row, and how many times as long more take"
    )
    print(f"{'weights':10} {'shape':>12} {'1':>8} " + " ".join(f"{M:>6}" for M in rows))
    for form, (N, K) in ((f, s) for f in forms for s in shapes if fits(f, s[1])):
        weights = rotation(rng, form, (N, K), size)
        runs = [products(rng, M, weights) for M in (1, *rows)]
        rounds_ = [[timed(run) for run in runs] for _ in range(rounds + 1)]
        one, *more = (min(times) for times in zip(*rounds_, strict=True))
        ratios = " ".join(f"{time / one:6.2f}" for time in more)
        print(f"{form:10} {f'{N}x{K}':>12} {one / len(weights) * 1e6:8.1f} {ratios}", flush=True)


def beside_blas(forms: list[str], rounds: int) -> None:
    """The table of GFLOP/s beside numpy's BLAS."""
    rng = np.random.default_rng(1)
    print(f"\nmany rows, {threads.pool().threads} threads; GFLOP/s, best (median)")
    print(f"{'weights':10} {'M x N x K':>16} {'numpy f32':>14} {'kernel':>14} {'ratio':>6}")
    for M, N, K in PRODUCTS:
        x, plain = rng.standard_normal((M, K), np.float32), rng.standard_normal((N, K), np.float32)
        out = np.zeros((M, N), np.float32)
        for form in (form for form in forms if fits(form, K)):
            run, blas, ran = products(rng, M, [weight(rng, form, N, K)]), [], []
            for _ in range(4 * rounds + 1):
                started = time.perf_counter()
                np.matmul(x, plain.T, out=out)
                blas.append(2e-9 * M * N * K / (time.perf_counter() - started))
                time.sleep(0.002)  # BLAS's threads spin for a while after their work
                ran.append(2e-9 * M * N * K / timed(run))
            print(f"{form:10} {f'{M}x{N}x{K}':>16} {beside(blas, ran)}", flush=True)


def beside(peer: list[float], ours: list[float]) -> str:
    """Best and median of both, and the ratio of the best."""
    both = "  ".join(f"{max(x):6.1f} ({statistics.median(x):5.1f})" for x in (peer, ours))
    return f"{both} {max(ours) / max(peer):6.0%}"


def matrices(text: str) -> Shapes:
    return tuple((int(N), int(K)) for N, K in (part.split("x") for part in text.split(",")))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", default="bytes,rows,gemm")
    parser.add_argument("--forms", default=",".join((*FLOATS, *SCHEMES)))
    parser.add_argument("--threads", type=int, default=env.num_threads())
    parser.add_argument("--few", type=numbers, default=(1, 4), help="rows of the table of bytes")
    parser.add_argument("--rows", type=numbers, default=(4, 8, 9, 12, 16, 24, 32))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", type=matrices, help="NxK,... of weights in place of SmolLM2's")
    parser.add_argument("--rotation", type=int, default=128, help="MB of weights that take turns")
    options = parser.parse_args()
    forms = options.forms.split(",")
    if unknown := [form for form in forms if form not in (*FLOATS, *SCHEMES)]:
        parser.error(f"unknown weights {unknown}; known: {', '.join((*FLOATS, *SCHEMES))}")
    os.environ["BOOSTR_NUM_THREADS"] = str(options.threads)
    size = options.rotation << 20
    with strict():
        if "bytes" in options.tables:
            shapes = options.shapes or SHAPES
            read_shares(forms, shapes, size, options.few, options.rounds)
        if "rows" in options.tables:
            row_costs(forms, options.shapes or WIDE, size, options.rows, options.rounds)
        if "gemm" in options.tables:
            beside_blas(forms, options.rounds)
    if jit.compiled:
        print(f"\ncompiled {jit.compiled} kernels in {jit.compile_seconds:.1f} s")


if __name__ == "__main__":
    main()
