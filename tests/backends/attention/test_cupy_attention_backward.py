"""CUDA's gradient of attention against float64, strictly: tiles and their edges, options, order."""

import numpy as np
import oracles
import pytest
from draws import normal, tensors
from ops.attention_cases import CASES, SINKS, SLOPES, TOP_LEFT, Case, draw
from tolerance import assert_close

from boostr import Tensor, capture
from boostr.backends.cupy.attention import attention_backward
from boostr.ops.attention import _backward
from boostr.options import attention_options

# Lengths around the tiles of 16 to 256 keys and queries.
LENGTHS = (1, 130, 0, 64, 257, 63)
WIDTHS = [
    Case(f"width-{D}", LENGTHS, LENGTHS, H=4, K=2, D=D, options={"causal": True})
    for D in (8, 40, 64, 80, 96, 128, 192, 256)
]
CROSS = ((130, 5, 0, 70, 1), (70, 300, 9, 0, 129))
OPTIONS = [
    Case("bidirectional", *CROSS, D=64),
    Case("cross", *CROSS, H=6, K=2, D=128, options={"causal": True}),
    Case("cross-top-left", *CROSS, D=128, options=TOP_LEFT),
    Case("window", (300, 20), (300, 40), D=64, options={"causal": True, "window": (70, None)}),
    Case("window-both", (200, 140), (270, 100), H=2, D=128, options={"window": (33, 20)}),
    Case("window-top-left", (200, 140), (270, 100), D=64,
         options={"window": (33, 20), "causal_alignment": "top-left"}),
    Case("softcap", (140, 7), (140, 200), D=128, options={"causal": True, "softcap": 5.0}),
    Case("alibi", (140, 7), (140, 200), D=64, options={"alibi_slopes": SLOPES}),
    Case("sinks", (140, 7), (140, 0), D=64, options={"causal": True, "sinks": SINKS}),
    Case("outside", (140, 7), (140, 20), D=128, extra=70, options={"causal": True}),
    Case("nothing", (0, 0), (0, 0), D=64, extra=5),
    Case("no-queries", (0, 0), (70, 5), D=64),
    Case("no-keys", (70, 5), (0, 0), D=64),
    Case("mha", (200, 33), (200, 33), H=3, K=3, D=64, options={"causal": True}),
    Case("mqa", (100, 33), (200, 33), H=8, K=1, D=128, options={"causal": True}),
    Case("everything", (70, 130), (150, 130), D=64, options={
        "causal": True, "window": (90, 0), "softcap": 8.0, "alibi_slopes": SLOPES, "sinks": SINKS,
        "scale": 0.3}),
    Case("everything-wide", (70, 33), (90, 70), D=256, options={
        "causal": True, "window": (50, 0), "softcap": 8.0, "alibi_slopes": SLOPES, "scale": 0.1}),
]  # fmt: skip
PLAIN = [
    Case("narrow-values", (40, 33), (50, 33), H=2, K=1, D=24, Dv=10, options={"causal": True}),
    Case("wide-values", (40, 33), (50, 33), H=2, K=1, D=64, Dv=200),
    Case("odd-width", (40, 33), (50, 33), H=2, K=1, D=33, options={"softcap": 3.0}),
]


def reference(g, g_lse, q, k, v, case):
    """out, lse, dq, dk, dv in float64, the gradient of sum(out g) + sum(lse g_lse)."""
    g, q, k, v = (x.astype(np.float64) for x in (g, q, k, v))
    out, lse = np.zeros(g.shape), np.full(g_lse.shape, -np.inf)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    cu = case.cu_seqlens_q, case.cu_seqlens_k
    for rq, rk, h, kv, scale, part in oracles._segments(q, k, *cu, **case.options):
        p, lse[rq, h], slack = part
        out[rq, h] = p @ v[rk, kv]
        dp = g[rq, h] @ v[rk, kv].T
        ds = p * (dp - (p * dp).sum(1, keepdims=True) + g_lse[rq, h][:, None]) * slack * scale
        dq[rq, h] = ds @ k[rk, kv]
        dk[rk, kv] += ds.T @ q[rq, h]
        dv[rk, kv] += p.T @ g[rq, h]
    return out, lse, dq, dk, dv


def arguments(backend, rng, case, dtype):
    """The op's arguments as tensors, and the gradients that they should give."""
    q, k, v = draw(rng, case, dtype)
    g = normal(rng, (*q.shape[:2], v.shape[2]), dtype)
    g_lse = normal(rng, q.shape[:2])
    out, lse, *want = reference(g, g_lse, q, k, v, case)
    given = {n: x for n, x in case.options.items() if n not in ("alibi_slopes", "sinks")}
    defaults = {"causal": False, "window": None, "scale": None, "softcap": None}
    named = {**defaults, "causal_alignment": "bottom-right", **given}
    options = attention_options(
        "test", case.D, *(named[n] for n in (*defaults, "causal_alignment"))
    )
    alibi = case.options.get("alibi_slopes")
    made = tensors(backend, g, g_lse, out.astype(q.dtype), lse.astype(np.float32), q, k, v,
                   case.cu_seqlens_q, case.cu_seqlens_k, alibi)  # fmt: skip
    return [*made, options], want


def close(got, want, dtype, logits=1.0):
    """16-bit p and ds are rounded before they are summed: errors scale with the largest sum.

    In float32 the error of a score, which is some eps times its size, becomes the relative error of
    its probability: c = 64 for scores of size 3 or so, more for logits that are larger.
    """
    c = 64.0 * max(1.0, logits / 10) if dtype == "float32" else 2.0
    for name, x, truth in zip(("dq", "dk", "dv"), got, want, strict=True):
        size = np.abs(truth).max(initial=0.0)
        assert_close(x.numpy(), truth, dtype=dtype, reduce=1, scale=size, c=c, err_msg=name)


@pytest.mark.parametrize("ordered", ["0", "1"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", [*WIDTHS, *OPTIONS], ids=lambda c: c.name)
def test_tensor_cores(case, dtype, ordered, cupy_backend, rng, monkeypatch):
    monkeypatch.setenv("BOOSTR_DETERMINISTIC", ordered)
    args, want = arguments(cupy_backend, rng, case, dtype)
    close(_backward(*args), want, dtype)


@pytest.mark.parametrize("case", [*WIDTHS, *OPTIONS], ids=lambda c: c.name)
def test_without_hopper(case, cupy_backend, rng, monkeypatch):
    """What runs on other GPUs with 160 KB of shared memory a block."""
    monkeypatch.setattr(attention_backward, "HOPPER", {})
    args, want = arguments(cupy_backend, rng, case, "bfloat16")
    close(_backward(*args), want, "bfloat16")


@pytest.mark.parametrize("ordered", ["0", "1"])
@pytest.mark.parametrize("case", [*WIDTHS[2:], *OPTIONS[1:6]], ids=lambda c: c.name)
def test_tiles_of_small_gpus(case, ordered, cupy_backend, rng, monkeypatch):
    """What runs where a block has 99 KB of shared memory."""
    monkeypatch.setattr(attention_backward, "_LARGE", 1 << 30)
    monkeypatch.setattr(attention_backward, "HOPPER", {})
    monkeypatch.setenv("BOOSTR_DETERMINISTIC", ordered)
    args, want = arguments(cupy_backend, rng, case, "bfloat16")
    close(_backward(*args), want, "bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", [*CASES, *OPTIONS, *PLAIN], ids=lambda c: c.name)
def test_plain_cores(case, dtype, cupy_backend, rng):
    if dtype == "bfloat16" and case not in PLAIN:
        pytest.skip("on tensor cores: see above")
    args, want = arguments(cupy_backend, rng, case, dtype)
    close(_backward(*args), want, dtype, case.scale_of_logits)


def test_mixed_dtypes(cupy_backend, rng):
    """float32 queries on bfloat16 keys and values."""
    args, want = arguments(cupy_backend, rng, OPTIONS[1], "bfloat16")
    for i in (0, 2, 4):  # g, out, q
        args[i] = Tensor(args[i].numpy().astype(np.float32), backend=cupy_backend)
    dq, dk, dv = got = _backward(*args)
    assert dq.dtype == args[4].dtype and dk.dtype == dv.dtype == args[5].dtype
    close(got, want, "bfloat16")


@pytest.mark.parametrize("offset", [0, 1])
def test_views(offset, cupy_backend, rng):
    """q, k and v as parts of one projection; with an offset that 16-byte loads cannot take."""
    case = Case("views", (70, 33), (70, 33), H=4, K=2, D=64, options={"causal": True})
    args, want = arguments(cupy_backend, rng, case, "bfloat16")
    parts = [x.numpy() for x in args[4:7]]
    T = len(parts[0])
    fused = np.concatenate([x.reshape(T, -1) for x in parts], 1)
    room = np.zeros((T, fused.shape[1] + 8), fused.dtype)
    room[:, offset : offset + fused.shape[1]] = fused
    whole = Tensor(room, backend=cupy_backend)
    at = np.cumsum([offset, 4 * 64, 2 * 64, 2 * 64])
    for i, heads in enumerate((4, 2, 2)):
        args[4 + i] = whole[:, int(at[i]) : int(at[i + 1])].reshape(T, heads, 64)
    close(_backward(*args), want, "bfloat16")


@pytest.mark.parametrize("D", [64, 128])
def test_repeatable(D, cupy_backend, rng, monkeypatch):
    monkeypatch.setenv("BOOSTR_DETERMINISTIC", "1")
    case = Case("long", (1000, 333), (1000, 700), H=8, K=4, D=D, options={"causal": True})
    args, want = arguments(cupy_backend, rng, case, "bfloat16")
    runs = [[x.numpy().tobytes() for x in _backward(*args)] for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]
    close(_backward(*args), want, "bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_captured(dtype, cupy_backend, rng):
    """The lengths are read on the device: a program serves others of the same total."""
    case = Case("first", (90, 40), (90, 40), D=64, options={"causal": True})
    other = Case("second", (25, 105), (25, 105), D=64, options={"causal": True})
    args, _ = arguments(cupy_backend, rng, case, dtype)
    program = capture(lambda: _backward(*args), cupy_backend)
    values, want = arguments(cupy_backend, rng, other, dtype)
    for x, value in zip(args[:9], values[:9], strict=True):
        x.assign(value)
    program.run()
    close(program.outputs, want, dtype)
