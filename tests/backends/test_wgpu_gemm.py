"""The WGSL products of many rows against float64, strictly: forms, tiles, splits, windows."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import oracles
import pytest
from draws import normal, tensors, view
from strict_wgpu import BARE, strict_wgpu
from tolerance import assert_close, rms

from boostr import Tensor, capture, dtypes
from boostr.ops.linear import linear
from boostr.quant.scheme import SCHEMES, QuantizedTensor

INT8 = ("int8", "int8-g32", "int8-g64", "int8-g128", "w8a8")
FORMS = ("float", *INT8, "q8_0", "q4_1")
FLOATS = ("float32", "float16", "bfloat16")


@pytest.fixture
def wgpu():
    with strict_wgpu() as backend:
        yield backend


def weight(backend, rng, form, N, K, dtype, scale=1.0):
    """(a weight of that form, its values in float64)."""
    if form == "float":
        w = normal(rng, (N, K), dtype, scale)
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
    q, s = oracles.quantize_int8(normal(rng, (N, K), scale=scale), scheme.group_size or None)
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
    K = x.shape[-1]
    # one accumulator adds all K terms
    c = max(16.0, 2 * K**0.5) if dtype == "float32" else None
    assert_close(got.numpy(), want, dtype=dtype, reduce=K, scale=rms(x) * rms(truth), c=c)


def run(backend, x, w, plan, bias=None, residual=None):
    """gemm.linear by a plan, as a tensor."""
    from boostr.backends.wgpu import gemm

    return Tensor.wrap(gemm.linear(backend, x.data, w, bias, residual, plan=plan), backend)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_forms(wgpu, rng, form, dtype):
    for M, N, K in ((9, 65, 64), (33, 40, 288)):
        x, b, r = normal(rng, (M, K), dtype), normal(rng, (N,), dtype), normal(rng, (M, N), dtype)
        w, truth = weight(wgpu, rng, form, N, K, dtype)
        tx, tb, tr = tensors(wgpu, x, b, r)
        want = product(x, w, truth) + b.astype(np.float64) + r.astype(np.float64)
        close(linear(tx, w, tb, tr), want, x, truth, dtype)


@pytest.mark.parametrize("form", ("float", "int8", "int8-g32", "w8a8"))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_odd_sizes(wgpu, rng, form, dtype):
    for M, N, K in ((12, 33, 101), (30, 1, 7), (10, 6, 50)):
        x, r = normal(rng, (M, K), dtype), normal(rng, (M, N), dtype)
        w, truth = weight(wgpu, rng, form, N, K, dtype)
        tx, tr = tensors(wgpu, x, r)
        want = product(x, w, truth) + r.astype(np.float64)
        close(linear(tx, w, None, tr), want, x, truth, dtype)


# (tile, splits, form, dtype of x, M, N, K): the classes that GPUs get, their inner loops rolled up,
# since a compiler for CPUs takes seconds for the unrolled text
PLANS = [
    (0, 1, "float", "float32", 130, 132, 48), (0, 2, "float", "bfloat16", 60, 140, 80),
    (1, 1, "int8-g32", "bfloat16", 70, 136, 96), (2, 3, "float", "float16", 70, 67, 90),
    (4, 1, "w8a8", "bfloat16", 20, 136, 80), (3, 2, "w8a8", "float32", 33, 67, 133),
    (3, 2, "int8", "float32", 33, 67, 101), (4, 4, "q4_1", "bfloat16", 9, 132, 640),
]  # fmt: skip


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_tiles(wgpu, rng, plan):
    from boostr.backends.wgpu import gemm

    number, splits, form, dtype, M, N, K = plan
    tile = replace(gemm.TILES[number], UNROLL=1)
    x, b = normal(rng, (M, K), dtype), normal(rng, (N,))
    w, truth = weight(wgpu, rng, form, N, K, dtype)
    tx, tb = tensors(wgpu, x, b)
    got = run(wgpu, tx, w, gemm.Plan(tile, splits), tb.data)
    close(got, product(x, w, truth) + b, x, truth, dtype)


def test_two_stages_and_layouts_of_a_tile(wgpu, rng, monkeypatch):
    """Tiles in shared memory twice; lines of either operand along the other axis."""
    from boostr.backends.wgpu import gemm

    tile = gemm.Tile(32, 64, 4, 8, BK=8, STAGES=2, UNROLL=1)
    monkeypatch.setattr(gemm, "choose", lambda *args: gemm.Plan(tile))
    x, y = normal(rng, (68, 44)), normal(rng, (44, 72))
    want = x.astype(np.float64) @ y
    for tx, ty in itertools.product((Tensor(x, backend=wgpu), turned(wgpu, x)),
                                    (Tensor(y, backend=wgpu), turned(wgpu, y))):  # fmt: skip
        assert_close((tx @ ty).numpy(), want, dtype="float32", reduce=44)


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_two_float_types_and_wide_results(wgpu, rng, stored, dtype):
    x, w = normal(rng, (20, 96), dtype), normal(rng, (40, 96), stored)
    b = normal(rng, (40,))
    tx, tw, tb = tensors(wgpu, x, w, b)
    want = oracles.linear(x.astype(np.float64), w) + b
    close(linear(tx, tw, tb), want, x, w, dtype)
    close(linear(tx, tw, tb, dtype="float32"), want, x, w, "float32")


@pytest.mark.parametrize("form", ("float", "int8", "w8a8"))
def test_views_of_x(wgpu, rng, form):
    """Rows that lie apart, and rows that begin off a vector."""
    wide = normal(rng, (12, 76), "bfloat16")
    w, truth = weight(wgpu, rng, form, 24, 64, "bfloat16")
    on_device = Tensor(wide, backend=wgpu)
    for start in (0, 1, 8):
        x = wide[:, start : start + 64]
        got = linear(on_device[:, start : start + 64], w)
        close(got, product(x, w, truth), x, truth, "bfloat16")
    x = normal(rng, (2, 6, 64), "bfloat16")
    want = x.astype(np.float64) @ truth.T
    if form != "w8a8":
        close(linear(view(wgpu, x), w), want, x, truth, "bfloat16")


@pytest.mark.parametrize("form", FORMS)
def test_with_no_extras(rng, form):
    with strict_wgpu(**BARE) as backend:
        x = normal(rng, (11, 64), "bfloat16")
        w, truth = weight(backend, rng, form, 36, 64, "bfloat16")
        close(linear(Tensor(x, backend=backend), w), product(x, w, truth), x, truth, "bfloat16")


@pytest.mark.parametrize("form", ("float", "int8", "int8-g32", "w8a8", "q8_0", "q4_1"))
def test_weights_larger_than_a_binding(rng, form):
    with strict_wgpu(binding_bytes=12288, offset_alignment=256) as backend:
        for dtype, N in (("float32", 330), ("bfloat16", 333)):
            x, b, r = normal(rng, (10, 64)), normal(rng, (N,)), normal(rng, (10, N))
            w, truth = weight(backend, rng, form, N, 64, dtype)
            tx, tb, tr = tensors(backend, x, b, r)
            close(linear(tx, w, tb, tr), product(x, w, truth) + b + r, x, truth, "float32")
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


def test_captured(wgpu, rng):
    for form in ("float", "w8a8"):
        w, _ = weight(wgpu, rng, form, 36, 128, "bfloat16")
        x = Tensor(normal(rng, (30, 128), "bfloat16"), backend=wgpu)
        program: Any = capture(lambda x=x, w=w: linear(x, w), wgpu)
        want = linear(x, w).numpy()
        for _ in range(2):
            program.run()
        assert np.array_equal(program.outputs.numpy(), want)


@pytest.mark.parametrize("form", ("float", "int8-g32", "w8a8", "q8_0"))
def test_weights_side_by_side(wgpu, rng, form):
    """One behind the other in memory, as one product; or apart."""
    from boostr.backends.wgpu import gemm

    x = Tensor(normal(rng, (12, 64), "bfloat16"), backend=wgpu)
    w, _ = weight(wgpu, rng, form, 40, 64, "bfloat16")
    want = linear(x, w).numpy()
    parts = [rows_of(w, 0, 24), rows_of(w, 24, 40)]
    assert gemm.joined(parts) is not None and gemm.joined(parts[::-1]) is None
    for order in (parts, parts[::-1]):
        got = Tensor.wrap(gemm.segments(wgpu, x.data, order, [None, None]), wgpu).numpy()
        halves = (want[:, :24], want[:, 24:])
        expected = np.concatenate(halves if order is parts else halves[::-1], 1)
        assert np.array_equal(got, expected)


def rows_of(w, start, stop):
    """Some rows of a weight, as a window."""
    if isinstance(w, Tensor):
        return w[start:stop]
    parts = {name: part[start:stop] for name, part in w.parts.items()}
    return QuantizedTensor(w.scheme, (stop - start, w.shape[1]), parts)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 5), (5, 7)), ((1, 64), (64, 1)), ((2, 3, 9, 16), (2, 3, 16, 8)), ((4, 9, 16), (16, 8)),
        ((9, 16), (4, 16, 8)), ((2, 1, 5, 8), (1, 3, 8, 4)), ((2, 3, 5, 8), (2, 1, 8, 4)),
        ((3, 0), (0, 2)), ((0, 4), (4, 2)), ((3, 33, 20), (3, 20, 35)),
    ],
    ids=str,
)  # fmt: skip
def test_matmul(wgpu, rng, a, b, dtype):
    x, y = normal(rng, a, dtype), normal(rng, b, dtype)
    want = x.astype(np.float64) @ y.astype(np.float64)
    for turn_x, turn_y in itertools.product((False, True), repeat=2):
        tx = turned(wgpu, x) if turn_x else Tensor(x, backend=wgpu)
        ty = turned(wgpu, y) if turn_y else Tensor(y, backend=wgpu)
        assert_close((tx @ ty).numpy(), want, dtype=dtype, reduce=max(a[-1], 1))


def turned(backend, x):
    """x with its last two axes lying the other way round in memory."""
    return Tensor(np.ascontiguousarray(x.swapaxes(-1, -2)), backend=backend).transpose(-1, -2)


def test_plans_keep_within_a_device(wgpu):
    from boostr.backends.wgpu import gemm, gemm_matrix

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
    M, N, K = shape
    x, b, r = normal(rng, (M, K), dtype), normal(rng, (N,), dtype), normal(rng, (M, N), dtype)
    w, truth = weight(matrices, rng, form, N, K, dtype)
    tx, tb, tr = tensors(matrices, x, b, r)
    want = product(x, w, truth) + b.astype(np.float64) + r.astype(np.float64)
    close(linear(tx, w, tb, tr), want, x, truth, dtype)


@pytest.mark.parametrize("splits", [1, 3])
def test_every_tile_of_matrices(matrices, rng, splits, monkeypatch):
    from boostr.backends.wgpu import gemm_matrix

    for form, tile in itertools.product(("float", "w8a8"), gemm_matrix.TILES):
        plan = gemm_matrix.MatrixPlan(tile, splits)
        monkeypatch.setattr(gemm_matrix, "choose", lambda *args, plan=plan: plan)
        x = normal(rng, (200, 720), "bfloat16")
        w, truth = weight(matrices, rng, form, 140, 720, "bfloat16")
        got = linear(Tensor(x, backend=matrices), w)
        close(got, product(x, w, truth), x, truth, "bfloat16")


@pytest.mark.parametrize(("x_size", "w_size"), [(1e6, 1), (1e-30, 1), (1, 1e4), (1, 1e-4)])
def test_numbers_beyond_f16(matrices, rng, x_size, w_size):
    """Rows of x are scaled; weights that do not fit are multiplied in float32."""
    x = normal(rng, (100, 256), "bfloat16", x_size)
    w, truth = weight(matrices, rng, "float", 128, 256, "bfloat16", w_size)
    close(linear(Tensor(x, backend=matrices), w), product(x, w, truth), x, truth, "bfloat16")
