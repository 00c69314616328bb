"""Floats as blocks of GGUF: how near they are, as the gguf package reads them, and that neither
threads nor bands show."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from draws import normal

from boostr.errors import NumericsError
from boostr.quant.gguf import BLOCK_TYPES, rounding
from boostr.quant.gguf.rounding import ROUNDED, round_blocks

# what the gguf package rounds too, without a search
PLAIN = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def decoded(kind, rows):
    return gguf.dequantize(rows, gguf.GGMLQuantizationType[kind])


def weighted(x, got, group):
    """The errors of groups, of which large numbers' count more."""
    x, got = (a.reshape(-1, group).astype(np.float64) for a in (x, got))
    weights = np.sqrt((x * x).mean(1, keepdims=True)) + np.abs(x)
    return (weights * (got - x) ** 2).sum(1)


@pytest.mark.parametrize("kind", PLAIN)
def test_no_group_is_farther_than_without_a_search(kind, rng):
    x = normal(rng, (40, 256), "float32")
    kinds = gguf.GGMLQuantizationType[kind]
    ours, theirs = (
        weighted(x, decoded(kind, rows), 32)
        for rows in (round_blocks(kind, x), gguf.quantize(x, kinds))
    )
    assert (ours <= theirs * 1.01).mean() > 0.98 or kind == "Q8_0"  # which is not searched for
    assert ours.sum() < (1.0 if kind == "Q8_0" else 0.9) * theirs.sum()


@pytest.mark.parametrize("kind", ROUNDED)
def test_neither_threads_nor_bands_show(kind, rng, monkeypatch):
    x = normal(rng, (37, 512), "float32")
    want = round_blocks(kind, x)
    monkeypatch.setattr(rounding, "_PIECE", 5 * 512)
    monkeypatch.setenv("BOOSTR_NUM_THREADS", "3")
    np.testing.assert_array_equal(round_blocks(kind, x), want)
    step = np.abs(x).max() / (1 << BLOCK_TYPES[kind].scheme.bits - 1)
    assert np.abs(decoded(kind, want) - x).mean() < 0.4 * step


@pytest.mark.parametrize("kind", ROUNDED)
def test_rows_that_are_hard(kind):
    """Zeros, one number alone, one sign, all alike, numbers that scales cannot reach."""
    x = np.zeros((6, 256), np.float32)
    x[1, 17], x[2], x[3], x[4], x[5] = 0.5, np.linspace(0, 1, 256), -3.0, 1e-40, 2.0**-20
    got = decoded(kind, round_blocks(kind, x))
    assert (got[0] == 0).all() and np.isfinite(got).all()
    np.testing.assert_allclose(got[1, 17], 0.5, rtol=0.15)
    np.testing.assert_allclose(got[3], -3.0, rtol=0.15)
    assert np.abs(got[4]).max() < 1e-7 and np.abs(got[5]).max() < 2.0**-18
    with pytest.raises(NumericsError, match="nan or infinite"):
        round_blocks(kind, np.where(x == 0.5, np.nan, x))


@pytest.mark.parametrize("kind", ["Q3_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0"])
def test_the_nearest_number_and_of_two_the_lower(kind, rng):
    nearest = rounding._nearest(BLOCK_TYPES[kind].scheme)
    numbers = nearest.numbers.astype(np.float64)
    ordered = np.unique(numbers)
    middles = (ordered[1:] + ordered[:-1]) / 2
    edges = [np.nextafter(np.float32(m), np.float32(to)) for m in middles for to in (-1e9, 1e9)]
    x = np.concatenate([normal(rng, (500,), "float32", 40), np.float32(middles), edges, ordered])
    x = x.astype(np.float32)
    want = ordered[np.abs(x[:, None] - ordered).argmin(1)]  # of two the first
    found = np.empty_like(x)
    nearest.found(2 * x, found)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(numbers[nearest.codes(x)], want)
