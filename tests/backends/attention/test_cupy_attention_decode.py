"""What is CUDA's own in the split-KV kernel: its plans, its parts."""

import numpy as np
import pytest
from backends.attention.test_gpu_attention_decode import attend, reason
from draws import tensors
from ops.paged_cases import build, compare, reference

from boostr.backends.cupy.attention import attention_decode as decode
from boostr.options import attention_options


@pytest.mark.parametrize("chosen", [{}, {"alone": 0}, {"alone": 1000}], ids=str)
@pytest.mark.parametrize("length", [100, 200, 1500])
def test_one_sequence(length, chosen, cupy_backend, rng):
    arrays = build(rng, [1], [length], 8, 2, 64, bs=16)
    compare(attend(cupy_backend, arrays, {}, **chosen), arrays, {})


def test_partials(cupy_backend, rng):
    """What the fused decode step takes: slots without keys are marked, the others add up."""
    for lengths in ([5], [2000], [100, 0, 700]):
        arrays = build(rng, [1] * len(lengths), lengths, 9, 3, 64, bs=2048)
        options = attention_options("test", 64, True, None, None, None,
                                    "bottom-right")  # fmt: skip
        parts = decode.partials(cupy_backend, *tensors(cupy_backend, *arrays), None, options)
        out, ms = (x.get().astype(np.float64) for x in parts[:2])
        m, total = ms[..., 0], ms[..., 1]
        assert not np.isnan(ms).any() and np.all((total > 0) == np.isfinite(m))
        out = np.where(total[..., None] > 0, out, 0)
        top = m.max(-1, keepdims=True)
        weight = np.where(total > 0, np.exp(m - np.where(np.isfinite(top), top, 0)), 0)
        sums = np.maximum((weight * total).sum(-1), 1e-300)
        joined = (weight[..., None] * out).sum(2) / sums[..., None]
        want, _, _ = reference(arrays, {})
        assert np.abs(joined - want).max() < 0.02


@pytest.mark.parametrize("chosen", [
    {"joined": False}, {"grain": 1}, {"grain": 32}, {"groups": 3}, {"stages": 1},
    {"stages": 4, "warps": 2}, {"keys": 32}, {"rows": 32}, {"warps": 4, "blocks": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_plans(chosen, dtype, cupy_backend, rng):
    if dtype == "float32" and chosen.get("rows", chosen.get("keys")) == 32:
        pytest.skip("tensor cores only")
    arrays = build(rng, [1, 3, 1], [1, 3000, 777], 8, 2, 64, dtype=dtype)
    compare(attend(cupy_backend, arrays, {}, **chosen), arrays, {})


def test_refuses_float64(cupy_backend, rng):
    assert "float64" in reason(cupy_backend, build(rng, [1], [5], 2, 1, 8, dtype="float64"))
