"""The CPU kernels read every kind of scheme, and each element bit for bit as the composite does."""

import numpy as np
import pytest
from draws import normal
from packed import product_c, tensor_of
from tolerance import assert_close, rms
from toys import TOYS, drawn, meaning

from boostr import Tensor, backends, dispatch
from boostr.errors import FallbackError
from boostr.ops.blocks import read_blocks
from boostr.ops.embedding import embedding
from boostr.ops.linear import linear
from boostr.ops.quant import dequantize
from boostr.quant.gguf import BLOCK_TYPES
from boostr.quant.scheme import Scheme

pytest.importorskip("numba")
from boostr.backends.numpy.products.planes import why_not

REFUSED = {"int8-g8": "groups of 8 inputs; kernels know 16 and multiples of 32"}
READ = [scheme for scheme in TOYS if scheme.name not in REFUSED]
TAILS = (Scheme("int8-g16", 16, offsets="bf16"), *(s for s in READ if s.bits == 8))
schemes = pytest.mark.parametrize("scheme", READ, ids=lambda scheme: scheme.name)
tails = pytest.mark.parametrize("scheme", TAILS, ids=lambda scheme: scheme.name)


@pytest.fixture
def numpy_backend():
    with dispatch.strict():
        yield backends.get("numpy")


def composite(op, monkeypatch, backend):
    with monkeypatch.context() as patch, dispatch.strict(False):
        patch.setattr(backend, "kernel", lambda name: "the test wants composites")
        return op().numpy()


def columns_apart(w):
    """The weight with its rows apart and its planes off every border."""
    parts = {}
    for name, part in w.parts.items():
        plane = part.numpy()
        N, width = plane.shape
        raw = np.zeros(N * (width + 3) + 1, plane.dtype)
        room = raw[1:].reshape(N, width + 3)[:, :width]
        room[:] = plane
        parts[name] = Tensor.wrap(room, w.backend)
    return type(w)(w.scheme, w.shape, parts)


def test_what_is_refused(numpy_backend, rng):
    found = {}
    for scheme in TOYS:
        parts = drawn(rng, scheme, 3, 768)
        reason = why_not(tensor_of(numpy_backend, scheme, (3, 768), parts))
        if reason is not None:
            found[scheme.name] = reason
    assert found == REFUSED


def test_which_blocks_of_gguf_no_kernel_reads(numpy_backend):
    """Those that are more than data: grids, base 3, a part that lies elsewhere."""
    refused = set()
    for kind, block in BLOCK_TYPES.items():
        rows = np.zeros((1, 256 // block.size * block.nbytes), np.uint8)
        try:
            read_blocks(kind, rows, (1, 256), numpy_backend)
        except FallbackError:
            refused.add(kind)
    grids = {kind for kind in BLOCK_TYPES if kind.startswith(("IQ1", "IQ2", "IQ3"))}
    assert refused == grids | {"TQ1_0", "NVFP4"}


@schemes
def test_every_bit_of_an_element(scheme, numpy_backend, rng, monkeypatch):
    """Also of scales at the ends of their range."""
    parts = drawn(rng, scheme, 12, 768)
    if parts["scales"].dtype == np.uint8:  # e8m0, e4m3
        parts["scales"][0, :4] = 0, 1, 127, 255
    else:
        parts["scales"][0, 0] = 0
        parts["scales"][1] = parts["scales"][1] * 2.0**-13  # float16: subnormal
    if scheme.values == "e4m3":
        parts["codes"][2, :256] = np.arange(256)
    w = tensor_of(numpy_backend, scheme, (12, 768), parts)
    want = composite(lambda: dequantize(w), monkeypatch, numpy_backend)
    for weight in (w, columns_apart(w)):
        np.testing.assert_array_equal(dequantize(weight).numpy(), want)
    ids = Tensor(np.array([11, 0, 7], np.int32), backend=numpy_backend)
    np.testing.assert_array_equal(embedding(ids, w, "float32").numpy(), want[[11, 0, 7]])


@tails
def test_a_row_that_ends_within_a_block(scheme, numpy_backend, rng, monkeypatch):
    for K in (100, 17, 1):
        w = columns_apart(tensor_of(numpy_backend, scheme, (5, K), drawn(rng, scheme, 5, K)))
        want = composite(lambda w=w: dequantize(w), monkeypatch, numpy_backend)
        np.testing.assert_array_equal(dequantize(w).numpy(), want)
        check_products(w, want.astype(np.float64), rng, rows=(2, 9))


@schemes
def test_products(scheme, numpy_backend, rng):
    K = 832 if 832 % scheme.multiple == 0 else 768
    parts = drawn(rng, scheme, 37, K)
    w = columns_apart(tensor_of(numpy_backend, scheme, (37, K), parts))
    check_products(w, meaning(scheme, parts, K), rng, rows=(1, 3, 20))


def check_products(w, truth, rng, rows):
    K = w.shape[1]
    for T in rows:
        x = normal(rng, (T, K))
        got = linear(Tensor(x, backend=w.backend), w).numpy()
        one = 2 * K**0.5 if T > 8 else None  # accumulator, where x is not in digits
        c = (K % 32 == 0 and product_c(w.backend, w.scheme, T)) or one
        scale = rms(x) * rms(truth)
        assert_close(got, x @ truth.T, dtype="float32", reduce=K, scale=scale, c=c)
