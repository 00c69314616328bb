"""How Hopper's matrix products are cut up, for weights of every scheme; no device is needed."""

from types import SimpleNamespace

import pytest
from dry_cupy import Hopper

from boostr.backends.cupy.products.gemm_sm90_plan import (
    decoded_rows,
    decodes,
    hopper_takes,
    pick_warpgroups,
    streams,
)
from boostr.backends.cupy.products.stored import form_refusal
from boostr.quant.forms import Form, scheme_form
from boostr.quant.scheme import SCHEMES

BACKEND = SimpleNamespace(caps=Hopper())
FORMS = {name: form for name in SCHEMES if form_refusal(form := scheme_form(SCHEMES[name])) is None}
SHAPES = [(28672, 4096), (4096, 14336), (4096, 4096), (16384, 2048), (576, 1536), (128256, 4096)]
SHARED_BYTES = 228 << 10  # of a multiprocessor, of which each block takes 1 KB more


def weight(form, N, K, pieces=(16, 16)):
    return SimpleNamespace(form=form, N=N, K=K, pieces=pieces, in_eights=K % 8 == 0)


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


def test_what_is_decoded():
    """Many tokens, and fewer by what is slow to decode; never what is 16 bits or int8 already."""

    def least(name):
        rows = (512, 1024, 2048, 4096)
        return next((M for M in rows if decodes([weight(FORMS[name], 4096, 4096)], M)), None)

    assert [least(name) for name in ("int8", "q8_0", "int4-g128")] == [4096] * 3
    assert [least(name) for name in ("q4_k", "q6_k", "nf4")] == [1024] * 3
    assert least("w8a8") is None
    assert not decodes([weight(Form("bf16"), 4096, 4096)], 4096)
    assert not decodes([weight(FORMS["int8"], 4096, 4100)], 4096)


def test_decoded_pieces():
    """Of whole tiles, alike, in 128 MiB or a tile more."""
    for N, K in SHAPES:
        rows = decoded_rows(N, K)
        assert rows % 128 == 0
        assert (rows - 128) * K * 2 < 128 << 20
        assert -(-N // rows) == -(-N * K * 2 // (128 << 20))
