"""Draws and argmax in WGSL for other classes of GPU than the adapter is."""

import os

import numpy as np
import pytest
from backends.sampling.test_gpu_sampling import check_draws, logits
from conftest import on_hardware, open_backend
from draws import normal
from strict_wgpu import BARE, strict_wgpu

from boostr import Tensor
from boostr.ops import core


@pytest.fixture(params=("bare", "discrete"))
def other(request):
    """With nothing; and with subgroups of a known size, vectors, and more threads."""
    caps = BARE
    if request.param == "discrete":
        # lavapipe runs the lanes of a vector side by side (`conftest.py`), whatever it may do
        n = int(os.environ["LP_NATIVE_VECTOR_WIDTH"]) // 32
        lanes = {"subgroup_min": n, "subgroup_max": n}
        given = on_hardware(open_backend("wgpu"))
        caps = {} if given else {"kind": "discrete", "workgroup_threads": n * n, **lanes}
    with strict_wgpu(**caps) as backend:
        yield backend


@pytest.mark.parametrize("kind", ["normal", "equal", "few"])
def test_draws(kind, other, rng):
    check_draws(other, logits(kind, 2052, "float32", rng), rng)


def test_argmax(other, rng):
    x = normal(rng, (2, 13_000))
    for values in (x, x[:, :12_999], x[:, :3000]):
        got = core.argmax(Tensor(values, backend=other), -1).numpy()
        np.testing.assert_array_equal(got, values.argmax(-1))
