"""Log probabilities on a GPU: whole vocabularies, every dtype, and CPU kernels beside them."""

import numpy as np
import pytest
from conftest import open_backend
from draws import normal, tensors
from ops.test_logprobs import KINDS, check, compare, rows, truth

from boostr import Tensor, dispatch, dtypes
from boostr.ops.logprobs import top_logprobs

LARGE = [("normal", 128_256), ("equal", 128_256), ("masked", 50_001), ("few", 262_144)]
SMALL = [(kind, V) for kind in KINDS for V in (21, 1028, 9001)]
dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
kinds = pytest.mark.parametrize(("kind", "V"), [*SMALL, *LARGE])


def whole(kind, V, dtype, rng):
    return rows(kind, V, rng).astype(dtypes.parse(dtype))


@dtype
@kinds
def test_rows(kind, V, dtype, any_gpu, rng):
    x, ids = whole(kind, V, dtype, rng), np.array([V - 1, -1, V // 3], np.int32)
    for k in (0, 20):
        check(any_gpu, x, ids, k)


@dtype
@kinds
def test_rows_on_the_cpu(kind, V, dtype, rng):
    pytest.importorskip("numba")
    with dispatch.strict():
        check(open_backend("numpy"), whole(kind, V, dtype, rng), np.array([0, V, 7], np.int32), 20)


def test_many_rows(gpu, rng):
    """Fewer blocks to a row, then one."""
    for B in (30, 70, 200):
        x, ids = normal(rng, (B, 8200), "bfloat16"), rng.integers(0, 8200, B).astype(np.int32)
        x[B // 2, 77] = np.nan
        chosen, best, logs = (t.numpy() for t in top_logprobs(*tensors(gpu, x, ids), 20))
        assert np.isnan(chosen[B // 2]) and (best[B // 2] == -1).all()
        rest = np.arange(B) != B // 2
        compare([chosen[rest], best[rest], logs[rest]], truth(x[rest], ids[rest], 20))


def test_the_likeliest_in_one_thread(gpu, rng):
    """What one block, and one thread of it, has to take again and again."""
    x, ids = normal(rng, (1, 100_000)), np.zeros(1, np.int32)
    for step in (1, 4, 1024, 4096):
        high = x.copy()
        high[0, 3::step][:24] += 50
        check(gpu, high, ids, 20)


def test_rows_at_odd_places(gpu, rng):
    x, ids = normal(rng, (3, 1033), "bfloat16"), np.array([5, 0, 1029], np.int32)
    got = top_logprobs(Tensor(x, backend=gpu)[1:, 3:], Tensor(ids, backend=gpu)[1:], 9)
    compare([t.numpy() for t in got], truth(x[1:, 3:], ids[1:], 9))
