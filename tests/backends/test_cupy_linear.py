"""The CUDA kernels of linear and matmul against float64, strictly: forms, tiles, captures."""

import itertools

import numpy as np
import oracles
import pytest
from draws import normal, tensors
from tolerance import assert_close, rms

from boostr import Tensor, capture, dtypes
from boostr.backends.cupy import gemm, gemm_sm90
from boostr.backends.cupy.linear import segments_gemm
from boostr.backends.cupy.stored import FLOAT, INT8, INT8_GROUP, W8A8, Stored
from boostr.ops.linear import linear
from boostr.quant.scheme import SCHEMES, QuantizedTensor

INTEGERS = ("int8", "int8-g32", "int8-g64", "int8-g128", "w8a8")
FORMS = ("float", *INTEGERS, "q8_0", "q4_1")
FLOATS = ("float32", "float16", "bfloat16")
# rows around the tiles of 16, 32, 64 and 128; columns off every tile
SHAPES = [(9, 65, 64), (33, 200, 576), (64, 128, 128), (65, 129, 96), (130, 300, 1056)]
ODD = [(12, 33, 101), (70, 1, 7), (100, 45, 250)]


def weight(backend, rng, form, N, K, dtype):
    """(a weight of that form, its values in float64)."""
    if form == "float":
        w = normal(rng, (N, K), dtype)
        return Tensor(w, backend=backend), w.astype(np.float64)
    scheme = SCHEMES[form]
    if scheme.is_block:
        blocks = rng.integers(0, 256, (N, K // 32, scheme.block_bytes)).astype(np.uint8)
        for at in (0, 2) if form == "q4_1" else (0,):
            half = normal(rng, (N, K // 32, 1), "float16", 0.02)
            blocks[:, :, at : at + 2] = half.view(np.uint8)
        raw = blocks.reshape(N, -1)
        parts = {"blocks": Tensor(raw, backend=backend)}
        return QuantizedTensor(scheme, (N, K), parts), getattr(oracles, f"dequantize_{form}")(raw)
    q, s = oracles.quantize_int8(normal(rng, (N, K)), scheme.group_size or None)
    parts = {"values": Tensor(q, backend=backend), "scales": Tensor(s, backend=backend)}
    truth = oracles.dequantize_int8(q, s, scheme.group_size or None)
    return QuantizedTensor(scheme, (N, K), parts), truth


def product(x, w, truth):
    """What `linear` should give, float64."""
    if isinstance(w, QuantizedTensor) and w.scheme.activations_int8:
        q, s = (w.parts[name].numpy() for name in ("values", "scales"))
        return oracles.linear_w8a8(x.astype(np.float32), q, s)
    return x.astype(np.float64) @ truth.T


def close(got, want, x, truth, dtype):
    assert got.dtype == dtypes.parse(dtype)
    K = x.shape[1]
    # one accumulator adds all K terms in the float32 kernels
    c = max(16.0, 2 * K**0.5) if dtype == "float32" else None
    assert_close(got.numpy(), want, dtype=dtype, reduce=K, scale=rms(x) * rms(truth), c=c)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forms(cupy_backend, rng, form, dtype, shape):
    M, N, K = shape
    x, b, r = normal(rng, (M, K), dtype), normal(rng, (N,), dtype), normal(rng, (M, N), dtype)
    w, truth = weight(cupy_backend, rng, form, N, K, dtype)
    want = product(x, w, truth)
    tx, tb, tr = tensors(cupy_backend, x, b, r)
    close(linear(tx, w), want, x, truth, dtype)
    want = want + b.astype(np.float64) + r.astype(np.float64)
    close(linear(tx, w, tb, tr), want, x, truth, dtype)


@pytest.mark.parametrize("form", ("float", *INTEGERS))
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", ODD, ids=str)
def test_odd_inputs(cupy_backend, rng, form, dtype, shape):
    """K off every alignment: the float32 kernel, or cuBLASLt without alignment."""
    M, N, K = shape
    x = normal(rng, (M, K), dtype)
    w, truth = weight(cupy_backend, rng, form, N, K, dtype)
    close(linear(Tensor(x, backend=cupy_backend), w), product(x, w, truth), x, truth, dtype)


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("M", [20, 150])
def test_two_float_types_and_wide_results(cupy_backend, rng, stored, dtype, M):
    x, w = normal(rng, (M, 160), dtype), normal(rng, (72, 160), stored)
    b = normal(rng, (72,))
    tx, tw, tb = tensors(cupy_backend, x, w, b)
    want = oracles.linear(x.astype(np.float64), w)
    close(linear(tx, tw), want, x, w, dtype)
    close(linear(tx, tw, tb), want + b, x, w, dtype)
    close(linear(tx, tw, tb, dtype="float32"), want + b, x, w, "float32")


@pytest.mark.parametrize("form", ("float", "int8", "w8a8"))
def test_views_of_x(cupy_backend, rng, form):
    """Rows that lie apart, and rows that do not start at 16 bytes."""
    wide = normal(rng, (40, 330), "bfloat16")
    w, truth = weight(cupy_backend, rng, form, 72, 320, "bfloat16")
    on_device = Tensor(wide, backend=cupy_backend)
    for start in (0, 1, 8):
        x = wide[:, start : start + 320]
        got = linear(on_device[:, start : start + 320], w)
        close(got, product(x, w, truth), x, truth, "bfloat16")


def test_every_tile(cupy_backend, rng):
    names = {FLOAT: ["float"], INT8: ["int8"], W8A8: ["w8a8"]}
    names[INT8_GROUP] = ["int8-g32", "int8-g64", "int8-g128"]
    for form, tiles in gemm._TILES.items():
        for (most, tile), name, shares in itertools.product(tiles, names[form], (1, 2, 5)):
            M, N, K = min(most, 200) - 1, 150, 1360
            x = normal(rng, (M, K), "bfloat16")
            w, truth = weight(cupy_backend, rng, name, N, K, "bfloat16")
            out = Tensor(np.full((M, N), np.nan, np.float32), "bfloat16", cupy_backend)
            tx, stored = Tensor(x, backend=cupy_backend), Stored.of(w, cupy_backend)
            gemm.mma(
                cupy_backend, tx.data, [stored], [None], None, out.data, tile=tile, shares=shares
            )
            close(out, product(x, w, truth), x, truth, "bfloat16")


@pytest.mark.parametrize("form", ("float", *INTEGERS))
@pytest.mark.parametrize(
    "plan", [(2, 32, 5, 4), (1, 8, 8, 8), (1, 16, 4, 3), (2, 64, 4, 1), (2, 128, 4, 2)], ids=str
)
def test_warpgroup_plans(cupy_backend, rng, form, plan):
    """Hopper: shares of K in a cluster, more shares than steps, tokens and rows off the tile."""
    if cupy_backend.caps.compute_capability != 90:
        pytest.skip("warpgroup products are Hopper's")
    cut = gemm_sm90.Warpgroups(*plan)
    for M, N, K in (
        (cut.tokens, 70, 64),
        (cut.tokens + 13, 300, 1040),
        (cut.tokens - 3, 136, 2048),
    ):
        x, b = normal(rng, (M, K), "bfloat16"), normal(rng, (N,))
        w, truth = weight(cupy_backend, rng, form, N, K, "bfloat16")
        out = Tensor(np.full((M, N), np.nan, np.float32), "bfloat16", cupy_backend)
        tx, tb = tensors(cupy_backend, x, b)
        stored = [Stored.of(w, cupy_backend)]
        gemm_sm90.hopper(cupy_backend, tx.data, stored, [tb.data], None, out.data, plan=cut)
        close(out, product(x, w, truth) + b, x, truth, "bfloat16")


@pytest.mark.parametrize("form", ("float", "int8", "int8-g32", "q8_0"))
@pytest.mark.parametrize("M", [5, 20, 64, 200])
@pytest.mark.parametrize("sizes", [(100, 65, 131), (256, 64, 64), (72, 40)], ids=str)
def test_weights_side_by_side(cupy_backend, rng, form, M, sizes):
    x = normal(rng, (M, 192), "bfloat16")
    pairs = [weight(cupy_backend, rng, form, n, 192, "bfloat16") for n in sizes]
    biases = [normal(rng, (n,), "bfloat16") for n in sizes]
    biases[1] = None
    tx, *tb = tensors(cupy_backend, x, *biases)
    got = segments_gemm(
        cupy_backend,
        tx.data,
        [w for w, _ in pairs],
        [b if b is None else b.data for b in tb],
        tx.dtype,
    )
    want = np.concatenate(
        [
            x.astype(np.float64) @ truth.T + (0 if b is None else b.astype(np.float64))
            for (_, truth), b in zip(pairs, biases, strict=True)
        ],
        axis=1,
    )
    close(Tensor.wrap(got, cupy_backend), want, x, pairs[0][1], "bfloat16")


def test_adjacent_weights_are_one(cupy_backend, rng):
    x, w = normal(rng, (200, 64), "bfloat16"), normal(rng, (96, 64), "bfloat16")
    tx, tw = tensors(cupy_backend, x, w)
    got = segments_gemm(cupy_backend, tx.data, [tw[:50], tw[50:]], [None, None], tx.dtype)
    close(Tensor.wrap(got, cupy_backend), oracles.linear(x.astype(np.float64), w), x, w, "bfloat16")


@pytest.mark.parametrize("form", ("float", "int8", "w8a8", "q8_0"))
@pytest.mark.parametrize("M", [30, 90])
def test_captured(cupy_backend, rng, form, M):
    w, _ = weight(cupy_backend, rng, form, 304, 1024, "bfloat16")
    x = Tensor(normal(rng, (M, 1024), "bfloat16"), backend=cupy_backend)
    program = capture(lambda: linear(x, w))
    want = linear(x, w).numpy()
    for _ in range(3):
        program.run()
    assert np.array_equal(program.outputs.numpy(), want)


def test_shared_sums_are_the_same_every_time(cupy_backend, rng):
    x, w = tensors(
        cupy_backend, normal(rng, (16, 4096), "bfloat16"), normal(rng, (512, 4096), "bfloat16")
    )
    first = linear(x, w, dtype="float32").numpy()
    for _ in range(10):
        assert np.array_equal(linear(x, w, dtype="float32").numpy(), first)


@pytest.mark.parametrize("dtype", ("float64", *FLOATS))
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 5), (5, 7)), ((1, 64), (64, 1)), ((2, 3, 9, 16), (2, 3, 16, 8)), ((4, 9, 16), (16, 8)),
        ((9, 16), (4, 16, 8)), ((2, 1, 5, 8), (1, 3, 8, 4)), ((2, 3, 5, 8), (2, 1, 8, 4)),
        ((3, 0), (0, 2)), ((0, 4), (4, 2)),
    ],
    ids=str,
)  # fmt: skip
def test_matmul(cupy_backend, rng, a, b, dtype):
    x, y = normal(rng, a, dtype), normal(rng, b, dtype)
    want = x.astype(np.float64) @ y.astype(np.float64)
    for turn_x, turn_y in itertools.product((False, True), repeat=2):
        tx = _turned(cupy_backend, x) if turn_x else Tensor(x, backend=cupy_backend)
        ty = _turned(cupy_backend, y) if turn_y else Tensor(y, backend=cupy_backend)
        assert_close((tx @ ty).numpy(), want, dtype=dtype, reduce=max(a[-1], 1))


def _turned(backend, x):
    """x with its last two axes lying the other way round in memory."""
    return Tensor(np.ascontiguousarray(x.swapaxes(-1, -2)), backend=backend).transpose(-1, -2)


def test_matmul_captured(cupy_backend, rng):
    x, y = tensors(cupy_backend, normal(rng, (3, 40, 16)), normal(rng, (16, 9)))
    program = capture(lambda: x @ y)
    program.run()
    want = x.numpy().astype(np.float64) @ y.numpy()
    assert_close(program.outputs.numpy(), want, dtype="float32", reduce=16)


def test_rows_to_int8(cupy_backend, rng):
    for dtype, (M, K) in itertools.product(FLOATS, ((5, 64), (3, 101), (40, 4096), (2, 7))):
        x = normal(rng, (M, K), dtype)
        x[M // 2] = 0
        values, scales = gemm.quantize_rows(cupy_backend, Tensor(x, backend=cupy_backend).data)
        q, s = oracles.quantize_int8(x)
        got = Tensor.wrap(values, cupy_backend).numpy()
        assert np.array_equal(got[:, :K], q)
        assert not got[:, K:].any()
        assert np.array_equal(Tensor.wrap(scales, cupy_backend).numpy(), s[:, 0])
