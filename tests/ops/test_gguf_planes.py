"""Blocks of GGUF as planes: lossless for any bytes, and what the gguf package decodes."""

import gguf
import numpy as np
import packed
import pytest
from draws import normal
from hypothesis import given
from hypothesis import strategies as st

from boostr.ops import blocks as op
from boostr.ops.quant import dequantize
from boostr.quant.gguf import BLOCK_TYPES, blocks, planes
from boostr.quant.pack import pack_codes, unpack_codes

KINDS = tuple(BLOCK_TYPES)


WRITABLE = tuple(kind for kind in KINDS if BLOCK_TYPES[kind].writable)


@pytest.mark.parametrize("kind", WRITABLE)
@given(data=st.data())
def test_any_bytes_come_back(kind, data):
    """Also scales that are NaN, whose bits must not change."""
    N, G, nbytes = (
        data.draw(st.integers(0, 3)),
        data.draw(st.integers(1, 3)),
        BLOCK_TYPES[kind].nbytes,
    )
    size = N * G * nbytes
    raw = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    raw = raw.reshape(N, G * nbytes)
    made = blocks(kind, planes(kind, raw))
    if kind == "TQ1_0":  # 243 of the 256 bytes are what its writer makes of five digits
        made, raw = blocks(kind, planes(kind, made)), made
    np.testing.assert_array_equal(made, raw)


def test_what_is_written_as_which_type():
    """All but the types with a grid, whose indices are not looked for again."""
    assert set(KINDS) - set(WRITABLE) == {k for k in KINDS if k[:3] in ("IQ1", "IQ2", "IQ3")}


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_ternary_blocks_of_the_package_come_back(kind, rng):
    raw = gguf.quantize(normal(rng, (5, 512)), gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(blocks(kind, planes(kind, raw)), raw)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_the_scheme_s(kind, rng):
    block, N, G = BLOCK_TYPES[kind], 3, 2
    raw = rng.integers(0, 256, (N, G * block.nbytes)).astype(np.uint8)
    scheme, K = block.scheme, G * block.size
    want = {n: ((N, p.columns(K)), p.dtype) for n, p in scheme.parts.items()}
    got = planes(kind, raw)
    assert {name: (part.shape, part.dtype) for name, part in got.items()} == want
    assert all(part.flags.c_contiguous for part in got.values())


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_as_the_gguf_package_does(kind, backend, rng):
    """Bit for bit: products with scales are exact, and an offset is added in float32 by both."""
    block = BLOCK_TYPES[kind]
    scheme, K = block.scheme.name, 1024
    N = (10**4 if backend.name == "numpy" else 200) * block.size // K + 1
    raw = packed.draw_blocks(rng, scheme, N, K)
    want = packed.TYPES[scheme](raw).astype(np.float32)
    got = dequantize(packed.packed(backend, scheme, raw, K)).numpy()
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_one_block(kind, backend, rng):
    block = BLOCK_TYPES[kind]
    raw = packed.draw_blocks(rng, block.scheme.name, 3, block.size)
    got = dequantize(packed.packed(backend, block.scheme.name, raw, block.size)).numpy()
    want = packed.TYPES[block.scheme.name](raw).astype(np.float32)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_codes_lie_where_the_descriptor_says(bits, rng):
    codes = rng.integers(0, 1 << bits, (2, 96)).astype(np.uint8)
    parts = pack_codes(codes, bits)
    np.testing.assert_array_equal(unpack_codes(parts, bits), codes)
    low = 2 if bits < 4 else 4
    for k in range(96):
        got = field(parts["codes"], low, k)
        if bits > low:
            got = got | field(parts["high"], bits - low, k) << low
        np.testing.assert_array_equal(got, codes[:, k])


def field(plane, bits, k):
    group, i = divmod(k, 32)
    size = 4 * bits
    return plane[:, size * group + i % size] >> bits * (i // size) & (1 << bits) - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("band", [1 << 24, 3000])
def test_read_blocks(kind, band, backend, rng, monkeypatch):
    """Whole and in bands, on every backend; rows that begin at any address."""
    monkeypatch.setattr(op, "_BAND", band)
    monkeypatch.setattr(op, "_COMPOSITE_BAND", band)
    block = BLOCK_TYPES[kind]
    drawn = packed.draw_blocks(rng, block.scheme.name, 24, 512)
    rows = np.append(np.uint8(0), drawn)[1:].reshape(drawn.shape)
    w = op.read_blocks(kind, rows, (2, 12, 512), backend)
    assert w.backend is backend and w.shape == (2, 12, 512) and w.scheme is block.scheme
    for name, want in planes(kind, rows).items():
        got = w.parts[name].numpy()
        np.testing.assert_array_equal(got.view(np.uint8), want.reshape(got.shape).view(np.uint8))


def test_read_blocks_of_one_row(backend, rng):
    raw = rng.integers(0, 256, (1, 3 * 34)).astype(np.uint8)
    assert op.read_blocks("Q8_0", raw, (96,), backend).parts["codes"].shape == (96,)
    empty = op.read_blocks("Q8_0", raw[:0], (0, 96), backend)
    assert empty.shape == (0, 96)
