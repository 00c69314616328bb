"""How Hopper's matrix products are cut up, for weights of every scheme; no device is needed."""

from types import SimpleNamespace

import pytest
from dry_cupy import Hopper

from boostr.backends.cupy.products.gemm_sm90_plan import hopper_takes, pick_warpgroups, streams
from boostr.backends.cupy.products.stored import form_refusal
from boostr.quant.forms import scheme_form
from boostr.quant.scheme import SCHEMES

BACKEND = SimpleNamespace(caps=Hopper())
FORMS = {name: form for name in SCHEMES if form_refusal(form := scheme_form(SCHEMES[name])) is None}
SHAPES = [(28672, 4096), (4096, 14336), (4096, 4096), (16384, 2048), (576, 1536), (128256, 4096)]
SHARED_BYTES = 228 << 10  # of a multiprocessor, of which each block takes 1 KB more


def weight(form, N, K, pieces=(16, 16)):
    return SimpleNamespace(form=form, N=N, K=K, pieces=pieces)


@pytest.mark.parametrize("name", FORMS)
def test_plans_fit(name):
    form = FORMS[name]
    for N, K in SHAPES:
        for M in (9, 16, 17, 32, 33, 64, 65, 300, 4096):
            weights = [weight(form, N, K)]
            if not hopper_takes(BACKEND, weights, M):
                continue
            plan = pick_warpgroups(BACKEND, weights, M)
            assert plan.stages >= 2
            assert plan.blocks * (plan.shared_bytes(form) + 1024) <= SHARED_BYTES
            assert 1 <= plan.shares <= max(1, K // 128)
            assert plan.tokens >= min(M, 64)
            assert plan.few == (streams(BACKEND, weights, M) and M <= 64)


def test_what_streams():
    """Integer codes of enough rows; not where the copy engine cannot read their high bits."""
    wide = [weight(FORMS["q6_k"], 28672, 4096)]
    assert streams(BACKEND, wide, 16)
    assert not streams(BACKEND, [weight(FORMS["q6_k"], 28672, 4096, (8, 16))], 16)
    assert not streams(BACKEND, wide, 65)
    assert not streams(BACKEND, [weight(FORMS["nf4"], 28672, 4096)], 16)
    assert not streams(BACKEND, [weight(FORMS["int8"], 16384, 2048)], 64)
    assert streams(BACKEND, [weight(FORMS["int4-g128"], 4096, 4096)], 16)
