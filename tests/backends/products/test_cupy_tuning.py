"""Products whose algorithm is found by trying."""

import numpy as np
import pytest
from conftest import open_backend

from boostr import dtypes
from boostr.program import capture
from boostr.tensor import Tensor


@pytest.fixture
def gpu():
    return open_backend("cupy")


@pytest.fixture
def blas(gpu, monkeypatch):
    """The module, whose smallest products are worth it."""
    from boostr.backends.cupy.products import blas, blas_tuning

    monkeypatch.setattr(blas_tuning, "_WORTH", 0.0)
    return blas


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("captured", [False, True])
def test_the_result_is_the_products(captured, add, gpu, blas, rng):
    """Once, wherever it was tuned: what it is added to is not written by trying."""
    shapes = ((40, 72), (72, 24), (40, 24))
    values = [rng.standard_normal(s).astype(dtypes.bfloat16) for s in shapes]
    a, b, c = (Tensor(v, backend=gpu) for v in values)
    blas.prepare(gpu)._plans.clear()

    def product():
        given = c.data if add else None
        return Tensor.wrap(blas.matmul(gpu, a.data, b.data, add_to=given, tuned=True), gpu)

    made = capture(product, gpu).outputs if captured else product()
    wide = [v.astype(np.float64) for v in values]
    want = wide[0] @ wide[1] + (wide[2] if add else 0)
    np.testing.assert_allclose(made.numpy().astype(np.float64), want, rtol=2e-2, atol=0.2)
    assert [plan.tuned for plan in blas.prepare(gpu)._plans.values()] == [True]


def test_small_products_are_not_tried(gpu, monkeypatch):
    from boostr.backends.cupy.products import blas, blas_tuning

    monkeypatch.setattr(blas_tuning, "tune", lambda *args: pytest.fail("it was tried"))
    x = gpu.full((64, 64), 1.0, dtypes.bfloat16)
    assert float(blas.matmul(gpu, x, x, tuned=True)[0, 0]) == 64.0


def test_deterministic_runs_try_nothing(gpu, blas, monkeypatch):
    from boostr.backends.cupy.products import blas_tuning

    monkeypatch.setenv("BOOSTR_DETERMINISTIC", "1")
    monkeypatch.setattr(blas_tuning, "tune", lambda *args: pytest.fail("it was tried"))
    x = gpu.full((64, 72), 1.0, dtypes.bfloat16)
    assert float(blas.matmul(gpu, x, x.T, tuned=True)[0, 0]) == 72.0
