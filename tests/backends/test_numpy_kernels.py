"""The CPU kernels against the oracle, strictly (no composite steps in), on 1 and on 2 threads."""

import numpy as np
import oracles
import oracles_rows
import pytest
from draws import normal, tensors
from ops.test_rows import draw as rows_of_state
from packed import BLOCKS, draw
from tolerance import assert_close

from boostr import Tensor, backends, capture, dispatch, dtypes, ops
from boostr.errors import FallbackError
from boostr.nn import fusion
from boostr.operands import Norm
from boostr.ops import core
from boostr.ops.quant import quantize

pytest.importorskip("numba")
from boostr.backends.numpy.runtime import threads

# One element, below a vector, off the vectors, off the steps of four vectors, a model's width.
WIDTHS = (1, 5, 16, 37, 100, 576, 1000)
widths = pytest.mark.parametrize("E", WIDTHS)


@pytest.fixture(params=(1, 2), autouse=True)
def pool(request, monkeypatch):
    """A thread pool of its own size for each test."""
    made = threads.Pool(request.param)
    monkeypatch.setattr(threads, "_pool", made)
    with dispatch.strict():
        yield made
    made.close()


@pytest.fixture
def numpy_backend():
    return backends.get("numpy")


def columns(x: np.ndarray, rest: int = 3) -> np.ndarray:
    """x as the first columns of a wider matrix, as a fused product gives it."""
    room = np.full((*x.shape[:-1], x.shape[-1] + rest), np.nan, x.dtype)
    room[..., : x.shape[-1]] = x
    return room[..., : x.shape[-1]]


# -- norm ----------------------------------------------------------------------------------------
@widths
@pytest.mark.parametrize("residual", (False, True))
def test_rms_norm(E, residual, numpy_backend, rng):
    x, r, w = normal(rng, (7, E)), normal(rng, (7, E)), normal(rng, (E,))
    r = r if residual else None
    want, h = oracles.rms_norm(x, w, 1e-5, r, 1.0)
    a, b, c = tensors(numpy_backend, columns(x), r, w)
    got = ops.rms_norm(a, c, eps=1e-5, residual=b, weight_offset=1.0)
    if residual:
        got, sums = got
        assert_close(sums.numpy(), h, dtype="float32", reduce=2)
    assert_close(got.numpy(), want, dtype="float32", reduce=E)


@widths
@pytest.mark.parametrize("residual", (False, True))
@pytest.mark.parametrize("with_bias", (False, True))
def test_layer_norm(E, residual, with_bias, numpy_backend, rng):
    x, r, w, bias = (normal(rng, s) for s in ((7, E), (7, E), (E,), (E,)))
    r, bias = r if residual else None, bias if with_bias else None
    want, h = oracles.layer_norm(x, w, bias, 1e-2, r)
    a, b, c, d = tensors(numpy_backend, columns(x), r, w, bias)
    got = ops.layer_norm(a, c, d, eps=1e-2, residual=b)
    if residual:
        got, sums = got
        assert_close(sums.numpy(), h, dtype="float32", reduce=2)
    # near-equal inputs cancel: the error of the mean is divided by sqrt(eps) at worst
    assert_close(got.numpy(), want, dtype="float32", reduce=E, scale=4)


@pytest.mark.parametrize("kind", ("rms", "layer"))
@pytest.mark.parametrize(("E", "factor"), ((37, 1.0), (576, 0.22)))
def test_add_norm(E, factor, kind, numpy_backend, rng):
    x, r, w, bias = (normal(rng, s) for s in ((7, E), (7, E), (E,), (E,)))
    if kind == "rms":
        y, bias = oracles.rms_norm(x, w, 1e-2, None, 1.0)[0], None
    else:
        y = oracles.layer_norm(x, w + 1.0, bias, 1e-2)[0]
    a, b, c, d = tensors(numpy_backend, columns(x), r, w, bias)
    norm = Norm(kind, c, d, 1e-2, 1.0)
    program = capture(lambda: fusion.add_norm(a, norm, b, factor), numpy_backend)
    assert program.calls() == [f"norm.{kind}_norm"]
    assert_close(program.outputs.numpy(), r + factor * y, dtype="float32", reduce=E, scale=4)


def test_add_norm_refuses_what_it_would_do_wrong(numpy_backend, rng):
    x, w = tensors(numpy_backend, normal(rng, (7, 16)), normal(rng, (16,)))
    supports = numpy_backend.kernel("add_norm").supports
    assert "bias" in supports(x, Norm("rms", w, w, 1e-5, 0.0), x, 1.0)
    assert "residual" in supports(x, Norm("rms", w, None, 1e-5, 0.0), x[:1], 1.0)
    assert "bfloat16" in supports(x, Norm("rms", w.to("bfloat16"), None, 1e-5, 0.0), x, 1.0)


def test_norm_of_heads_in_a_fused_product(numpy_backend, rng):
    x, w = columns(normal(rng, (5, 3 * 24)), 48), normal(rng, (24,))
    heads, weight = tensors(numpy_backend, x, w)
    got = ops.rms_norm(heads.reshape(5, 3, 24), weight)
    want, _ = oracles.rms_norm(x.reshape(5, 3, 24), w)
    assert_close(got.numpy(), want, dtype="float32", reduce=24)


# -- rope ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ("split-half", "interleaved"))
@pytest.mark.parametrize(("D", "half"), ((64, 32), (80, 40), (80, 16), (6, 3), (5, 2), (128, 64)))
def test_rope(layout, D, half, numpy_backend, rng):
    x = columns(normal(rng, (9, 3 * D)), 2 * D)
    cos, sin = normal(rng, (5000, half)), normal(rng, (5000, half))
    positions = np.array([0, 1, 4999, 4097, 7, 7, 3, 2, 1], np.int32)
    a, c, s, p = tensors(numpy_backend, x, cos, sin, positions)
    got = ops.rope(a.reshape(9, 3, D), c, s, p, layout=layout)
    want = oracles.rope(x.reshape(9, 3, D), cos, sin, positions, layout == "interleaved")
    assert_close(got.numpy(), want, dtype="float32", reduce=2)


# -- activations and softmax ---------------------------------------------------------------------
ACTIVATIONS = {
    "silu": (ops.silu, oracles.silu, 1),
    "gelu": (ops.gelu, oracles.gelu, 1),
    "gelu-tanh": (lambda x: ops.gelu(x, "tanh"), lambda x: oracles.gelu(x, "tanh"), 1),
    "swiglu": (ops.swiglu, oracles.swiglu, 2),
    "geglu": (ops.geglu, oracles.geglu, 2),
    "geglu-tanh": (
        lambda g, u: ops.geglu(g, u, "tanh"), lambda g, u: oracles.geglu(g, u, "tanh"), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("F", (1, 37, 512, 1536))
def test_activation(name, F, numpy_backend, rng):
    op, oracle, count = ACTIVATIONS[name]
    x = normal(rng, (5, 2 * F), scale=4)
    x[0, 0], x[1, 0] = 1000, -1000
    parts = [x[:, :F], x[:, F:]][:count]
    got = op(*tensors(numpy_backend, *parts))
    assert_close(got.numpy(), oracle(*parts), dtype="float32", reduce=1, scale=4)


@widths
def test_softmax(E, numpy_backend, rng):
    x = columns(normal(rng, (6, E), scale=20))
    x[1, : E // 2] = -np.inf
    (a,) = tensors(numpy_backend, x)
    assert_close(ops.softmax(a).numpy(), oracles.softmax(x), dtype="float32", reduce=E)
    got = ops.log_softmax(a).numpy()
    assert_close(got, oracles.log_softmax(x), dtype="float32", reduce=E, scale=20)


def test_a_nan_spreads_over_its_row(numpy_backend, rng):
    x = normal(rng, (2, 40))
    x[1, 7] = np.nan
    for op in (ops.softmax, ops.log_softmax):
        bad = np.isnan(op(*tensors(numpy_backend, x)).numpy())
        assert bad[1].all() and not bad[0].any()


def test_softmax_of_nothing_visible(numpy_backend):
    (x,) = tensors(numpy_backend, np.full((2, 40), -np.inf, np.float32))
    assert not ops.softmax(x).numpy().any()


# -- embedding -----------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
@pytest.mark.parametrize("E", (5, 64, 100))
@pytest.mark.parametrize("index", ("int32", "int64"))
def test_embedding(dtype, E, index, numpy_backend, rng):
    table, ids = normal(rng, (50, E), dtype), rng.integers(0, 50, 11).astype(index)
    got = ops.embedding(*tensors(numpy_backend, ids, table), "float32")
    assert got.dtype == dtypes.float32
    assert np.array_equal(got.numpy(), oracles.embedding(ids, table))


@pytest.mark.parametrize("scheme", ("int8", "int8-g32", "int8-g64", "int8-g128", "w8a8"))
@pytest.mark.parametrize("E", (64, 100, 576))
def test_embedding_int8(scheme, E, numpy_backend, rng):
    table, ids = tensors(numpy_backend, normal(rng, (50, E)), rng.integers(0, 50, 7, np.int32))
    with dispatch.strict(False):
        packed = quantize(table, scheme)
    values, scales = (packed.parts[name].numpy() for name in ("codes", "scales"))
    want = oracles.dequantize_int8(values, scales, packed.scheme.group_size or E)[ids.numpy()]
    assert_close(ops.embedding(ids, packed).numpy(), want, dtype="float32", reduce=1, c=1)


@pytest.mark.parametrize("scheme", BLOCKS)
def test_embedding_blocks(scheme, numpy_backend, rng):
    w, truth = draw(numpy_backend, rng, scheme, 20, 768)
    (ids,) = tensors(numpy_backend, rng.integers(0, 20, 7, np.int32))
    got = ops.embedding(ids, w).numpy()
    assert_close(got, truth[ids.numpy()], dtype="float32", reduce=1)
    assert np.array_equal(got, ops.dequantize(w).numpy()[ids.numpy()])


# -- quantization --------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
@pytest.mark.parametrize("scheme", ("int8", "int8-g32", "int8-g128"))
@pytest.mark.parametrize("K", (1, 100, 576))
def test_quantize_and_back(dtype, scheme, K, numpy_backend, rng):
    w = normal(rng, (300, K), dtype)
    w[3] = 0
    (tensor,) = tensors(numpy_backend, w)
    packed = quantize(tensor, scheme)
    group = packed.scheme.group_size or K
    values, scales = oracles.quantize_int8(w, group)
    assert np.array_equal(packed.parts["scales"].numpy(), scales)
    assert np.array_equal(packed.parts["codes"].numpy(), values)
    want = oracles.dequantize_int8(values, scales, group)
    assert_close(ops.dequantize(packed).numpy(), want, dtype="float32", reduce=1, c=1)


# -- cache ---------------------------------------------------------------------------------------
def test_slots_and_kv_write(numpy_backend, rng):
    table = rng.permutation(24).reshape(2, 12)[:, :10].astype(np.int32)
    table[1, 3] = -1
    positions = np.arange(55, dtype=np.int32) % 38
    owner = (np.arange(55) >= 38).astype(np.int32)
    owner[[7, 54]] = -1
    got = ops.slot_mapping(*tensors(numpy_backend, positions, owner, table), 4)
    block = np.where(owner < 0, -1, table[owner, positions // 4 % 10])
    want = np.where(block < 0, -1, block * 4 + positions % 4)
    assert np.array_equal(got.numpy(), want)
    k, v = columns(normal(rng, (55, 3 * 8))).reshape(55, 3, 8), normal(rng, (55, 3, 5))
    caches = normal(rng, (24, 4, 3, 8)), normal(rng, (24, 4, 3, 5))
    wanted = [oracles.kv_write(c, x, want) for c, x in zip(caches, (k, v), strict=True)]
    parts = tensors(numpy_backend, k, v, *caches)
    ops.kv_write(*parts, got)
    for tensor, expected in zip(parts[2:], wanted, strict=True):
        assert np.array_equal(tensor.numpy(), expected)


def test_rows_of_state(numpy_backend, rng):
    state, chosen = rows_of_state(rng, 300), rng.integers(-1, 50, 260).astype(np.int32)
    (held,) = tensors(numpy_backend, state.copy())
    for places in (None, rng.permutation(300)[:260].astype(np.int32)):
        ops.advance_rows(held, *tensors(numpy_backend, chosen, places))
        state = oracles_rows.advance_rows(state, chosen, places)
        assert np.array_equal(held.numpy(), state)


# -- choosing tokens -----------------------------------------------------------------------------
@pytest.mark.parametrize("V", (1, 15, 1000, 49152))
def test_argmax(V, numpy_backend, rng):
    x = columns(normal(rng, (5, V)))
    x[1, V // 2] = x[1, V - 1] = 9  # the first of equals
    x[2] = -np.inf
    (a,) = tensors(numpy_backend, x)
    assert np.array_equal(core.argmax(a, -1).numpy(), x.argmax(-1))
    x[3, V - 1] = np.nan
    (a,) = tensors(numpy_backend, x)
    expected = np.where(np.isfinite(x.max(-1)), x.argmax(-1), -1)
    assert np.array_equal(ops.greedy(a).numpy(), expected)


@pytest.mark.parametrize("V", (1, 40, 5000))
def test_penalize_and_record(V, numpy_backend, rng):
    x, counts = normal(rng, (3, V), scale=3), rng.integers(0, 3, (3, V), np.int32)
    seen = ((rng.random((3, V)) < 0.3) | (counts > 0)).astype(np.uint8)
    rates = [normal(rng, (3,)) ** 2 + low for low in (1, 0, 0)]
    a, s, c, *rest = tensors(numpy_backend, columns(x), seen, counts, *rates)
    ids, before = np.array([0, V - 1, -1], np.int32), int(counts.sum())
    got = ops.penalize(a, s, c, *rest)
    tokens, bias = np.array([[0, -1], [V, V - 1], [-5, 0]], np.int32), normal(rng, (3, 2))
    ops.add_bias(got, *tensors(numpy_backend, tokens, bias))
    got = got.numpy()
    for b in range(3):
        output = np.repeat(np.arange(V), counts[b])
        want = oracles.penalize(x[b], np.flatnonzero(seen[b]), output, *(r[b] for r in rates))
        known = (tokens[b] >= 0) & (tokens[b] < V)
        want[tokens[b, known]] += bias[b, known]
        assert_close(got[b], want, dtype="float32", reduce=4, scale=9)
    ops.record_tokens(*tensors(numpy_backend, ids), s, c)
    assert s.numpy()[0, 0] == s.numpy()[1, V - 1] == 1
    assert c.numpy().sum() == before + (ids >= 0).sum()


FILTERS = [(0, 1.0, 0.0), (1, 1.0, 0.0), (40, 1.0, 0.0), (0, 0.9, 0.0), (0, 0.3, 0.0),
           (0, 1.0, 0.1), (500, 0.9, 0.0), (50, 0.95, 0.05), (0, 0.9, 0.5)]  # fmt: skip


@pytest.mark.parametrize("spread", (0.1, 1.0, 4.0, 30.0))
@pytest.mark.parametrize("V", (7, 1000, 20000))
def test_sample_draws_what_the_definition_says(V, spread, numpy_backend, rng):
    """The kernel's token must be the composite's; sums in float64 may move a draw by one place."""
    B = len(FILTERS)
    x = normal(rng, (B, V), scale=spread)
    x[:, ::5] = -np.inf if V > 7 else 0.5
    k, p, m = (np.array(c, t) for c, t in zip(zip(*FILTERS, strict=True), ("i4", "f4", "f4"),
                                               strict=True))  # fmt: skip
    heat = np.array([1.0, 0.7, 2.0] * (B // 3), np.float32)
    apart = 0
    for counter in range(5):
        seeds, counters = rng.integers(0, 2**32, (B, 2), np.uint32), np.full(B, counter, np.int32)
        args = tensors(numpy_backend, columns(x), heat, k, p, m, seeds, counters)
        got = ops.sample(*args).numpy()
        with dispatch.strict(False):
            want = ops.sampling._sample.composite(*args).numpy()
        for b in np.flatnonzero(got != want):
            order = np.argsort(-x[b], kind="stable")
            places = [int(np.flatnonzero(order == token)[0]) for token in (got[b], want[b])]
            assert abs(places[0] - places[1]) <= 1 + V // 5000, (b, places)
            apart += 1
    assert apart <= B


def test_sample_ties_and_temperature_zero(numpy_backend):
    x = np.zeros((3, 3000), np.float32)
    x[2, 1234] = x[2, 2345] = 1
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    heat = np.array([1, 1, 0], np.float32)
    seeds = np.array([[1, 2], [1, 2], [5, 6]], np.uint32)
    none = np.zeros(3, np.int32)
    args = tensors(numpy_backend, x, heat, none, one, zero, seeds, np.array([3, 3, 0], np.int32))
    got = ops.sample(*args).numpy()
    assert got[0] == got[1] and got[2] == 1234


# -- refusals and programs -----------------------------------------------------------------------
def test_refusals_name_the_reason(numpy_backend, rng):
    x, w = tensors(numpy_backend, normal(rng, (2, 8), "float64"), normal(rng, (8,), "float64"))
    with pytest.raises(FallbackError, match="float64 is not float32"):
        ops.rms_norm(x, w)
    with pytest.raises(FallbackError, match="axis 0 is not the last"):
        ops.softmax(Tensor(normal(rng, (2, 8)), backend=numpy_backend), 0)


def test_program_repeats_what_was_captured(numpy_backend, rng):
    x, r, w = normal(rng, (3, 64)), normal(rng, (3, 64)), normal(rng, (64,))
    a, b, c = tensors(numpy_backend, x, r, w)

    def step():
        y, h = ops.rms_norm(a, c, residual=b)
        return ops.swiglu(y, ops.softmax(h)), core.argmax(h, -1)

    program = capture(step, numpy_backend)
    assert all("numpy" not in line for line in program.describe())
    a.data[...] = normal(rng, (3, 64))
    program.run()
    for got, want in zip(program.outputs, step(), strict=True):
        assert np.array_equal(got.numpy(), want.numpy())
