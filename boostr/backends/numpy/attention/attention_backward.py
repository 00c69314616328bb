"""Launch of the gradient of attention; see `kernels/attention/attention_backward.py`."""

from __future__ import annotations

from boostr.backends.base import Kernel
from boostr.backends.numpy.attention.attention import _Call
from boostr.backends.numpy.backend import address
from boostr.backends.numpy.kernels.runtime import layout_ops as at
from boostr.backends.numpy.rows.rows import not_float32, rows
from boostr.backends.numpy.runtime import threads
from boostr.tensor import Tensor

_PART = 384  # keys of an item at least: whole tiles, enough to pay for a copy of dq
_PARTS = 8  # copies of dq at most
_ROOMS = (64, 128, 256)  # widths of heads that kernels are compiled for


def _supports(g, g_lse, out, lse, q, k, v, *rest) -> str | None:
    widest = max(q.shape[2], v.shape[2])
    if widest > _ROOMS[-1]:
        return f"head_dim {widest} is more than {_ROOMS[-1]}"
    return not_float32(g, g_lse, out, lse, q, k, v)


def _part(keys: int, kv_heads: int) -> int:
    """Keys of an item: few enough for one long segment to be work for all threads."""
    wanted = min(_PARTS, -(-4 * threads.pool().threads // kv_heads))
    return max(1, -(-keys // (wanted * _PART))) * _PART


def _backward(
    g, g_lse, out, lse, q, k, v, cu_seqlens_q, cu_seqlens_k, alibi, options
) -> tuple[Tensor, Tensor, Tensor]:
    call = _Call(q, v, options)
    call.words += [0] * (at.BACKWARD_PARAMS - at.ATTENTION_PARAMS)
    backend = call.backend
    for word, stride, x in ((at.KEYS, at.K_STRIDE, k), (at.VALUES, at.V_STRIDE, v)):
        data, _, step = rows(backend, x.data)
        call.array(word, data)
        call.words[stride] = 4 * step
    call.tensors({
        at.CU_Q: cu_seqlens_q, at.CU_K: cu_seqlens_k, at.ALIBI: alibi, at.OUT: out, at.LSE: lse,
        at.G_OUT: g, at.G_LSE: g_lse,
    })  # fmt: skip
    (Tk, K, D), B = k.shape, cu_seqlens_q.size - 1
    part = _part(Tk, K)
    parts = max(1, -(-Tk // part))
    dq = backend.empty((parts, *q.shape))
    dk, dv = backend.empty(k.shape), backend.empty(v.shape)
    for word, x in ((at.DQ, dq), (at.DK, dk), (at.DV, dv)):
        call.words[word] = address(x)
    call.set({at.SEGMENTS: B, at.KEY_TOKENS: Tk, at.PART: part})
    backend.launch(
        "attention_backward.attention_backward", call.words, items=(-(-Tk // part) + B) * K,
        grain=1, reads=call.reads, writes=[dq, dk, dv],
        room=next(room for room in _ROOMS if room >= max(D, v.shape[2])),
    )  # fmt: skip
    if parts > 1:
        backend.launch(
            "attention_backward.add_parts", call.words, items=len(q), grain=8,
            reads=[dq, *call.reads], writes=[dq],
        )  # fmt: skip
    return tuple(Tensor.wrap(x, backend) for x in (dq[0], dk, dv))  # type: ignore[return-value]


KERNELS = {"varlen_attention_backward": Kernel(_backward, _supports)}
