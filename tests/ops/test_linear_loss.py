"""linear_cross_entropy: the loss of logits that are never there at once, and its gradients."""

from importlib import import_module

import numpy as np
import pytest
from draws import leaves, normal, refused, tensors
from packed import product_c
from tolerance import assert_close, rms

from boostr import Tensor, no_grad
from boostr.autograd import gradcheck
from boostr.errors import OptionError, ShapeError
from boostr.operands import LowRank
from boostr.ops import cross_entropy, linear, linear_cross_entropy, quantize

T, E, V = 13, 64, 50


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Four rows a chunk: three whole ones and a rest."""
    of_op = import_module("boostr.ops.linear_loss")
    monkeypatch.setattr(of_op, "_LOGIT_BYTES", 4 * V * 4)
    monkeypatch.setattr(of_op, "_LEAST_ROWS", 1)


def drawn(rng, dtype="float32"):
    h, w, b = normal(rng, (T, E), dtype), normal(rng, (V, E), dtype), normal(rng, (V,), "float32")
    targets = rng.integers(0, V, T).astype("i4")
    targets[[2, 5]] = -100
    return h, w, b, targets


def truth(h, w, b, targets, scale=1.0, cap=None, smoothing=0.0):
    """Losses of each row in float64."""
    logits = (np.float64(h) @ np.float64(w).T + b) * scale
    if cap is not None:
        logits = cap * np.tanh(logits / cap)
    top = logits.max(1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
    chosen = np.take_along_axis(log_p, np.maximum(targets, 0)[:, None], 1)[:, 0]
    return np.where(targets < 0, 0, -(1 - smoothing) * chosen - smoothing * log_p.mean(1))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, {"scale": 0.5, "cap": 3.0, "smoothing": 0.1}], ids=str)
def test_against_float64(reduction, options, backend, dtype, rng):
    h, w, b, targets = drawn(rng, dtype)
    want = truth(h, w, b, targets, **options)
    want = {"mean": want.sum() / (T - 2), "sum": want.sum(), "none": want}[reduction]
    th, tw, tb, tt = tensors(backend, h, w, b, targets)
    names = {"scale": "logit_scale", "cap": "softcap", "smoothing": "label_smoothing"}
    given = {names[key]: value for key, value in options.items()}
    got = linear_cross_entropy(th, tw, tt, bias=tb, reduction=reduction, **given)
    precision = "float64" if dtype == "float64" and backend != "wgpu" else "float32"
    assert got.dtype == np.dtype(precision) and got.shape == np.shape(want)
    assert_close(got.numpy(), want, dtype="float32", reduce=E * T, scale=rms(h) * rms(w))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_gradient(reduction, cap, backend64, rng, monkeypatch):
    monkeypatch.setattr(import_module("boostr.ops.linear_loss"), "_LOGIT_BYTES", 4 * 7 * 2)
    h, w, b = leaves(backend64, *(normal(rng, s) for s in ((5, 3), (7, 3), (7,))))
    targets = Tensor(np.int32([0, 6, -100, 3, 3]), backend=backend64)

    def loss(h, w, b):
        options = {"softcap": cap, "logit_scale": 1.5, "label_smoothing": 0.1}
        return linear_cross_entropy(h, w, targets, bias=b, reduction=reduction, **options)

    gradcheck(loss, [h, w, b])


@pytest.mark.parametrize("cap", [None, 2.0])
def test_a_bias_gets_gradients_that_are_not_rounded(cap, plain_backend, rng):
    """Those of logits are of 16 bits only where nothing but products of 16 bits reads them."""
    h, w, b, targets = drawn(rng, "bfloat16")
    wide = np.float64(h) @ np.float64(w).T + b
    logits = wide if cap is None else cap * np.tanh(wide / cap)
    p = np.exp(logits - logits.max(1, keepdims=True))
    d = p / p.sum(1, keepdims=True)
    d[np.arange(T), np.maximum(targets, 0)] -= 1
    d = np.where(targets[:, None] < 0, 0, d / (T - 2))
    want = (d if cap is None else d * (1 - np.tanh(wide / cap) ** 2)).sum(0)
    th, tw, tb, tt = tensors(plain_backend, h, w, b, targets)
    tb.requires_grad = True
    linear_cross_entropy(th, tw, tt, bias=tb, softcap=cap).backward()
    np.testing.assert_allclose(tb.grad.numpy(), want, rtol=0, atol=2e-4 * np.abs(want).max())


def test_as_cross_entropy_of_linear(backend, dtype, rng):
    """Value and gradients are those of the two ops, in the dtypes of what they are of."""
    h, w, _, targets = drawn(rng, dtype)
    found = []
    for chunked in (True, False):
        th, tw, tt = tensors(backend, h, w, targets)
        th.requires_grad = tw.requires_grad = True
        if chunked:
            loss = linear_cross_entropy(th, tw, tt)
        else:
            loss = cross_entropy(linear(th, tw, dtype="float32"), tt)
        (loss * 3).backward()
        assert th.grad.dtype == th.dtype and tw.grad.dtype == tw.dtype
        found.append([t.numpy().astype(np.float64) for t in (th.grad, tw.grad)])
    precision = "float32" if dtype == "float64" else dtype
    for got, want, reduce in zip(*found, (V, T), strict=True):
        assert_close(got, want, dtype=precision, reduce=reduce, scale=rms(want) + rms(w) / T)


def test_a_count_of_all_parts(backend, rng):
    """Two halves with the count of both add up to the whole."""
    h, w, _, targets = drawn(rng)
    whole = Tensor(w, backend=backend, requires_grad=True)
    th, tt = tensors(backend, h, targets)
    linear_cross_entropy(th, whole, tt).backward()
    halves = Tensor(w, backend=backend, requires_grad=True)
    for rows, count in (
        (slice(0, 6), T - 2),
        (slice(6, T), Tensor(np.float32(T - 2), backend=backend)),
    ):
        linear_cross_entropy(th[rows], halves, tt[rows], count=count).backward()
    want = whole.grad.numpy()
    assert_close(halves.grad.numpy(), want, dtype="float32", reduce=T, scale=rms(want))


def test_packed_and_adapted_heads(backend, rng):
    h, w, _, targets = drawn(rng)
    th, tw, tt, down, up = tensors(backend, h, w, targets, normal(rng, (2, E)), normal(rng, (V, 2)))
    packed = quantize(tw, "int8-g32")
    for head in (packed, LowRank(tw, down, up, 0.5), LowRank(packed, down, up, 0.5)):
        trained = [th, down, up] if isinstance(head, LowRank) else [th]
        found = []
        for loss in (
            lambda head=head: linear_cross_entropy(th, head, tt),
            lambda head=head: cross_entropy(linear(th, head), tt),
        ):
            for t in trained:
                t.requires_grad, t.grad = True, None
            value = loss()
            value.backward()
            found.append([value.numpy(), *(t.grad.numpy() for t in trained)])
        # chunks have other numbers of rows, which the CPU may cut into other digits
        c = None if getattr(head, "base", head) is tw else product_c(backend, packed.scheme, T)
        for got, want in zip(*found, strict=True):
            assert_close(got, want, dtype="float32", reduce=V, scale=rms(want), c=c)
        with no_grad():
            alone = linear_cross_entropy(th, head, tt)
        assert_close(alone.numpy(), found[1][0], dtype="float32", reduce=E, scale=1.0, c=c)


def test_no_logits_at_once(rng, monkeypatch):
    """No array of a step has more elements than a chunk's logits, or an operand."""
    h, w, _, targets = drawn(rng)
    th, tw, tt = tensors("numpy", np.tile(h, (9, 1)), w, np.tile(targets, 9))
    th.requires_grad = tw.requires_grad = True
    sizes = []
    wrap = Tensor.wrap
    monkeypatch.setattr(
        Tensor, "wrap", lambda data, backend: sizes.append(data.size) or wrap(data, backend)
    )
    linear_cross_entropy(th, tw, tt).backward()
    assert max(sizes) == th.size > 4 * V and th.size < len(th) * V * 2


def test_nothing_counts(backend):
    h, w, tt = tensors(backend, np.ones((3, 4), "f4"), np.ones((5, 4), "f4"), np.int32([-100] * 3))
    assert linear_cross_entropy(h, w, tt, reduction="sum").item() == 0
    assert np.isnan(linear_cross_entropy(h, w, tt).item())
    assert linear_cross_entropy(h[:0], w, tt[:0], reduction="sum").item() == 0


def test_refuses():
    h, w, tt = tensors("numpy", np.ones((3, 4), "f4"), np.ones((5, 4), "f4"), np.int32([0, 1, 2]))
    with refused(ShapeError, "linear_cross_entropy", "[3, 4]", "[2]"):
        linear_cross_entropy(h, w, tt[:2])
    with refused(OptionError, "linear_cross_entropy", "count", "sum"):
        linear_cross_entropy(h, w, tt, reduction="sum", count=3)
    with refused(OptionError, "linear_cross_entropy", "reduction", "total"):
        linear_cross_entropy(h, w, tt, reduction="total")
