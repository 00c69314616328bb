"""The linear kernels of the numpy backend against this machine's limits.

    python benchmarks/cpu_linear.py [--forms q8_0,bf16] [--threads 2] [--rounds 5] [--skip-gemm]

Few rows of x: weights' bytes per second, as a share of the read bandwidth that all threads reach,
measured in the same rounds. Each shape is run over as many different matrices as fill 128 MB, more
than the last-level cache, as a decode step does; random data. Many rows of x: GFLOP/s beside
numpy's BLAS, alternating with it. Best and median of the rounds: where others use the machine too,
the best of both columns is what to compare.
"""

import argparse
import dataclasses
import statistics
import time

import numpy as np

from boostr import dtypes, env
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.products.linear import digits_of
from boostr.backends.numpy.runtime import jit, slabs, threads
from boostr.quant.forms import Form, scheme_form
from boostr.quant.scheme import SCHEMES

# (out, in) of SmolLM2-135M: q and o, k and v, gate and up, down, head
SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536), (49152, 576))
PRODUCTS = ((512, 1536, 576), (512, 576, 1536), (512, 576, 576), (2048, 2048, 2048))
FLOATS = {"f32": np.dtype("f4"), "bf16": dtypes.bfloat16, "f16": np.dtype("f2")}
ROTATION = 128 << 20
DEPTH = 576  # of a panel; what the backend uses


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


class Weight:
    """Random planes of a form whose floats are ordinary numbers."""

    def __init__(self, rng, name: str, N: int, K: int):
        if name in FLOATS:
            self.form = Form(name)
            parts = {"codes": rng.standard_normal((N, K), np.float32).astype(FLOATS[name])}
        else:
            self.form = dataclasses.replace(scheme_form(SCHEMES[name]), rounds_input=False)
            parts = {n: _random(rng, (N, p.columns(K)), p.dtype)
                     for n, p in SCHEMES[name].parts.items()}  # fmt: skip
        self.planes = {part: slabs.take(x.shape, x.dtype) for part, x in parts.items()}
        for part, x in parts.items():
            self.planes[part][:] = x
        self.nbytes = sum(x.nbytes for x in parts.values())


def _random(rng, shape, dtype):
    if dtype.kind in "fV":  # V: bfloat16
        return (rng.random(shape, np.float32) * 0.01).astype(dtype)
    return rng.integers(0, 256, shape, np.uint8).view(dtype)


class Operands:
    """x, y and scratch that all products of a run share."""

    def __init__(self, rng, M: int, N: int, K: int):
        self.x = rng.standard_normal((M, K), np.float32)
        self.y = np.zeros((M, N), np.float32)
        rows = jit.target().tile[0]
        self.scratch = threads.aligned((-(-M // rows) * rows * (K + 32) * 4 + (K + 64) * 64) // 8)

    def params(self, weight: Weight) -> np.ndarray:
        p = np.zeros(layout.LINEAR_PARAMS, np.int64)
        M, K = self.x.shape
        for name, plane in weight.planes.items():
            at = layout.PLANES[name]
            p[at : at + 2] = plane.ctypes.data, plane.strides[0]
        p[[layout.X, layout.LDX]] = self.x.ctypes.data, K
        p[[layout.Y, layout.LDY, layout.M]] = self.y.ctypes.data, self.y.shape[1], M
        p[[layout.N, layout.K, layout.PACKED]] = self.y.shape[1], K, self.scratch.ctypes.data
        return p


def few_rows(calls: threads.Calls, name: str, form: Form, p: np.ndarray) -> None:
    """Adds the calls of one product with up to 8 rows of x."""
    M, N, K = (int(p[i]) for i in (layout.M, layout.N, layout.K))
    columns = next(c for c in (1, 2, 4, 8) if c >= M)
    digits = 0 if name == "w8a8" else digits_of(form, columns, K)
    if digits:
        step = jit.target().lanes // 4
        items = M * -(-K // 32 // step) * step
        calls.add(jit.kernel("gemv_digits.split", digits=digits), p, items, 8)
        product = jit.kernel("gemv_digits.gemv", form=form, columns=columns, digits=digits)
        calls.add(product, p, N, 16)
    elif name == "w8a8":
        calls.add(jit.kernel("int8.quantize_rows"), p, M, 1)
        calls.add(jit.kernel("int8.gemv", columns=columns), p, N, 16)
    else:
        calls.add(jit.kernel("linear.gemv", form=form, columns=columns), p, N, 16)


def many_rows(calls: threads.Calls, name: str, form: Form, p: np.ndarray) -> None:
    """Adds the calls of one product with many rows of x."""
    rows, vectors = jit.target().tile
    tiles = -(-int(p[layout.M]) // rows)
    panels = -(-int(p[layout.N]) // (vectors * jit.target().lanes))
    p[layout.TILES_PER_ITEM] = tiles
    if name == "w8a8":
        pack, product = jit.kernel("int8_gemm.pack"), jit.kernel("int8_gemm.product", depth=2048)
    else:
        pack, product = jit.kernel("gemm.pack"), jit.kernel("gemm.product", form=form, depth=DEPTH)
    calls.add(pack, p, tiles, 1)
    calls.add(product, p, panels, 1)


def timed(pool: threads.Pool, records: np.ndarray) -> float:
    started = time.perf_counter()
    pool.run(records)
    return time.perf_counter() - started


def decode(pool, forms, M: int, rounds: int) -> None:
    """The table of GB/s for M rows of x."""
    rng = np.random.default_rng(0)
    plain, sink = np.ones(ROTATION // 4, np.float32), np.zeros(ROTATION // 4096, np.float32)
    reader = threads.Calls()
    read_params = np.array([plain.ctypes.data, sink.ctypes.data], np.int64)
    reader.add(bytes_read(), read_params, ROTATION // 4096, 16)
    reading = reader.freeze().records
    print(f"\n{M} row(s) of x, {pool.threads} threads; GB/s of weights, best (median)")
    print(f"{'weights':8} {'shape':>12} {'read':>14} {'kernel':>14} {'share':>6}")
    for form in forms:
        for N, K in SHAPES:
            weights = [Weight(rng, form, N, K)]
            size, operands = weights[0].nbytes, Operands(rng, M, N, K)
            copies = max(1, ROTATION // size)
            weights += [Weight(rng, form, N, K) for _ in range(copies - 1)]
            calls = threads.Calls()
            for weight in weights:
                few_rows(calls, form, weight.form, operands.params(weight))
            records = calls.freeze().records
            read, run = [], []
            for _ in range(rounds + 1):
                read.append(ROTATION / timed(pool, reading) / 1e9)
                run.append(size * copies / timed(pool, records) / 1e9)
            shape, top = f"{N}x{K}", (max(read), max(run))
            print(
                f"{form:8} {shape:>12} {top[0]:6.1f} ({statistics.median(read):5.1f}) "
                f"{top[1]:6.1f} ({statistics.median(run):5.1f}) {top[1] / top[0]:6.0%}",
                flush=True,
            )


def products(pool, forms, rounds: int) -> None:
    """The table of GFLOP/s beside numpy's BLAS."""
    rng = np.random.default_rng(1)
    print(f"\nmany rows, {pool.threads} threads; GFLOP/s, best (median)")
    print(f"{'weights':8} {'M x N x K':>16} {'numpy f32':>14} {'kernel':>14} {'ratio':>6}")
    for M, N, K in PRODUCTS:
        operands = Operands(rng, M, N, K)
        plain = rng.standard_normal((N, K), np.float32)
        for form in forms:
            weight = Weight(rng, form, N, K)
            calls = threads.Calls()
            many_rows(calls, form, weight.form, operands.params(weight))
            records = calls.freeze().records
            blas, run = [], []
            for _ in range(4 * rounds + 1):
                started = time.perf_counter()
                np.matmul(operands.x, plain.T, out=operands.y)
                blas.append(2e-9 * M * N * K / (time.perf_counter() - started))
                time.sleep(0.002)  # BLAS's threads spin for a while after their work
                run.append(2e-9 * M * N * K / timed(pool, records))
            shape, best = f"{M}x{N}x{K}", (max(blas), max(run))
            print(
                f"{form:8} {shape:>16} {best[0]:6.0f} ({statistics.median(blas):5.0f}) "
                f"{best[1]:6.0f} ({statistics.median(run):5.0f}) {best[1] / best[0]:6.0%}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--forms", default=",".join((*FLOATS, *SCHEMES)))
    parser.add_argument("--threads", type=int, default=env.num_threads())
    parser.add_argument("--rows", default="1,4", help="rows of x of the first table, up to 8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-gemm", action="store_true")
    options = parser.parse_args()
    forms = options.forms.split(",")
    if unknown := [form for form in forms if form not in (*FLOATS, *SCHEMES)]:
        parser.error(f"unknown weights {unknown}; known: {', '.join((*FLOATS, *SCHEMES))}")
    pool = threads.Pool(options.threads)
    for M in (int(text) for text in options.rows.split(",")):
        decode(pool, forms, M, options.rounds)
    if not options.skip_gemm:
        if not jit.target().int8_dot:  # there the backend takes the kernel of int8
            forms = [form for form in forms if form != "w8a8"]
        products(pool, forms, options.rounds)
    if jit.compiled:
        print(f"\ncompiled {jit.compiled} kernels in {jit.compile_seconds:.1f} s")


if __name__ == "__main__":
    main()
