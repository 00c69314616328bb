"""Views and what shares memory, against numpy, and their gradients."""

import numpy as np
import pytest
from draws import leaves, normal, tensors

from boostr import Tensor, full
from boostr.autograd import gradcheck
from boostr.ops import core


@pytest.mark.parametrize(
    "key",
    [
        2, -1, slice(1, None), slice(None, None, -1), slice(3, 0, -2), ..., None,
        (0, slice(None), 1), (..., 0), (slice(None), None, 1), (1, ..., None), (0, 0, 0),
        slice(5, 9),
    ],
    ids=str,
)  # fmt: skip
def test_index(key, plain_backend, rng):
    x = normal(rng, (4, 3, 2))
    np.testing.assert_array_equal(Tensor(x, backend=plain_backend)[key].numpy(), x[key])


def test_index_by_integers(plain_backend, rng):
    x, i = normal(rng, (4, 3)), np.array([2, 2, 0], np.int32)
    t = Tensor(x, backend=plain_backend)
    for key in (i, i.tolist(), Tensor(i, backend=plain_backend)):
        np.testing.assert_array_equal(t[key].numpy(), x[i])


@pytest.mark.parametrize("key", [1, slice(None, None, -2), (..., 1), (slice(1, 3), None)], ids=str)
def test_index_gradient(key, backend64, rng):
    gradcheck(lambda x: x[key], leaves(backend64, normal(rng, (4, 3))))


def test_views_share_memory(plain_backend, rng):
    x = Tensor(normal(rng, (4, 6)), backend=plain_backend)
    views = [x.reshape(2, 12), x.T, x[1:], x[:, ::2], x.reshape(4, 2, 3).permute(1, 0, 2)]
    x.assign(np.zeros((4, 6), np.float32))
    assert not any(np.any(v.numpy()) for v in views)


def test_reshape_of_a_strided_view_copies(plain_backend, rng):
    x = normal(rng, (4, 6))
    got = Tensor(x, backend=plain_backend).T.reshape(8, 3)
    np.testing.assert_array_equal(got.numpy(), x.T.reshape(8, 3))


def test_contiguous_copies_only_what_is_not(plain_backend, rng):
    x = Tensor(normal(rng, (4, 6)), backend=plain_backend)
    y = x.T.contiguous()
    assert plain_backend.is_contiguous(y.data) and not plain_backend.is_contiguous(x.T.data)
    assert full((), 3, backend=plain_backend).contiguous().shape == ()
    copied = plain_backend.copy(x.data)
    x.assign(np.zeros((4, 6), np.float32))
    assert np.all(Tensor.wrap(copied, plain_backend).numpy() != 0)


def test_views_gradient(backend64, rng):
    x = normal(rng, (2, 3, 2))
    for fn in (
        lambda x: x.reshape(3, -1),
        lambda x: x.permute(2, 0, 1),
        lambda x: x.transpose(),
        lambda x: x.T.contiguous(),
        lambda x: x.flatten().unsqueeze(-1).broadcast_to(12, 2),
        lambda x: x[:1].squeeze(0),
        lambda x: core.concat([x, x * 2], 1),
        lambda x: core.concat(core.split(x, [1, 2], 1)[::-1], 1),
    ):
        gradcheck(fn, leaves(backend64, x))


def test_concat_and_split(backend, dtype, rng):
    a, b = normal(rng, (2, 3), dtype), normal(rng, (2, 1), dtype)
    whole = core.concat(tensors(backend, a, b), -1)
    np.testing.assert_array_equal(whole.numpy(), np.concatenate([a, b], 1))
    for part, want in zip(core.split(whole, [3, 1], -1), (a, b), strict=True):
        np.testing.assert_array_equal(part.numpy(), want)


def test_bitcast(plain_backend):
    x = Tensor(np.array([[1.0, -2.0]], np.float32), backend=plain_backend)
    assert core.bitcast(x, "uint32").tolist() == [[0x3F800000, 0xC0000000]]
    assert core.bitcast(x, "uint8").shape == (1, 8)
    assert core.bitcast(core.bitcast(x, "uint16"), "float32").tolist() == [[1, -2]]
