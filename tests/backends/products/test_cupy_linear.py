"""What is CUDA's own in linear and matmul: every tile, Hopper's plans, weights side by side."""

import itertools

import numpy as np
import oracles
import pytest
from backends.products.test_gpu_linear import FLOATS, PAIRS, check_matmul
from draws import normal, tensors
from ops.linear_cases import FORMS, close, product, weight
from packed import BLOCKS, INT8, fitted

from boostr import Tensor
from boostr.backends.cupy.products import gemm, gemm_sm90
from boostr.backends.cupy.products.linear import segments_gemm
from boostr.backends.cupy.products.stored import Stored


def test_every_tile(cupy_backend, rng):
    names = {"float": ["float"], "rows": ["int8"], "rounds": ["w8a8"]}
    names["groups"] = [name for name in FORMS if name not in ("float", "int8", "w8a8")]
    for kind, tiles in gemm.TILES.items():
        for (most, tile), name, shares in itertools.product(tiles, names[kind], (1, 2, 5)):
            # an odd number of groups, whose f16 scales lie at odd multiples of 2 bytes, or an even
            M, N, K = min(most, 200) - 1, 150, fitted(name, 1344 if shares == 2 else 1360)
            x = normal(rng, (M, K), "bfloat16")
            w, truth = weight(cupy_backend, rng, name, N, K, "bfloat16")
            out = Tensor(np.full((M, N), np.nan, np.float32), "bfloat16", cupy_backend)
            tx, stored = Tensor(x, backend=cupy_backend), Stored.of(w, cupy_backend)
            gemm.mma(
                cupy_backend, tx.data, [stored], [None], None, out.data, tile=tile, shares=shares
            )
            close(out, product(x, w, truth), x, truth, "bfloat16")


@pytest.mark.parametrize("form", ("float", *INT8, "q8_0", "q4_0"))
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
        K = fitted(form, K)
        x, b = normal(rng, (M, K), "bfloat16"), normal(rng, (N,))
        w, truth = weight(cupy_backend, rng, form, N, K, "bfloat16")
        out = Tensor(np.full((M, N), np.nan, np.float32), "bfloat16", cupy_backend)
        tx, tb = tensors(cupy_backend, x, b)
        stored = [Stored.of(w, cupy_backend)]
        gemm_sm90.hopper(cupy_backend, tx.data, stored, [tb.data], None, out.data, plan=cut)
        close(out, product(x, w, truth) + b, x, truth, "bfloat16")


@pytest.mark.parametrize("form", ("float", "int8", "int8-g32", *BLOCKS))
@pytest.mark.parametrize("M", [5, 20, 64, 200])
@pytest.mark.parametrize("sizes", [(100, 65, 131), (256, 64, 64), (72, 40)], ids=str)
def test_weights_side_by_side(cupy_backend, rng, form, M, sizes):
    K = fitted(form, 192)
    x = normal(rng, (M, K), "bfloat16")
    pairs = [weight(cupy_backend, rng, form, n, K, "bfloat16") for n in sizes]
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
    truth = np.concatenate([truth for _, truth in pairs])
    close(Tensor.wrap(got, cupy_backend), want, x, truth, "bfloat16")


@pytest.mark.parametrize("forms", [("q4_k", "q4_k", "q6_k"), ("q8_0", "float", "float")], ids=str)
@pytest.mark.parametrize("M", [12, 200])
def test_neighbours_of_one_form_are_one_product(cupy_backend, rng, forms, M, monkeypatch):
    counts = []
    for name, module in (("mma", gemm), ("hopper", gemm_sm90)):
        run = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, run=run, **kw: counts.append(len(a[2])) or run(*a, **kw)
        )
    K, x = 256, normal(rng, (M, 256), "bfloat16")
    pairs = [
        weight(cupy_backend, rng, form, n, K, "bfloat16")
        for form, n in zip(forms, (72, 40, 37), strict=True)
    ]
    biases = [normal(rng, (n,), "bfloat16") for n in (72, 40, 37)]
    tx, *tb = tensors(cupy_backend, x, *biases)
    got = segments_gemm(
        cupy_backend, tx.data, [w for w, _ in pairs], [b.data for b in tb], tx.dtype
    )
    start = 0
    for (_, truth), bias in zip(pairs, biases, strict=True):
        part = Tensor.wrap(got[:, start : start + len(bias)], cupy_backend)
        close(part, x.astype(np.float64) @ truth.T + bias.astype(np.float64), x, truth, "bfloat16")
        start += len(bias)
    assert got.shape == (M, start)
    # many rows of floats are cuBLASLt's
    assert counts == ([2, 1] if forms[0] == "q4_k" else [1, 2] if M == 12 else [1])


def test_adjacent_weights_are_one(cupy_backend, rng):
    x, w = normal(rng, (200, 64), "bfloat16"), normal(rng, (96, 64), "bfloat16")
    tx, tw = tensors(cupy_backend, x, w)
    got = segments_gemm(cupy_backend, tx.data, [tw[:50], tw[50:]], [None, None], tx.dtype)
    close(Tensor.wrap(got, cupy_backend), oracles.linear(x.astype(np.float64), w), x, w, "bfloat16")


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


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=str)
def test_matmul_in_float64(cupy_backend, rng, a, b):
    check_matmul(cupy_backend, rng, a, b, "float64")
