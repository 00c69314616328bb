"""What is WGSL's own in products of many rows: tiles, splits, windows, matrices."""

import itertools
from dataclasses import replace

import numpy as np
import oracles
import pytest
from conftest import skip_large
from draws import large, normal, tensors
from ops.linear_cases import FORMS, close, product, turned, weight
from packed import fitted
from strict_wgpu import BARE, strict_wgpu
from tolerance import assert_close, term_rms

from boostr import Tensor, dispatch, dtypes
from boostr.errors import BackendError
from boostr.ops.embedding import embedding
from boostr.ops.linear import linear
from boostr.ops.quant import dequantize
from boostr.quant.scheme import QuantizedTensor, Scheme


@pytest.fixture
def wgpu(request):
    with strict_wgpu() as backend:
        skip_large(request, backend)
        yield backend


def run(backend, x, w, plan, bias=None, residual=None):
    """gemm.linear by a plan, as a tensor."""
    from boostr.backends.wgpu.products import gemm

    return Tensor.wrap(gemm.linear(backend, x.data, w, bias, residual, plan=plan), backend)


# (tile, splits, form, dtype of x, M, N, K): the classes that GPUs get, their inner loops rolled up,
# since a compiler for CPUs takes seconds for the unrolled text
PLANS = [
    (0, 1, "float", "float32", 130, 132, 48), (0, 2, "float", "bfloat16", 60, 140, 80),
    (1, 1, "int8-g32", "bfloat16", 70, 136, 96), large((2, 3, "float", "float16", 70, 67, 90)),
    (2, 1, "q4_0", "float32", 40, 132, 96), (3, 2, "q6_k", "bfloat16", 33, 132, 512),
    large((4, 1, "w8a8", "bfloat16", 20, 136, 80)), large((3, 2, "w8a8", "float32", 33, 67, 133)),
    large((3, 2, "int8", "float32", 33, 67, 101)), (4, 4, "q4_1", "bfloat16", 9, 132, 640),
    (5, 1, "float", "float32", 130, 140, 72), (6, 2, "w8a8", "bfloat16", 40, 132, 200),
]  # fmt: skip


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_tiles(wgpu, rng, plan):
    from boostr.backends.wgpu.products import gemm

    number, splits, form, dtype, M, N, K = plan
    tile = replace((*gemm.TILES, gemm.WIDE, gemm.TWICE)[number], UNROLL=1)
    x, b = normal(rng, (M, K), dtype), normal(rng, (N,))
    w, truth = weight(wgpu, rng, form, N, K, dtype)
    tx, tb = tensors(wgpu, x, b)
    got = run(wgpu, tx, w, gemm.Plan(tile, splits), tb.data)
    close(got, product(x, w, truth) + b, x, truth, dtype, b)


def test_two_stages_and_layouts_of_a_tile(wgpu, rng, monkeypatch):
    """Tiles in shared memory twice; lines of either operand along the other axis."""
    from boostr.backends.wgpu.products import gemm

    tile = gemm.Tile(32, 64, 4, 8, BK=8, STAGES=2, UNROLL=1)
    monkeypatch.setattr(gemm, "choose", lambda *args: gemm.Plan(tile))
    x, y = normal(rng, (68, 44)), normal(rng, (44, 72))
    want = x.astype(np.float64) @ y
    for tx, ty in itertools.product((Tensor(x, backend=wgpu), turned(wgpu, x)),
                                    (Tensor(y, backend=wgpu), turned(wgpu, y))):  # fmt: skip
        assert_close((tx @ ty).numpy(), want, dtype="float32", reduce=44)


@pytest.mark.parametrize("form", FORMS)
def test_with_no_extras(rng, form):
    with strict_wgpu(**BARE) as backend:
        K = fitted(form, 64)
        x = normal(rng, (11, K), "bfloat16")
        w, truth = weight(backend, rng, form, 36, K, "bfloat16")
        close(linear(Tensor(x, backend=backend), w), product(x, w, truth), x, truth, "bfloat16")


@pytest.mark.parametrize("form", FORMS)
def test_weights_larger_than_a_binding(rng, form):
    with strict_wgpu(binding_bytes=12288, offset_alignment=256) as backend:
        K = fitted(form, 64)
        for dtype, N in (("float32", 330), ("bfloat16", 333)):
            x, b, r = normal(rng, (10, K)), normal(rng, (N,)), normal(rng, (10, N))
            w, truth = weight(backend, rng, form, N, K, dtype)
            tx, tb, tr = tensors(backend, x, b, r)
            close(linear(tx, w, tb, tr), product(x, w, truth) + b + r, x, truth, "float32", b, r)
            if N % 4:
                got = linear(tx.to("bfloat16"), w)
                x16 = x.astype(dtypes.bfloat16)
                close(got, product(x16, w, truth), x16, truth, "bfloat16")


def test_inputs_larger_than_a_binding(rng):
    """Rows of x in parts; and, with lines across, the sums in parts."""
    with strict_wgpu(binding_bytes=8192, offset_alignment=256) as backend:
        x, w = normal(rng, (70, 64)), normal(rng, (20, 64))
        want = oracles.linear(x, w)
        close(linear(*tensors(backend, x, w)), want, x, w, "float32")
        b = np.ascontiguousarray(normal(rng, (90, 40)))
        a = normal(rng, (12, 90))
        got = Tensor(a, backend=backend) @ Tensor(b, backend=backend)
        assert_close(got.numpy(), a.astype(np.float64) @ b, dtype="float32", reduce=90)


@pytest.mark.parametrize("form", ("float", "int8-g32", "w8a8", "q8_0", "q4_1", "q6_k"))
def test_weights_side_by_side(wgpu, rng, form):
    """Weights that lie end to end are one weight, in this order alone."""
    from boostr.backends.wgpu.products.linear import joined

    K = fitted(form, 64)
    x = Tensor(normal(rng, (12, K), "bfloat16"), backend=wgpu)
    w, _ = weight(wgpu, rng, form, 40, K, "bfloat16")
    parts = [rows_of(w, 0, 24), rows_of(w, 24, 40)]
    whole = joined(wgpu, parts)
    assert whole is not None and joined(wgpu, parts[::-1]) is None
    assert np.array_equal(linear(x, whole).numpy(), linear(x, w).numpy())


def rows_of(w, start, stop):
    """Some rows of a weight, as a window."""
    return w[start:stop] if isinstance(w, Tensor) else w.rows(start, stop)


def test_plans_keep_within_a_device(wgpu):
    from boostr.backends.wgpu.products import gemm, gemm_matrix

    big = replace(wgpu.caps, kind="discrete", workgroup_bytes=49152, subgroup_max=32)
    small = replace(big, workgroup_bytes=16384, workgroup_threads=256)
    for caps, M, N, K in itertools.product(
        (big, small), (9, 33, 512, 4096), (8, 576, 16384), (64, 8192)
    ):
        plan = gemm.choose(caps, M, N, K, 1, room=100)
        assert plan.tile.shared_bytes <= caps.workgroup_bytes
        assert plan.tile.threads <= caps.workgroup_threads
        for integers in (False, True):
            tile = gemm_matrix.choose(caps, M, N, K, 100, integers).tile
            if caps is big:
                assert tile.shared_bytes(32, integers) <= caps.workgroup_bytes


@pytest.mark.parametrize("group", (8, 24))
def test_a_scheme_without_a_decoder_is_refused_by_name(wgpu, rng, group):
    """Then its meaning in Python runs, in products, tables and dequantize alike."""
    scheme = Scheme("toy", group)
    q, s = oracles.quantize_int8(normal(rng, (20, 48)), group)
    truth = oracles.dequantize_int8(q, s, group)
    parts = {"codes": Tensor(q, backend=wgpu), "scales": Tensor(s, backend=wgpu)}
    w, x = QuantizedTensor(scheme, (20, 48), parts), normal(rng, (9, 48))
    tx, ids = Tensor(x, backend=wgpu), Tensor(np.array([7, 0], np.int32), backend=wgpu)
    for call in (lambda: linear(tx, w), lambda: embedding(ids, w), lambda: dequantize(w)):
        with pytest.raises(BackendError, match=f"toy: groups are of {group} inputs"):
            call()
    with dispatch.strict(False):
        close(linear(tx, w), x @ truth.T, x, truth, "float32")
        np.testing.assert_allclose(embedding(ids, w).numpy(), truth[[7, 0]], rtol=1e-6)
        np.testing.assert_allclose(dequantize(w).numpy(), truth, rtol=1e-6)


# -- tensor cores: only where the device has them ----------------------------------------------
@pytest.fixture
def matrices():
    with strict_wgpu() as backend:
        if not backend.caps.matrices:
            pytest.skip(f"{backend.device} has no subgroup matrices")
        yield backend


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
@pytest.mark.parametrize("shape", [(9, 132, 64), (40, 200, 576), (300, 268, 640)], ids=str)
def test_matrices(matrices, rng, form, dtype, shape):
    M, N, K = *shape[:2], fitted(form, shape[2])
    x, b, r = normal(rng, (M, K), dtype), normal(rng, (N,), dtype), normal(rng, (M, N), dtype)
    w, truth = weight(matrices, rng, form, N, K, dtype)
    tx, tb, tr = tensors(matrices, x, b, r)
    want = product(x, w, truth) + b.astype(np.float64) + r.astype(np.float64)
    close(linear(tx, w, tb, tr), want, x, truth, dtype, b, r)


@pytest.mark.parametrize("splits", [1, 3])
def test_every_tile_of_matrices(matrices, rng, splits, monkeypatch):
    from boostr.backends.wgpu.products import gemm_matrix

    for form, tile in itertools.product(("float", "w8a8"), gemm_matrix.TILES):
        plan = gemm_matrix.MatrixPlan(tile, splits)
        monkeypatch.setattr(gemm_matrix, "choose", lambda *args, plan=plan: plan)
        x = normal(rng, (200, 720), "bfloat16")
        w, truth = weight(matrices, rng, form, 140, 720, "bfloat16")
        got = linear(Tensor(x, backend=matrices), w)
        close(got, product(x, w, truth), x, truth, "bfloat16")


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
@pytest.mark.parametrize("shape", [(40, 72, 80), (304, 136, 576), (96, 264, 1000)], ids=str)
def test_lines_across(matrices, rng, dtype, shape, monkeypatch):
    """Gradients: g · w, where w's lines lie across, and gᵀ · x, where both do; any number of
    lines. Columns of all sizes, as sums are, down to those that float16 rounds to 0."""
    from boostr.backends.wgpu.products import gemm_matrix

    N, K, T = shape
    most = 18 if dtype == "bfloat16" else 0
    of_g, of_x, of_w = (10.0 ** rng.integers(-most, most + 1, n) for n in (K, N, N))
    g, x = normal(rng, (T, K), dtype, of_g), normal(rng, (T, N), dtype, of_x)
    w = normal(rng, (K, N), dtype, of_w)
    kept = takes_all(gemm_matrix, monkeypatch)
    for left, right, truth in (
        (Tensor(g, backend=matrices), w, g), (turned(matrices, g.T), x, g.T),
    ):  # fmt: skip
        got = left @ Tensor(right, backend=matrices)
        want = truth.astype(np.float64) @ right.astype(np.float64)
        scale = term_rms(truth, right.T)
        assert_close(got.numpy(), want, dtype=dtype, reduce=truth.shape[1], scale=scale)
    assert kept == [None, None]


@pytest.mark.parametrize("splits", [1, 3])
def test_every_tile_of_lines_across(matrices, rng, splits, monkeypatch):
    from boostr.backends.wgpu.products import gemm_matrix

    a, b = normal(rng, (200, 720), "bfloat16"), normal(rng, (720, 136), "bfloat16")
    want = a.astype(np.float64) @ b.astype(np.float64)
    for tile in gemm_matrix.TILES:
        plan = gemm_matrix.MatrixPlan(tile, splits)
        monkeypatch.setattr(gemm_matrix, "choose", lambda *args, plan=plan: plan)
        for left in (Tensor(a, backend=matrices), turned(matrices, a)):
            got = left @ Tensor(b, backend=matrices)
            assert_close(got.numpy(), want, dtype="bfloat16", reduce=720)


def takes_all(module, monkeypatch):
    """What `takes` answers from here on."""
    plain, kept = module.takes, []
    monkeypatch.setattr(module, "takes", lambda *args: kept.append(plain(*args)) or kept[-1])
    return kept


def test_threads_bring_the_same_columns_of_every_line():
    """gemm_matrix.wgsl keeps the powers of two of one run of columns a thread."""
    from boostr.backends.wgpu.products.gemm_matrix import TILES

    for tile, lanes in itertools.product(TILES, (16, 32, 64)):
        assert all(tile.threads(lanes) % (n // 8) == 0 for n in (tile.BM, tile.BN))


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
@pytest.mark.parametrize("shape", [(1, 8), (1100, 24), (5, 136)], ids=str)
def test_powers_of_columns(wgpu, rng, dtype, shape):
    """The largest number of a column lies in [2^13, 2^14) over its power; 0 and inf give finite
    ones."""
    from boostr.backends.wgpu.products import gemm_matrix
    from boostr.backends.wgpu.products.gemm_operands import Operand

    most = 4 if dtype == "float16" else 30
    sizes = 10.0 ** rng.integers(-most, most, shape[1])
    x = normal(rng, shape, dtype, sizes)
    x[:, 3], x[0, 5] = 0, np.inf
    tx = Tensor(x, backend=wgpu)
    powers = wgpu.full((shape[1] + 5,), 7, dtypes.float32)
    turned_x = Operand.of_matrix(wgpu, wgpu.permute(tx.data, (1, 0)))
    gemm_matrix._powers(wgpu, turned_x, powers, 3)
    got = Tensor.wrap(powers, wgpu).numpy()
    assert (got[:3] == 7).all() and (got[-2:] == 7).all()
    largest, got = np.abs(x.astype(np.float64)).max(0), got[3:-2].astype(np.float64)
    assert (np.frexp(got)[0] == 0.5).all() and np.isfinite(got).all()
    plain = np.isfinite(largest) & (largest > 0)
    assert plain.sum() == shape[1] - 2
    scaled = largest[plain] / got[plain]
    assert (scaled >= 2.0**13).all() and (scaled < 2.0**14).all()


@pytest.mark.parametrize(("x_size", "w_size"), [(1e6, 1), (1e-30, 1), (1, 1e4), (1, 1e-4)])
def test_numbers_beyond_f16(matrices, rng, x_size, w_size):
    """Rows of x are scaled; weights that do not fit are multiplied in float32."""
    x = normal(rng, (100, 256), "bfloat16", x_size)
    w, truth = weight(matrices, rng, "float", 128, 256, "bfloat16", w_size)
    close(linear(Tensor(x, backend=matrices), w), product(x, w, truth), x, truth, "bfloat16")
