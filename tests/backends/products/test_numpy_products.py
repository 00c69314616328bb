"""The CPU kernels of products with few and many rows of x, for every form, on 1 to 3 threads.

References are float64 numpy on weights that `oracles.py` and `oracles_gguf.py` decode.
"""

import dataclasses
import subprocess
import sys
import threading as python_threads
from itertools import pairwise
from pathlib import Path

import numpy as np
import packed
import pytest
from draws import normal
from packed import draw, fitted
from tolerance import THREE_DIGITS, TWO_DIGITS, assert_close, rms

pytest.importorskip("numba")
from boostr import Tensor, dispatch
from boostr.backends.numpy.kernels.runtime import layout
from boostr.backends.numpy.products.linear import INTEGERS
from boostr.backends.numpy.runtime import jit, threads
from boostr.ops.quant import dequantize
from boostr.quant.forms import Form, scheme_form
from boostr.quant.scheme import SCHEMES, QuantizedTensor

ROOT = Path(__file__).parents[3]
FLOATS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
FORMS = (*FLOATS, *(form for form in packed.FORMS if form != "w8a8"))
RNG = np.random.default_rng(7)


@pytest.fixture(scope="module", params=(1, 2, 3))
def pool(request):
    found = threads.Pool(request.param)
    yield found
    found.close()


@pytest.fixture(scope="module")
def two():
    found = threads.Pool(2)
    yield found
    found.close()


def aligned(count, dtype, skip=0):
    """An array whose data begins `skip` bytes after a 64-byte border."""
    raw = np.zeros(count * np.dtype(dtype).itemsize + 128, np.uint8)
    start = -raw.ctypes.data % 64 + skip
    return raw[start : start + count * np.dtype(dtype).itemsize].view(dtype)


# ---------------------------------------------------------------- weights


def drawn(form, N, K):
    """(the `Form` for kernels, its planes, their values in float64) of random weights."""
    if form in FLOATS:
        w = normal(RNG, (N, K), FLOATS[form])
        return Form(form), {"codes": w}, w.astype(np.float64)
    w, decoded = draw("numpy", RNG, form, N, K)
    parts = {name: part.numpy() for name, part in w.parts.items()}
    return dataclasses.replace(scheme_form(w.scheme), rounds_input=False), parts, decoded


def apart(plane):
    """The plane with its rows apart, and off every border."""
    N, width = plane.shape
    room = aligned(N * (width + 3) + 1, plane.dtype, skip=plane.itemsize)
    rows = room[: N * (width + 3)].reshape(N, width + 3)[:, :width]
    rows[:] = plane
    return rows


class Case:
    """One product with its parameters; there is room between the rows of all that it reads."""

    def __init__(self, form, M, N, K, extras=True):
        self.M, self.N, self.K = M, N, K
        self.form, planes, self.decoded = drawn(form, N, K)
        self.planes = {
            name: plane if name == "scales" and not self.form.group else apart(plane)
            for name, plane in planes.items()
        }
        self.x = RNG.standard_normal((M, K + 3)).astype(np.float32)[:, :K]
        self.y = np.full((M, N + 2), 7.0, np.float32)
        self.bias = RNG.standard_normal(N).astype(np.float32) if extras else None
        self.residual = RNG.standard_normal((M, N + 1)).astype(np.float32) if extras else None
        p = self.params = np.zeros(layout.LINEAR_PARAMS, np.int64)
        p[layout.X], p[layout.LDX] = self.x.ctypes.data, K + 3
        for name, plane in self.planes.items():
            at = layout.PLANES[name]
            p[at : at + 2] = plane.ctypes.data, plane.strides[0]
        p[layout.Y], p[layout.LDY] = self.y.ctypes.data, N + 2
        p[layout.M], p[layout.N], p[layout.K] = M, N, K
        if extras:
            p[layout.BIAS], p[layout.LDR] = self.bias.ctypes.data, N + 1
            p[layout.RESIDUAL] = self.residual.ctypes.data

    def scratch(self, nbytes):
        self.room, self.behind = np.split(aligned(nbytes + 4096, np.uint8), [nbytes])
        self.params[layout.PACKED] = self.room.ctypes.data
        self.behind[:] = 90

    def stayed_inside(self):
        return not hasattr(self, "behind") or (self.behind == 90).all()

    def check(self, x=None, c=None):
        reference = (self.x if x is None else x).astype(np.float64) @ self.decoded.T
        if self.bias is not None:
            reference += self.bias + self.residual[:, : self.N]
        got = self.y[:, : self.N]
        scale = rms(self.x) * rms(self.decoded)
        # bias and residual are two more terms; one accumulator per element where c is given
        assert_close(got, reference, dtype="float32", reduce=max(self.K, 1), scale=scale + 1, c=c)
        assert (self.y[:, self.N :] == 7.0).all(), "wrote past the end of a row"
        assert self.stayed_inside(), "wrote past the scratch memory"


def few(case, grain=8, **constants):
    """The calls of the kernel for up to 8 rows of x."""
    columns = next(c for c in (1, 2, 4, 8) if c >= case.M)
    function = jit.kernel("linear.gemv", form=case.form, columns=columns, **constants)
    calls = threads.Calls()
    calls.add(function, case.params, case.N, grain)
    return calls.freeze().records


def many(case, depth, per_item):
    """The calls of the tiled product."""
    target = jit.target()
    rows, columns = target.tile_rows(case.M, digits=False), target.tile[1] * target.lanes
    tiles, panels = -(-case.M // rows), -(-case.N // columns)
    case.scratch(tiles * rows * -(-case.K // 32) * 32 * 4)
    case.params[layout.TILES_PER_ITEM] = per_item
    calls = threads.Calls()
    calls.add(jit.kernel("gemm.pack", rows=rows), case.params, tiles, 1)
    product = jit.kernel("gemm.product", form=case.form, depth=depth, rows=rows)
    calls.add(product, case.params, panels * -(-tiles // per_item), 1)
    return calls.freeze().records


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("M", "N", "K"), ((1, 37, 576), (1, 5, 7), (2, 9, 90), (3, 33, 161),
                                           (5, 8, 31), (8, 6, 100), (1, 1, 1)))  # fmt: skip
def test_few_rows(pool, form, M, N, K):
    case = Case(form, M, N, fitted(form, K))
    pool.run(few(case))
    case.check()


@pytest.mark.parametrize("form", ("f32", "bf16"))
@pytest.mark.parametrize(("M", "N", "K"), ((1, 37, 8192), (2, 5, 4100), (4, 9, 2051), (3, 4, 7)))
def test_few_long_rows(pool, form, M, N, K):
    """Four rows of w at a time, which share what they load of x."""
    case = Case(form, M, N, K)
    pool.run(few(case, rows=4))
    case.check()


# each form and number of rows is a kernel to compile; test_numpy_schemes.py has every kind of form
UNLIKE = ("f32", "int8", "q4_k", "q6_k")


@pytest.mark.parametrize("form", UNLIKE)
@pytest.mark.parametrize(("M", "N", "K"), ((9, 37, 100), (17, 5, 31), (64, 70, 161), (64, 33, 1)))
def test_many_rows(pool, form, M, N, K):
    case = Case(form, M, N, fitted(form, K))
    pool.run(many(case, depth=64, per_item=3))
    case.check(c=2 * np.sqrt(max(K, 64)))


def test_no_columns(two):
    """K = 0: the product is 0, bias and residual remain."""
    for run in (few, lambda case: many(case, 64, 1)):
        case = Case("f32", 3, 5, 0)
        two.run(run(case))
        np.testing.assert_array_equal(case.y[:, :5], case.bias + case.residual[:, :5])
        assert case.stayed_inside()


DIGITS = [
    (form, digits)
    for form in ("int8", "int8-g64", "int8-g128", "q8_0", "q4_0", "q4_1", "q6_k")
    for digits in (1, 2, 3)
    if digits > 1 or jit.target().int8_dot == "pmaddwd"
    if digits != 2 or SCHEMES[form].bits < 8 or jit.target().dots_bytes  # else 16 bits overflow
]
IN_DIGITS = {1: TWO_DIGITS, 2: TWO_DIGITS, 3: THREE_DIGITS}


def in_digits(case, digits):
    """The calls of the product in integers."""
    lanes, M, K = jit.target().lanes, case.M, case.K
    steps = -(-(K // 32) // (lanes // 4))
    case.scratch(M * steps * layout.digit_record(lanes, digits))
    calls = threads.Calls()
    split = jit.kernel("digits.split", digits=digits)
    calls.add(split, case.params, M * steps * (lanes // 4), 4)
    columns = next(c for c in (1, 2, 4, 8) if c >= M)
    function = jit.kernel("gemv_digits.gemv", form=case.form, columns=columns, digits=digits)
    calls.add(function, case.params, case.N, 8)
    return calls.freeze().records


@pytest.mark.parametrize(("form", "digits"), DIGITS)
@pytest.mark.parametrize(("M", "N", "K"), ((1, 37, 576), (3, 9, 160), (4, 5, 128), (2, 7, 1536),
                                           (1, 5, 32)))  # fmt: skip
def test_digits(pool, form, digits, M, N, K):
    case = Case(form, M, N, fitted(form, K))
    pool.run(in_digits(case, digits))
    case.check(c=IN_DIGITS[digits])


def many_in_integers(case, steps, per_item):
    """The calls of the tiled product in integers; a panel has the blocks of so many steps."""
    target = jit.target()
    family, block = INTEGERS[target.dots_bytes]
    rows, lanes = target.tile_rows(case.M, digits=True), target.lanes
    tiles, panels = -(-case.M // rows), -(-case.N // (target.digit_tile[1] * lanes))
    case.scratch(tiles * case.K // 32 * block(rows))
    case.params[layout.TILES_PER_ITEM] = per_item
    calls = threads.Calls()
    calls.add(jit.kernel(f"{family}.pack", rows=rows), case.params, tiles, 1)
    constants = {"form": case.form, "depth": 8 * lanes * steps, "rows": rows}
    product = jit.kernel(f"{family}.product", **constants)
    calls.add(product, case.params, panels * -(-tiles // per_item), 1)
    return calls.freeze().records


MANY_INTEGERS = ("int8", "int8-g64", "q8_0", "q5_0", "q4_0", "q4_1", "q2_k", "q4_k", "q6_k")
if not jit.target().int8_dot:  # the plan has no such product
    MANY_INTEGERS = ()


@pytest.mark.parametrize("form", [form for form in MANY_INTEGERS if form in UNLIKE])
@pytest.mark.parametrize(("M", "N", "K"), ((9, 37, 96), (17, 5, 32), (64, 70, 288), (3, 33, 1056)))
def test_many_rows_in_integers(pool, form, M, N, K):
    case = Case(form, M, N, fitted(form, K))
    pool.run(many_in_integers(case, steps=2, per_item=3))
    case.check(c=TWO_DIGITS)


LARGEST = [
    *((in_digits, *pair) for pair in DIGITS),
    *((lambda case, _: many_in_integers(case, 2, 1), form, 2) for form in MANY_INTEGERS),
]


@pytest.mark.parametrize(("run", "form", "digits"), LARGEST)
def test_digits_of_the_largest_numbers(two, run, form, digits):
    """Codes at both ends times x at its: what int32 must hold. And rows of x that are zero."""
    case = Case(form, 4, 16, 512, extras=False)
    low, high = (-128, 127) if SCHEMES[form].bits == 8 else (0, 255)
    case.planes["codes"][:8], case.planes["codes"][8:] = low, high
    for plane in ("high", "scales"):
        if plane in case.planes:
            case.planes[plane][::2] = -case.planes[plane][::2] if plane == "scales" else 255
    x = np.where(RNG.random(case.x.shape) < 0.5, -1, 1) * np.float32(3e4)
    case.x[:] = x
    case.x[2:] = np.abs(case.x[2:])
    case.x[3] = 0
    parts = {name: Tensor(np.ascontiguousarray(p)) for name, p in case.planes.items()}
    with dispatch.strict(False):
        case.decoded = dequantize(QuantizedTensor(SCHEMES[form], (16, 512), parts)).numpy()
    two.run(run(case, digits))
    case.check(c=IN_DIGITS[digits])
    assert not case.y[3, :16].any()


@pytest.mark.parametrize(("M", "N", "K"), ((1, 37, 576), (3, 9, 161), (8, 5, 31)))
def test_w8a8(pool, M, N, K):
    case = Case("int8", M, N, K)
    case.x[0, 0] = np.abs(case.x).max() * 2
    scale = (np.abs(case.x).max(1, keepdims=True) / 127).astype(np.float32)
    rounded = np.rint(case.x / scale).clip(-127, 127)
    case.scratch(M * (64 + -(-K // 32) * 64))
    calls = threads.Calls()
    calls.add(jit.kernel("int8.quantize_rows"), case.params, M, 1)
    columns = next(c for c in (1, 2, 4, 8) if c >= M)
    calls.add(jit.kernel("int8.gemv", columns=columns), case.params, N, 8)
    pool.run(calls.freeze().records)
    case.check(x=rounded * scale.astype(np.float64), c=2)  # the sums are exact

    case.scratch(M * K * 4)
    calls = threads.Calls()
    calls.add(jit.kernel("int8.round_rows"), case.params, M, 1)
    pool.run(calls.freeze().records)
    got = case.room.view(np.float32).reshape(M, K)
    np.testing.assert_array_equal(got, rounded.astype(np.float32) * scale)


def test_threads_agree(pool):
    """One result, whatever the number of threads and the grain."""
    case = Case("q8_0", 1, 129, 96)
    pool.run(few(case, grain=4))
    first = case.y.copy()
    alone = threads.Pool(1)
    alone.run(few(case, grain=1000))
    np.testing.assert_array_equal(case.y, first)


def test_concurrent_runs(two):
    """Python threads that run calls at the same time each get their own result."""
    cases = [Case("f32", 1, 64, 64) for _ in range(4)]
    records = [few(case) for case in cases]
    failures = []

    def repeat(case, record):
        try:
            for _ in range(200):
                case.y[:] = 7.0
                two.run(record)
                case.check()
        except AssertionError as error:
            failures.append(error)

    pairs = zip(cases, records, strict=True)
    workers = [python_threads.Thread(target=repeat, args=pair) for pair in pairs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_order_of_calls(pool):
    """A call sees all that calls before its barrier wrote: x' = x + x wT, 50 deep."""
    E = 48
    w = RNG.standard_normal((E, E)).astype(np.float32) / E
    values = [RNG.standard_normal((1, E)).astype(np.float32)]
    values += [np.zeros((1, E), np.float32) for _ in range(50)]
    function = jit.kernel("linear.gemv", form=Form("f32"), columns=1)
    calls = threads.Calls()
    for x, y in pairwise(values):
        p = np.zeros(layout.LINEAR_PARAMS, np.int64)
        p[[layout.X, layout.CODES, layout.Y]] = x.ctypes.data, w.ctypes.data, y.ctypes.data
        p[[layout.LDX, layout.CODES + 1, layout.LDY]] = E, 4 * E, E
        p[[layout.M, layout.N, layout.K]] = 1, E, E
        p[[layout.RESIDUAL, layout.LDR]] = x.ctypes.data, E
        calls.add(function, p, E, 2)
    records = calls.freeze().records
    for _ in range(20):
        pool.run(records)
    expected = values[0].astype(np.float64)
    for _ in range(50):
        expected = expected + expected @ w.T.astype(np.float64)
    np.testing.assert_allclose(values[-1], expected, rtol=1e-4, atol=1e-4)


# what is left out has its like in what is not, or in test_numpy_targets.py
OTHERS = (
    "q2_k or q3_k or q4_0 or q4_k or q5 or nf4 or fp8 or iq or nvfp4 or bf16 or g32 or g64 or g128 "
    "or q8_0 or q4_1-3 or q6_k-3 "
    "or 1-5-7 or 2-9-90 or 5-8-31 or 1-1-1 or 17-5- or 9-37- or 2-7-1536 or 1-5-32"
)
NARROW = """
import sys
import pytest
from boostr.backends.numpy.runtime import jit
jit.use_target(*sys.argv[1:3])
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", "not narrow and (rows or digits "
    "or w8a8 or exp or decoded or sums) and not (3- or " + sys.argv[4] + ")", sys.argv[3]]))
"""


@pytest.mark.parametrize("lanes", (8, 4))
def test_narrow_vectors(lanes):
    """The same kernels for AVX2 and for SSE2 without f16 conversion."""
    here = jit.target()
    if not (here.has("avx2") and here.has("fma")):
        pytest.skip("this processor has no AVX2 with FMA")
    if lanes == here.lanes and not here.dots_bytes:
        pytest.skip("this processor's own kernels are these")
    cpu, features = (
        ("haswell", "+sse2,+avx,+avx2,+fma,+f16c,-avx512f") if lanes == 8 else ("x86-64", "+sse2")
    )
    command = [sys.executable, "-c", NARROW, cpu, features, __file__, OTHERS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
