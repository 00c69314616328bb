"""Launches of the attention kernels; see `kernels/attention.py` and `attention_decode.py` there."""

from __future__ import annotations

from typing import Any

import numpy as np

from boostr.backends.base import Kernel
from boostr.backends.numpy import jit, threads
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.kernels import layout_ops as at
from boostr.backends.numpy.rows import not_float32, rows
from boostr.ops.attention import AttentionOptions
from boostr.tensor import Tensor


def _decode_supports(q, k, v, cu_q, *rest) -> str | None:
    return not_float32(q, k, v)


class _Call:
    """Parameters and arrays of one launch, filled in by name."""

    def __init__(self, q: Tensor, v: Tensor, options: AttentionOptions) -> None:
        self.backend: NumpyBackend = q.backend  # type: ignore[assignment]
        self.words = [0] * (at.SPLITS + 1)
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
        at.KEYS: k_cache, at.VALUES: v_cache, at.CU_Q: cu_q, at.TABLE: block_table,
        at.KV_LENS: kv_lens, at.ALIBI: alibi, at.SINKS: sinks,
    })  # fmt: skip
    call.set({
        at.K_STRIDE: K * D, at.V_STRIDE: K * v_cache.shape[3], at.BLOCK_SIZE: bs, at.BLOCKS: NB,
        at.COLUMNS: columns, at.SEGMENTS: B,
    })  # fmt: skip
    return call


def _splits(call: _Call) -> int:
    """How many parts a row's keys are divided into, from shapes alone: items for all threads."""
    words = call.words
    wanted = 8 * threads.pool().threads
    most = max(1, words[at.COLUMNS] * words[at.BLOCK_SIZE] // 64)
    cells = max(1, words[at.TOKENS] * words[at.KV_HEADS])
    return max(1, min(-(-wanted // cells), most, 64))


def _decode(call: _Call) -> tuple[np.ndarray, np.ndarray]:
    """Each query row by itself."""
    splits = _splits(call)
    T, H, Dv = (call.words[i] for i in (at.TOKENS, at.HEADS, at.V_WIDTH))
    items = T * splits * call.words[at.KV_HEADS]
    out, lse = call.outputs()
    if splits == 1:
        call.launch("attention_decode.decode", items, out, lse)
        return out, lse
    call.words[at.SPLITS] = splits
    parts, logs = call.outputs(splits)
    call.launch("attention_decode.decode", items, parts, logs)
    params = [*map(address, (parts, logs, out, lse)), splits, Dv]
    call.backend.launch(
        "attention_decode.combine", params, items=T * H, grain=4, reads=[parts, logs],
        writes=[out, lse],
    )  # fmt: skip
    return out, lse


def _paged_supports(q, k_cache, v_cache, *rest) -> str | None:
    if q.shape[1] // k_cache.shape[2] > at.MAX_GROUP:
        return f"more than {at.MAX_GROUP} query heads for each kv head"
    return not_float32(q, k_cache, v_cache)


def _paged(q: Tensor, *args) -> tuple[Tensor, Tensor]:
    call = _paged_call(q, *args)
    out, lse = _decode(call)
    return Tensor.wrap(out, call.backend), Tensor.wrap(lse, call.backend)


KERNELS = {"paged_attention": Kernel(_paged, _paged_supports)}
