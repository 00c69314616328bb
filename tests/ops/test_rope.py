"""rope against the oracle, and its tables for every scaling type."""

import math

import numpy as np
import oracles
import pytest
from draws import leaves, normal, refused, strided, tensors
from tolerance import assert_close

from boostr import dtypes
from boostr.autograd import gradcheck
from boostr.errors import DTypeError, OptionError, ShapeError
from boostr.ops.rope import LAYOUTS, rope
from boostr.ops.rope_tables import RopeConfig, decode_tables, frequencies, prompt_tables

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 512}  # fmt: skip
LONG = {"short_factor": list(np.linspace(1, 1.5, 8)), "long_factor": list(np.linspace(2, 9, 8)),
        "original_max_position_embeddings": 64}  # fmt: skip
SCALINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": LLAMA3,
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-mscale": {"factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7,
                    "mscale_all_dim": 1.1, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    "yarn-factor": {"original_max_position_embeddings": 64, "attention_factor": 1.25},
    "longrope": LONG,
    "longrope-factor": LONG | {"factor": 16.0, "attention_factor": 1.3},
}  # fmt: skip
LIMIT = 256


def draw(rng, T, H, D, R, dtype, S=64):
    x = normal(rng, (T, H, D), dtype)
    cos, sin = oracles.rope_tables(np.arange(S), 10000.0 ** -(np.arange(0, R, 2) / R))
    positions = rng.integers(0, S, T).astype(np.int32)
    return x, cos.astype(np.float32), sin.astype(np.float32), positions


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("D", "R"), [(64, 64), (80, 80), (96, 48), (128, 128), (256, 64), (8, 2)])
def test_rope(D, R, layout, backend, dtype, rng):
    x, cos, sin, positions = draw(rng, 7, 3, D, R, dtype)
    got = rope(*tensors(backend, strided(x), cos, sin, positions), layout=layout)
    want = oracles.rope(x, cos, sin, positions, interleaved=layout == "interleaved")
    assert got.dtype == x.dtype
    # tables are float32 also for float64 inputs; the oracle reads the same ones
    assert_close(got.numpy(), want, dtype=dtype, reduce=2)


@pytest.mark.parametrize("T", [0, 1, 300])
def test_numbers_of_tokens(T, backend, rng):
    x, cos, sin, positions = draw(rng, T, 2, 16, 16, "float32")
    got = rope(*tensors(backend, x, cos, sin, positions))
    assert_close(got.numpy(), oracles.rope(x, cos, sin, positions), dtype="float32", reduce=2)


def test_positions_past_4096(backend, rng):
    """At position p the float32 angle is off by p · eps / 2: that is transformers' rounding too."""
    x = normal(rng, (4, 2, 64))
    positions = np.array([0, 4095, 4097, 8191], np.int32)
    cos, sin = prompt_tables(RopeConfig(64, max_positions=8192), 8192)
    got = rope(*tensors(backend, x, cos, sin, positions)).numpy()
    inverse, factor = oracles.rope_inv_freq(64, {"rope_theta": 10000.0}, 8192)
    want = oracles.rope(x, *oracles.rope_tables(np.arange(8192), inverse, factor), positions)
    assert_close(got, want, dtype="float32", reduce=1, scale=1 + positions[:, None, None], c=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("R", [4, 6])
def test_gradient(R, layout, backend64, rng):
    x, cos, sin, positions = draw(rng, 3, 2, 6, R, "float32")
    tables = tensors(backend64, cos.astype(np.float64), sin.astype(np.float64), positions)
    gradcheck(lambda x: rope(x, *tables, layout=layout), leaves(backend64, x))


# -- tables --------------------------------------------------------------------------------------
def config(name, R=16):
    kind = name.partition("-")[0]
    return RopeConfig(R, 5000.0, LIMIT, kind, SCALINGS[name])


def oracle(name, length, R=16):
    parameters = {**SCALINGS[name], "rope_type": name.partition("-")[0], "rope_theta": 5000.0}
    return oracles.rope_inv_freq(R, parameters, LIMIT, length)


@pytest.mark.parametrize("length", [1, 60, 65, 250, 257, 1000])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies(name, length):
    inverse, factor = frequencies(config(name), length)
    want, want_factor = oracle(name, length)
    np.testing.assert_allclose(inverse, want, rtol=1e-12)
    assert factor == pytest.approx(want_factor, rel=1e-12)


@pytest.mark.parametrize("name", SCALINGS)
def test_prompt_tables(name):
    length = 300
    got = prompt_tables(config(name), length)
    want = oracles.rope_tables(np.arange(length), *oracle(name, length))
    for table, truth in zip(got, want, strict=True):
        assert table.dtype == np.float32 and table.shape == (length, 8)
        assert_close(
            table, truth, dtype="float32", reduce=1, c=2, scale=np.arange(length)[:, None] + 1
        )


@pytest.mark.parametrize("name", SCALINGS)
def test_decode_tables(name):
    """Row p is the last row of a prompt of p + 1."""
    length = 300
    got = decode_tables(config(name), length)
    for p in (0, 63, 64, 255, 256, 299):
        for table, whole in zip(got, prompt_tables(config(name), p + 1), strict=True):
            np.testing.assert_array_equal(table[p], whole[p])


def test_partial_rotary():
    parameters = {"rope_type": "default", "partial_rotary_factor": 0.25}
    want, _ = oracles.rope_inv_freq(64, parameters)
    np.testing.assert_allclose(frequencies(RopeConfig(16), 5)[0], want, rtol=1e-12)


def test_refuses_configs():
    with refused(OptionError, "rope", "'su'", "longrope"):
        RopeConfig(16, rope_type="su")
    with refused(OptionError, "rope", "even", "15"):
        RopeConfig(15)
    for theta in (0.0, -1.0, math.nan, math.inf):
        with refused(OptionError, "rope", "theta must be above 0"):
            RopeConfig(16, theta)
    for factor, message in ((0, "factor must be above 0"), ("big", "factor must be a number")):
        with refused(OptionError, "rope", message):
            RopeConfig(16, rope_type="linear", parameters={"factor": factor})
    with refused(OptionError, "rope", "'linear'", "'factor'"):
        frequencies(RopeConfig(16, rope_type="linear"), 4)
    with refused(OptionError, "rope", "'llama3'", "'low_freq_factor'"):
        frequencies(RopeConfig(16, rope_type="llama3", parameters={"factor": 8.0}), 4)
    with refused(OptionError, "longrope", "short_factor", "8", "3"):
        bad = {**LONG, "short_factor": [1, 2, 3]}
        frequencies(RopeConfig(16, rope_type="longrope", parameters=bad), 4)


def test_refuses(rng):
    x, cos, sin, positions = tensors("numpy", *draw(rng, 3, 2, 8, 8, "float32"))
    with refused(OptionError, "rope", "split-half", "'neox'"):
        rope(x, cos, sin, positions, layout="neox")
    with refused(ShapeError, "rope", "[T, H, D]", "[3, 2]"):
        rope(x[:, :, 0], cos, sin, positions)
    with refused(ShapeError, "rope", "float", "int32"):
        rope(x.to("int32"), cos, sin, positions)
    with refused(ShapeError, "rope", "[S, R/2]", "R <= D = 4", "[64, 4]"):
        rope(x[:, :, :4], cos, sin, positions)
    with refused(ShapeError, "rope", "[64, 4]", "[63, 4]"):
        rope(x, cos, sin[1:], positions)
    with refused(ShapeError, "rope", "[T] = [3]", "[2]"):
        rope(x, cos, sin, positions[:2])
    with refused(DTypeError, "rope", "int32", "float32"):
        rope(x, cos, sin, positions.to(dtypes.float32))
