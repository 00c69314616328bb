"""Blocks of GGUF as planes: whole, in bands, in parts and in stacks, bit for bit what they mean."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from packed import TYPES, draw_blocks

from boostr import backends, ops
from boostr.errors import ModelFileError
from boostr.io.gguf import GGUFFile
from boostr.models.gguf import gguf_weights
from boostr.models.lazy import Stack

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


def test_vectors(written):
    weight, values = written("q4_k", 3)
    vector = weight.take(0, np.array([1])).take(1, np.array([2]))
    assert np.array_equal(numbers(vector)[0, 0], values[1, 2].astype(np.float32))


def file_of(path, tensors):
    """A file of (name, data, type of GGUF; None for floats)."""
    writer = GGUFWriter(path, "llama")
    for name, data, kind in tensors:
        raw_dtype = None if kind is None else GGMLQuantizationType[kind]
        writer.add_tensor(name, data, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf_weights(GGUFFile(path))


def test_a_vector_in_blocks(tmp_path):
    raw = draw_blocks(np.random.default_rng(3), "q8_0", 1, 64)
    weights = file_of(tmp_path / "x.gguf", [("v", raw[0], "Q8_0")])
    assert np.array_equal(numbers(weights["v"]), TYPES["q8_0"](raw)[0].astype(np.float32))


@pytest.mark.parametrize(("lead", "scale"), [((), [0.375]), ((3,), [0.375]), ((3,), [2, 0.1, 3])])
def test_nvfp4_has_a_scale_of_the_whole_tensor(lead, scale, tmp_path):
    raw = draw_blocks(np.random.default_rng(3), "nvfp4", int(np.prod(lead, dtype=int)) * N, K)
    scale = np.array(scale, np.float32)
    blocks = raw.reshape(*lead, N, -1)
    tensors = [
        ("w.weight", blocks, "NVFP4"),
        ("w.scale", scale, None),
        ("w.input_scale", scale, None),
    ]
    weights = file_of(tmp_path / "x.gguf", tensors)
    assert list(weights) == ["w.weight"]
    values = TYPES["nvfp4"](raw).reshape(*lead, N, K) * scale.reshape(-1, *[1] * len(lead), 1)
    weight = weights["w.weight"]
    np.testing.assert_allclose(numbers(weight), values, rtol=2e-7)
    some = np.array([2, 0])
    cuts = [(weight.rows(1, 5), values[..., 1:5, :]), (weight.columns(256, K), values[..., 256:]),
            (weight.take(0, some), values[some]), (weight.rows(2, 6).take(0, range(0, 2)),
             values[..., 2:6, :][:2])]  # fmt: skip
    for cut, want in cuts:
        np.testing.assert_allclose(numbers(cut), want, rtol=2e-7)
    with pytest.raises(ModelFileError, match=r"'w\.weight' has a scale of its own"):
        numbers(Stack([weight, weight]))


def test_scales_of_tensors_that_do_not_fit_are_refused(tmp_path):
    raw = draw_blocks(np.random.default_rng(3), "q8_0", N, K)
    tensors = [("w.weight", raw, "Q8_0"), ("w.scale", np.ones(1, np.float32), None)]
    with pytest.raises(ModelFileError, match=r"w\.scale is a scale of all of w\.weight"):
        file_of(tmp_path / "x.gguf", tensors)


@pytest.mark.parametrize(("scheme", "at", "number"), [
    ("q8_0", 34, b"\x00\x7e"), ("q4_1", 22, b"\x00\xfc"), ("q4_k", 146, b"\x00\x7c"),
    ("iq1_s", 0, b"\x01\xfc"), ("mxfp4", 17, b"\xff"), ("nvfp4", 37, b"\x7f"),
])  # fmt: skip
def test_scales_that_are_no_numbers_are_refused_by_the_tensor_s_name(scheme, at, number, tmp_path):
    raw = draw_blocks(np.random.default_rng(3), scheme, N, K)
    raw[3, at : at + len(number)] = np.frombuffer(number, np.uint8)
    weights = file_of(tmp_path / "x.gguf", [("blk.0.w.weight", raw, scheme.upper())])
    with pytest.raises(
        ModelFileError, match=r"blk\.0\.w\.weight: its blocks of .* nan or infinite"
    ):
        weights["blk.0.w.weight"].weight(backends.get("numpy"))
