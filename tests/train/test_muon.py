"""Muon against its formulas in float64; what it leaves to AdamW."""

import numpy as np
import pytest
from draws import normal, tensors
from tolerance import assert_close

from boostr import Tensor, train
from boostr.train.muon import orthogonal, tables_and_head

A, B, C = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024


def turned(x):
    """Five Newton-Schulz steps, by singular values: each is moved by an odd polynomial."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / (np.sqrt((s**2).sum()) + 1e-7)
    for _ in range(5):
        s = A * s + B * s**3 + C * s**5
    return u @ np.diag(s) @ vt


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5)])
def test_orthogonal(shape, backend, rng):
    x = normal(rng, shape)
    got = orthogonal(Tensor(x, backend=backend), np.dtype("float32")).numpy()
    assert_close(got, turned(x.astype(np.float64)), dtype="float32", reduce=4096, scale=1.0)
    assert np.linalg.svd(got, compute_uv=False).min() > 0.6
    zero = Tensor(np.zeros(shape, "f4"), backend=backend)
    assert not orthogonal(zero, np.dtype("float32")).numpy().any()


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_steps(stored, backend, rng):
    """A matrix by Muon; a table, and what is no matrix, as AdamW alone moves them."""
    arrays = [normal(rng, shape, stored) for shape in ((5, 7), (6, 3), (4,))]
    params, same = tensors(backend, *arrays), tensors(backend, *(a.copy() for a in arrays))
    for p in (*params, *same):
        p.requires_grad = True
    muon = train.Muon(params, 0.05, weight_decay=0.1, adamw=[params[1]])
    adamw = train.AdamW(same[1:], 0.05, weight_decay=0.1)
    want, m = arrays[0].astype(np.float64), 0.0
    for _ in range(4):
        grads = [normal(rng, p.shape) for p in params]
        for p, other, g in zip(params, same, grads, strict=True):
            p.grad, other.grad = Tensor(g, backend=backend), Tensor(g, backend=backend)
        muon.step()
        adamw.step()
        m = 0.95 * m + 0.05 * grads[0].astype(np.float64)
        update = turned(0.95 * m + 0.05 * grads[0]) * 0.2 * np.sqrt(7)
        want = want * (1 - 0.05 * 0.1) - 0.05 * update
    tensors_held = muon.tensors()
    held = params[0] if stored == "float32" else tensors_held["master"][0]
    if stored == "float32":
        assert_close(held.numpy(), want, dtype="float32", reduce=4096, scale=1.0)
    else:  # the steps are made of products of 16 bits
        np.testing.assert_allclose(held.numpy(), want, atol=0.05 * 4 * 0.2 * np.sqrt(7) * 0.05)
    for p, other in zip(params[1:], same[1:], strict=True):
        np.testing.assert_array_equal(p.numpy(), other.numpy())
    assert [t is None for t in tensors_held["momentum"]] == [False, True, True]
    assert [t is None for t in tensors_held["v"]] == [True, False, False]


def test_tables_and_head(make):
    for tied in (True, False):
        model = make(tie_word_embeddings=tied)
        found = tables_and_head(model.module)
        names = {n for n, p in model.named_parameters() if any(p is own for own in found)}
        assert names == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})


def test_a_text_is_learnt_as_a_program(make, sequences):
    model, batch = make(), train.pack(sequences)
    optimizer = train.Muon(model.parameters(), 0.02, adamw=tables_and_head(model.module))
    step = train.compile_step(model, optimizer, tokens=40, max_sequences=6)
    losses = [step(batch).loss for _ in range(40)]
    assert losses[0] > 3.5 and losses[-1] < 0.3
