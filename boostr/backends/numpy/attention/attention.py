"""Launches of the attention kernels; see `kernels/attention/`."""

from __future__ import annotations

from typing import Any

import numpy as np

from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.kernels.runtime import layout_ops as at
from boostr.backends.numpy.rows.rows import not_float32, rows
from boostr.backends.numpy.runtime import jit, threads
from boostr.operands import KV, PackedKV
from boostr.options import AttentionOptions
from boostr.tensor import Tensor


class _Call:
    """Parameters and arrays of one launch, filled in by name."""

    def __init__(self, q: Tensor, v: KV, options: AttentionOptions) -> None:
        self.kv = v.form.name if isinstance(v, PackedKV) else "float"
        self.backend: NumpyBackend = q.backend  # type: ignore[assignment]
        self.words = [0] * at.ATTENTION_PARAMS
        self.reads: list[np.ndarray] = []
        data, _, stride = rows(self.backend, q.data)
        self.array(at.Q, data)
        T, H, D = q.shape
        right = 0 if options.causal else options.right
        self.set({
            at.Q_STRIDE: stride, at.TOKENS: T, at.HEADS: H, at.WIDTH: D, at.KV_HEADS: v.shape[-2],
            at.V_WIDTH: v.shape[-1], at.LEFT: options.left, at.RIGHT: right,
            at.BOTTOM_RIGHT: int(options.bottom_right), at.SPLITS: 1,
            at.SCALE: jit.float_bits(options.scale), at.SOFTCAP: jit.float_bits(options.softcap),
        })  # fmt: skip

    def set(self, words: dict[int, int]) -> None:
        for index, value in words.items():
            self.words[index] = value

    def array(self, index: int, x: np.ndarray) -> None:
        self.words[index] = address(x)
        self.reads.append(x)

    def tensors(self, parts: dict[int, Tensor | None]) -> None:
        for index, x in parts.items():
            if x is not None:
                self.array(index, self.backend.dense(x.data))

    def launch(self, kernel: str, items: int, out: np.ndarray, lse: np.ndarray, **constants: Any):
        self.words[at.OUT], self.words[at.LSE] = address(out), address(lse)
        self.backend.launch(
            kernel, self.words, items=items, grain=1, reads=self.reads, writes=[out, lse],
            **constants,
        )  # fmt: skip

    def outputs(self, *extra: int) -> tuple[np.ndarray, np.ndarray]:
        """out [T, H, *extra, Dv] and lse [T, H, *extra]."""
        shape = (self.words[at.TOKENS], self.words[at.HEADS], *extra)
        return self.backend.empty((*shape, self.words[at.V_WIDTH])), self.backend.empty(shape)


def _paged_call(q, k_cache, v_cache, cu_q, block_table, kv_lens, alibi, sinks, options) -> _Call:
    call = _Call(q, v_cache, options)
    NB, bs, K, D = k_cache.shape
    B, columns = block_table.shape
    call.tensors({
        at.CU_Q: cu_q, at.TABLE: block_table, at.KV_LENS: kv_lens, at.ALIBI: alibi, at.SINKS: sinks,
    })  # fmt: skip
    call.set({at.BLOCK_SIZE: bs, at.BLOCKS: NB, at.COLUMNS: columns, at.SEGMENTS: B})
    if isinstance(k_cache, PackedKV):
        planes = (at.K_CODES, at.K_SCALES, at.V_CODES, at.V_SCALES)
        call.tensors(dict(zip(planes, (*k_cache, *v_cache), strict=True)))
        call.set({at.K_STRIDE: 1, at.V_STRIDE: 1})
    else:
        call.tensors({at.KEYS: k_cache, at.VALUES: v_cache})
        call.set({at.K_STRIDE: 4 * K * D, at.V_STRIDE: 4 * K * v_cache.shape[3]})
    return call


def _splits(call: _Call) -> int:
    """How many parts a row's keys are divided into, from shapes alone: items for all threads."""
    words = call.words
    wanted = 4 * threads.pool().threads
    most = max(1, words[at.COLUMNS] * words[at.BLOCK_SIZE] // 64)
    return max(1, min(-(-wanted // max(1, words[at.TOKENS])), most, 64))


def _decode(call: _Call) -> tuple[np.ndarray, np.ndarray]:
    """Each query row by itself."""
    splits = _splits(call)
    T, H, Dv = (call.words[i] for i in (at.TOKENS, at.HEADS, at.V_WIDTH))
    items = T * splits
    out, lse = call.outputs()
    if splits == 1:
        call.launch("attention_decode.decode", items, out, lse, kv=call.kv)
        return out, lse
    call.words[at.SPLITS] = splits
    parts, logs = call.outputs(splits)
    call.launch("attention_decode.decode", items, parts, logs, kv=call.kv)
    params = [*map(address, (parts, logs, out, lse)), splits, Dv]
    call.backend.launch(
        "attention_decode.combine", params, items=T * H, grain=4, reads=[parts, logs],
        writes=[out, lse],
    )  # fmt: skip
    return out, lse


def _blocks(call: _Call) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of query rows against tiles of keys."""
    words = call.words
    T, H, K = (words[i] for i in (at.TOKENS, at.HEADS, at.KV_HEADS))
    rows_of_block = at.VECTORS * jit.target().lanes
    blocks = -(-T * (H // K) // rows_of_block) + words[at.SEGMENTS]  # each segment rounds up
    words[at.SPLITS] = blocks
    out, lse = call.outputs()
    if T:
        D, Dv = words[at.WIDTH], words[at.V_WIDTH]
        call.launch("attention.attention", blocks * K, out, lse, D=D, Dv=Dv, kv=call.kv)
    return out, lse


def _supports(q, k, v, *rest) -> str | None:
    widest = max(q.shape[2], v.shape[-1])
    if widest > at.MAX_WIDTH:
        return f"head_dim {widest} is more than {at.MAX_WIDTH}"
    return not_float32(q) if isinstance(k, PackedKV) else not_float32(q, k, v)


def _varlen(q, k, v, cu_q, cu_k, alibi, sinks, options) -> tuple[Tensor, Tensor]:
    call = _Call(q, v, options)
    (keys, _, k_stride), (values, _, v_stride) = (rows(call.backend, x.data) for x in (k, v))
    call.array(at.KEYS, keys)
    call.array(at.VALUES, values)
    call.set({at.K_STRIDE: 4 * k_stride, at.V_STRIDE: 4 * v_stride, at.SEGMENTS: cu_q.size - 1})
    call.tensors({at.CU_Q: cu_q, at.CU_K: cu_k, at.ALIBI: alibi, at.SINKS: sinks})
    out, lse = _blocks(call)
    return Tensor.wrap(out, call.backend), Tensor.wrap(lse, call.backend)


def _paged(q: Tensor, *args) -> tuple[Tensor, Tensor]:
    call = _paged_call(q, *args)
    T, H, _ = q.shape
    few = 4 * call.words[at.SEGMENTS] >= T and H <= at.MAX_HEADS
    out, lse = _decode(call) if few else _blocks(call)
    return Tensor.wrap(out, call.backend), Tensor.wrap(lse, call.backend)


KERNELS = {
    "varlen_attention": Kernel(_varlen, _supports),
    "paged_attention": Kernel(_paged, _supports),
}
