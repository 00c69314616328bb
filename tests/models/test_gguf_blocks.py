"""Blocks of GGUF as planes: whole, in bands, in parts and in stacks, bit for bit what they mean."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from packed import TYPES, draw_blocks

from boostr import backends, ops
from boostr.io.gguf import GGUFFile
from boostr.models.gguf import gguf_weights

N, K = 7, 512
kinds = pytest.mark.parametrize("scheme", [name for name in TYPES if name != "q2_0"])


@pytest.fixture
def written(tmp_path):
    """written(scheme, lead) -> (weight w [*lead, N, K] of a file, its values in float64)."""

    def make(scheme, *lead):
        rng = np.random.default_rng(3)
        count = int(np.prod(lead, dtype=int)) * N
        raw = draw_blocks(rng, scheme, count, K)
        writer = GGUFWriter(tmp_path / "x.gguf", "llama")
        kind = GGMLQuantizationType[scheme.upper()]
        writer.add_tensor("w", raw.reshape(*lead, N, -1), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        values = TYPES[scheme](raw).reshape(*lead, N, K)
        return gguf_weights(GGUFFile(tmp_path / "x.gguf"))["w"], values

    return make


def numbers(weight):
    got = ops.dequantize(weight.weight(backends.get("numpy"))).numpy()
    assert got.dtype == np.float32
    return got


@kinds
@pytest.mark.parametrize("band", [1, 1000, 2**24])
def test_bands(written, scheme, band, monkeypatch):
    monkeypatch.setattr(ops.blocks, "_BAND", band)
    weight, values = written(scheme)
    assert np.array_equal(numbers(weight), values.astype(np.float32))


@kinds
def test_rows_and_columns(written, scheme):
    weight, values = written(scheme)
    got = numbers(weight.take(0, np.array([5, 0, 2])).columns(256, 512))
    assert np.array_equal(got, values[[5, 0, 2], 256:].astype(np.float32))


@kinds
def test_stacks_of_experts(written, scheme):
    weight, values = written(scheme, 3)
    packed = weight.weight(backends.get("numpy"))
    for index in range(3):
        got = ops.dequantize(packed.expert(index)).numpy()  # type: ignore[union-attr]
        assert np.array_equal(got, values[index].astype(np.float32))
