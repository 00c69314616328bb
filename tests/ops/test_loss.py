"""cross_entropy against the oracle."""

import math

import numpy as np
import oracles
import pytest
from draws import leaves, normal, refused, tensors
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.autograd import gradcheck
from boostr.errors import DTypeError, OptionError, ShapeError
from boostr.ops.loss import REDUCTIONS, cross_entropy

TARGETS = np.array([3, -100, 0, 6, -100], np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy(reduction, scale, smoothing, backend, dtype, rng):
    x = normal(rng, (5, 7), dtype, scale)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    got = cross_entropy(*tensors(backend, x, TARGETS), **options)
    assert got.dtype == (dtypes.float64 if dtype == "float64" else dtypes.float32)
    want = oracles.cross_entropy(x, TARGETS, **options)
    assert_close(got.numpy(), want, dtype=got.dtype, reduce=5, scale=scale)


def test_vocabulary(backend, rng):
    x, t = normal(rng, (3, 50_000)), np.array([0, 49_999, 7], np.int32)
    got = cross_entropy(*tensors(backend, x, t))
    assert_close(got.numpy(), oracles.cross_entropy(x, t), dtype="float32", reduce=1, scale=10)


def test_other_ignore_index(backend, rng):
    x, t = normal(rng, (3, 4)), np.array([0, 1, 2], np.int32)
    got = cross_entropy(*tensors(backend, x, t), ignore_index=1)
    assert_close(
        got.numpy(), oracles.cross_entropy(x, t, ignore_index=1), dtype="float32", reduce=1
    )


def test_no_row_counts(backend, rng):
    x, t = tensors(backend, normal(rng, (2, 4)), np.full(2, -100, np.int32))
    assert math.isnan(cross_entropy(x, t).item())
    assert cross_entropy(x, t, reduction="sum").item() == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient(reduction, smoothing, backend64, rng):
    t = Tensor(TARGETS, backend=backend64)
    gradcheck(
        lambda x: cross_entropy(x, t, reduction=reduction, label_smoothing=smoothing),
        leaves(backend64, normal(rng, (5, 7))),
    )


def test_refuses(rng):
    x, t = tensors("numpy", normal(rng, (5, 7)), TARGETS)
    with refused(ShapeError, "cross_entropy", "[T, V]", "[5, 7]", "[4]"):
        cross_entropy(x, t[:4])
    with refused(ShapeError, "cross_entropy", "[T, V]", "[7]"):
        cross_entropy(x[0], t)
    with refused(DTypeError, "cross_entropy", "float logits", "int32"):
        cross_entropy(x.to("int32"), t)
    with refused(DTypeError, "cross_entropy", "integer targets", "float32"):
        cross_entropy(x, t.to("float32"))
    with refused(OptionError, "cross_entropy", "mean", "'avg'"):
        cross_entropy(x, t, reduction="avg")
    with refused(OptionError, "cross_entropy", "0..1", "1.5"):
        cross_entropy(x, t, label_smoothing=1.5)
