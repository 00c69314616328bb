"""Attention against the oracle through the edge table: forward, gradients, paged, chunked."""

import numpy as np
import oracles
import pytest
from draws import every, in_turn, kernels_alone, leaves, normal, refused, strided, tensors
from ops import paged_cases
from ops.attention_cases import CASES, SINKS, SLOPES, SMALL, close, draw
from tolerance import assert_close

from boostr import Tensor, dtypes
from boostr.autograd import gradcheck
from boostr.errors import DTypeError, OptionError, ShapeError
from boostr.ops import core
from boostr.ops.attention import paged_attention, varlen_attention

BY_NAME = {case.name: case for case in CASES}
RICH = ("ragged", "prefix-hit", "everything")
FEW = (*RICH, "empty-segments", "all-empty", "no-keys", "no-queries", "tokens-outside-with-sinks")
few = pytest.mark.parametrize("case", [BY_NAME[name] for name in RICH], ids=lambda c: c.name)


def placed(backend, options):
    """Options whose arrays are tensors."""
    return {
        name: Tensor(value, backend=backend) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


def attend(backend, q, k, v, case):
    lengths = tensors(backend, case.cu_seqlens_q, case.cu_seqlens_k)
    return varlen_attention(*tensors(backend, q, k, v), *lengths, **placed(backend, case.options))


def of(case):
    return case.cu_seqlens_q, case.cu_seqlens_k


def oracle(q, k, v, case):
    return oracles.varlen_attention(q, k, v, *of(case), **case.options)


# -- forward -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", kernels_alone(FEW, list(BY_NAME)))
def test_varlen(name, backend, rng):
    case = BY_NAME[name]
    q, k, v = draw(rng, case, "float32")
    out, lse = attend(backend, q, k, v, case)
    assert out.shape == (*q.shape[:2], v.shape[2]) and lse.shape == q.shape[:2]
    close((out, lse), oracle(q, k, v, case), q, k, v, "float32", case.options)


@few
def test_varlen_dtypes(case, backend, dtype, rng):
    q, k, v = draw(rng, case, dtype)
    out, lse = attend(backend, q, k, v, case)
    assert out.dtype == q.dtype
    assert lse.dtype == (dtypes.float64 if dtype == "float64" else dtypes.float32)
    close((out, lse), oracle(q, k, v, case), q, k, v, dtype, case.options, of(case))


@few
def test_varlen_strided(case, backend, rng):
    """Views such as the thirds of a fused qkv projection."""
    q, k, v = draw(rng, case, "float32")
    close(attend(backend, strided(q), strided(k), strided(v), case), oracle(q, k, v, case),
          q, k, v, "float32", case.options)  # fmt: skip


def test_fused_projection(backend, rng):
    case = BY_NAME["ragged"]
    T, H, K, D = sum(case.len_q), case.H, case.K, case.D
    qkv = normal(rng, (T, (H + 2 * K) * D))
    fused = Tensor(qkv, backend=backend)
    q, k, v = (
        fused[:, a * D : b * D].reshape(T, b - a, D)
        for a, b in ((0, H), (H, H + K), (H + K, H + 2 * K))
    )
    lengths = tensors(backend, case.cu_seqlens_q, case.cu_seqlens_k)
    arrays = [x.numpy() for x in (q, k, v)]
    close(varlen_attention(q, k, v, *lengths, causal=True), oracle(*arrays, case), *arrays,
          "float32", case.options)  # fmt: skip


def test_mixed_dtypes(backend, rng):
    """float32 queries on a bfloat16 cache."""
    case = BY_NAME["prefix-hit"]
    (q, _, _), (_, k, v) = draw(rng, case, "float32"), draw(rng, case, "bfloat16")
    got = attend(backend, q, k, v, case)
    assert got[0].dtype == dtypes.float32
    close(got, oracle(q, k, v, case), q, k, v, "float32", case.options)


def test_packed_is_one_at_a_time(backend, rng):
    case = BY_NAME["ragged"]
    q, k, v = draw(rng, case, "float32")
    whole = attend(backend, q, k, v, case)[0].numpy()
    for a, b in zip(case.cu_seqlens_q[:-1], case.cu_seqlens_q[1:], strict=True):
        cu = np.array([0, b - a], np.int32)
        part = varlen_attention(*tensors(backend, q[a:b], k[a:b], v[a:b], cu, cu), causal=True)
        assert_close(part[0].numpy(), whole[a:b], dtype="float32", reduce=1)


# -- gradients -----------------------------------------------------------------------------------
@pytest.mark.parametrize("case", [*SMALL, BY_NAME["past-the-block"]], ids=lambda c: c.name)
def test_backward(case, backend, rng):
    q, k, v = draw(rng, case, "float32")
    dout = normal(rng, (*q.shape[:2], v.shape[2]))
    inputs = tensors(backend, q, k, v)
    for x in inputs:
        x.requires_grad = True
    lengths = tensors(backend, case.cu_seqlens_q, case.cu_seqlens_k)
    out, _ = varlen_attention(*inputs, *lengths, **placed(backend, case.options))
    out.backward(Tensor(dout, backend=backend))
    want = oracles.varlen_attention_backward(
        dout, q, k, v, case.cu_seqlens_q, case.cu_seqlens_k, **case.options
    )
    # the error of a score, times the largest factor that it meets on its way back
    size = 4 * (1 + case.scale_of_logits) * max(len(q), 1) ** 0.5 * case.D**0.5
    for x, truth in zip(inputs, want, strict=True):
        grown = size * max(np.abs(truth).max(initial=0), 1) / case.D**0.5
        assert_close(x.grad.numpy(), truth, dtype="float32", reduce=1, scale=grown)


OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "top-left": {"causal": True, "causal_alignment": "top-left"},
    "window": {"window": (1, 1)},
    "scale": {"scale": 0.8},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi_slopes": SLOPES},
    "everything": {"causal": True, "window": (2, 0), "softcap": 2.0, "alibi_slopes": SLOPES},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck(name, backend64, rng):
    cu = tensors(backend64, *(np.array(c, np.int32) for c in ([0, 2, 2, 3], [0, 3, 4, 4])))
    arrays = [normal(rng, s) for s in ((3, 4, 2), (4, 2, 2), (4, 2, 3))]
    options = placed(backend64, OPTIONS[name])
    gradcheck(
        lambda q, k, v: (lambda out, lse: out.sum(-1) * 0.7 + finite(lse))(
            *varlen_attention(q, k, v, *cu, **options)
        ),
        leaves(backend64, *arrays),
    )


def finite(lse):
    return core.where(lse > -np.inf, lse, 0.0)


@few
@pytest.mark.parametrize("M", [0, 2, 60])
def test_distance_bias(case, M, backend, rng):
    """Keys that are farther than M, and those that lie on either side of a query."""
    q, k, v = draw(rng, case, "float32")
    table = normal(rng, (case.H, 2 * M + 1))
    options = {**case.options, "distance_bias": table}
    lengths = tensors(backend, case.cu_seqlens_q, case.cu_seqlens_k)
    got = varlen_attention(*tensors(backend, q, k, v), *lengths, **placed(backend, options))
    want = oracles.varlen_attention(q, k, v, *of(case), **options)
    close(got, want, q, k, v, "float32", case.options)


def test_gradcheck_of_distance_bias(backend64, rng):
    cu = tensors(backend64, *(np.array(c, np.int32) for c in ([0, 2, 2, 3], [0, 3, 4, 4])))
    arrays = [normal(rng, s) for s in ((3, 4, 2), (4, 2, 2), (4, 2, 3), (4, 3))]
    gradcheck(
        lambda q, k, v, bias: (lambda out, lse: out.sum(-1) * 0.7 + finite(lse))(
            *varlen_attention(q, k, v, *cu, distance_bias=bias, softcap=2.0)
        ),
        leaves(backend64, *arrays),
    )


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5,)])
def test_distance_bias_is_checked(shape):
    q, k, v, *rest = arguments()
    bias = Tensor(np.zeros(shape, np.float32), backend="numpy")
    with refused(ShapeError, "varlen_attention", "distance_bias", "[H, 2M+1]", str(list(shape))):
        varlen_attention(q, k, v, *rest, distance_bias=bias)
    with refused(DTypeError, "varlen_attention", "distance_bias", "int32"):
        varlen_attention(q, k, v, *rest, distance_bias=bias.to("int32"))


def test_gradcheck_of_sinks(backend64, rng):
    cu = tensors(backend64, *(np.array(c, np.int32) for c in ([0, 2, 3], [0, 3, 3])))
    arrays = [normal(rng, s) for s in ((3, 4, 2), (3, 2, 2), (3, 2, 3), (4,))]

    def fn(q, k, v, sinks):
        out, lse = varlen_attention(q, k, v, *cu, sinks=sinks, causal=True)
        return out.sum(-1) * lse

    gradcheck(fn, leaves(backend64, *arrays))


@pytest.mark.parametrize("length", [5, 300])  # of the cache in one part, and in several
def test_a_key_that_is_nan_is_seen(length, backend, rng):
    """By those that see it, in all of their output, and by no others; in a cache too."""
    q, k, v = (normal(rng, (length, H, 64)) for H in (2, 1, 1))
    k[-2, 0, 9] = np.nan
    cu = np.array([0, length], np.int32)
    whole, _ = varlen_attention(*tensors(backend, q, k, v, cu, cu), causal=True)
    caches = (x.reshape(1, length, 1, 64) for x in (k, v))
    few = tensors(backend, q[-3:], *caches, np.array([0, 3], np.int32), np.array([[0]], np.int32))
    last, _ = paged_attention(*few, Tensor(np.array([length], np.int32), backend=backend))
    for made in (whole, last):
        seen = np.isnan(made.numpy()).reshape(len(made), -1)
        assert seen[-2:].all() and not seen[:-2].any()


# -- paged ---------------------------------------------------------------------------------------
def paged(rng, k, case, bs, columns=None):
    """A cache with k's rows in blocks in random order among other numbers, and its table."""
    B = len(case.len_k)
    need = [-(-n // bs) for n in case.len_k]
    columns = columns or max([1, *need])
    blocks = rng.permutation(sum(min(n, columns) for n in need) + 3).astype(np.int32)
    table, used = np.full((B, columns), -1, np.int32), 0
    for b, n in enumerate(need):
        own = min(n, columns)
        table[b, :own] = blocks[used : used + own]
        used += own
    caches = []
    for x in k:
        cache = normal(rng, (len(blocks), bs, *x.shape[1:]), "float32", 100.0).astype(x.dtype)
        for b, start in enumerate(case.cu_seqlens_k[:-1]):
            for p in range(case.len_k[b]):
                cache[table[b, p // bs % columns], p % bs] = x[start + p]
        caches.append(cache)
    return *caches, table, np.array(case.len_k, np.int32)


WHOLE = ["everything", *(c.name for c in CASES if not c.extra and c.name != "everything")]
SIZES = (1, 3, 16)
# a source of its own for each of these dims, of which GPUs in software go through test_varlen's
PAGED = [row for row in in_turn(WHOLE, SIZES) if BY_NAME[row[0]].D <= 64]


@pytest.mark.parametrize(("name", "bs"), every(PAGED, WHOLE, SIZES))
def test_paged_is_varlen(name, bs, backend, rng):
    case = BY_NAME[name]
    q, k, v = draw(rng, case, "float32")
    k_cache, v_cache, table, kv_lens = paged(rng, (k, v), case, bs)
    options = {"causal": False, **placed(backend, case.options)}
    args = tensors(backend, q, k_cache, v_cache, case.cu_seqlens_q, table, kv_lens)
    got = paged_attention(*args, **options)
    close(got, oracle(q, k, v, case), q, k, v, "float32", case.options)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_paged_dtypes(stored, backend, rng):
    case = BY_NAME["everything"]
    q, k, v = draw(rng, case, stored)
    k_cache, v_cache, table, kv_lens = paged(rng, (k, v), case, 16)
    args = tensors(backend, q, k_cache, v_cache, case.cu_seqlens_q, table, kv_lens)
    got = paged_attention(*args, **placed(backend, case.options))
    close(got, oracle(q, k, v, case), q, k, v, stored, case.options, of(case))


@pytest.mark.parametrize(("bs", "columns"), [(1, 12), (3, 4), (16, 1), (4, 3)])
def test_rings(bs, columns, backend, rng):
    """A window of 8 and up to 4 new tokens in a ring of 12 rows or more, at positions past it."""
    base = BY_NAME["window-prefix"]
    options = {"causal": True, "window": (8, 0)}
    q, k, v = draw(rng, base, "float32")
    k_cache, v_cache, table, kv_lens = paged(rng, (k, v), base, bs, columns)
    got = paged_attention(
        *tensors(backend, q, k_cache, v_cache, base.cu_seqlens_q, table, kv_lens), **options
    )
    want = oracles.paged_attention(
        q, k_cache, v_cache, base.cu_seqlens_q, table, kv_lens, **options
    )
    close(got, want, q, k, v, "float32", options)
    whole = oracles.varlen_attention(q, k, v, base.cu_seqlens_q, base.cu_seqlens_k, **options)
    np.testing.assert_allclose(want[0], whole[0], rtol=1e-12)


@pytest.mark.parametrize(("bs", "columns"), [(16, None), (16, 40), (512, 1), (7, None)])
@pytest.mark.parametrize("name", paged_cases.ENDED)
def test_ended_sequences(name, bs, columns, backend, rng):
    """They give 0 and -inf; what lies in blocks that nobody owns is never read."""
    arrays, finite = paged_cases.ended(
        rng, name, 4, 2, 16, bs=bs, columns=columns, dtype="float32", holes=0.2, extra=2
    )
    for options in ({}, {"window": (30, 0)}):
        got = paged_attention(*tensors(backend, *arrays), **options)
        paged_cases.compare(got, arrays, options, like=finite)


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_chunked_is_whole(chunk, backend, rng):
    """A prompt in chunks over a paged cache, as prefill and decode do it, equals one call."""
    base = BY_NAME["window-left"]
    T, bs = base.len_q[0], 4
    case = type(base)("chunked", (T,), (T,), options=base.options)
    q, k, v = draw(rng, case, "float32")
    whole = oracle(q, k, v, case)
    k_cache, v_cache, table, _ = paged(rng, (k, v), case, bs)
    for a in range(0, T, chunk):
        b = min(a + chunk, T)
        lengths = np.array([0, b - a], np.int32), table, np.array([b], np.int32)
        got = paged_attention(*tensors(backend, q[a:b], k_cache, v_cache, *lengths), **case.options)
        close(got, [x[a:b] for x in whole], q[a:b], k, v, "float32", case.options)


# -- refusals ------------------------------------------------------------------------------------
def arguments(paged=False):
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, s) for s in ((3, 4, 8), (3, 2, 8), (3, 2, 8)))
    cu = np.array([0, 3], np.int32)
    if not paged:
        return tensors("numpy", q, k, v, cu, cu)
    table, kv_lens = np.array([[0, 1]], np.int32), np.array([3], np.int32)
    shape = (1, 3, 2, 8)
    return tensors("numpy", q, k.reshape(shape), v.reshape(shape), cu, table, kv_lens)


@pytest.mark.parametrize("op", [varlen_attention, paged_attention])
def test_refuses_heads_and_options(op):
    q, k, v, *rest = arguments(op is paged_attention)
    name = op.__name__
    with refused(ShapeError, name, "[Tq, H, D]", "[3, 8]"):
        op(q[:, 0], k, v, *rest)
    with refused(ShapeError, name, "K, D]", str(list(k[0].shape))):
        op(q, k[0], v, *rest)
    with refused(ShapeError, name, "D", "8 and 4"):
        op(q, k[..., :4], v, *rest)
    with refused(ShapeError, name, "divisible", "H = 3, K = 2"):
        op(q[:, :3], k, v, *rest)
    with refused(DTypeError, name, "float q", "int32"):
        op(q.to("int32"), k, v, *rest)
    with refused(DTypeError, name, "float", "int8"):
        op(q, k.to("int8"), v.to("int8"), *rest)
    with refused(DTypeError, name, "float32, bfloat16"):
        op(q, k, v.to("bf16"), *rest)
    with refused(DTypeError, name, "cu_seqlens_q", "int32", "int64"):
        op(q, k, v, rest[0].to("int64"), *rest[1:])
    with refused(DTypeError, name, "cu_seqlens_q", "1 axes", "[1, 2]"):
        op(q, k, v, rest[0].unsqueeze(0), *rest[1:])
    with refused(ShapeError, name, "cu_seqlens", "[B+1]", "[1]"):
        op(q, k, v, rest[0][:1], *(x[:1] for x in rest[1:]))
    for word, option, error in (
        ("sinks", {"sinks": Tensor(SINKS[:3], backend="numpy")}, ShapeError),
        ("alibi_slopes", {"alibi_slopes": Tensor(SLOPES[:3], backend="numpy")}, ShapeError),
        ("causal_alignment", {"causal_alignment": "left"}, OptionError),
        ("window", {"window": (-2, 0)}, OptionError),
        ("window", {"window": (1, 2, 3)}, OptionError),
        ("softcap", {"softcap": -1.0}, OptionError),
    ):
        with refused(error, name, word, "got"):
            op(q, k, v, *rest, **option)
    slopes = Tensor(SLOPES, backend="numpy", requires_grad=True)
    with refused(OptionError, name, "alibi_slopes", "no gradient"):
        op(q, k, v, *rest, alibi_slopes=slopes)


def test_varlen_refuses_lengths():
    q, k, v, cu, _ = arguments()
    with refused(ShapeError, "varlen_attention", "[B+1]", "[2]", "[3]"):
        varlen_attention(q, k, v, cu, Tensor(np.array([0, 1, 3], np.int32), backend="numpy"))


def test_paged_refuses_tables():
    q, k, v, cu, table, kv_lens = arguments(paged=True)
    with refused(DTypeError, "paged_attention", "block_table", "2 axes", "[2]"):
        paged_attention(q, k, v, cu, table[0], kv_lens)
    with refused(DTypeError, "paged_attention", "kv_lens", "int32", "float32"):
        paged_attention(q, k, v, cu, table, kv_lens.to("float32"))
    with refused(ShapeError, "paged_attention", "B = 1", "[2]"):
        two = Tensor(np.array([1, 2], np.int32), backend="numpy")
        paged_attention(q, k, v, cu, table, two)
