"""Layers that keep something else than keys and values, for tests alone, in primitives: shaped as
Mamba 2 (a recurrent state [H, D, N] behind a short convolution), as MLA (a latent of each token), a
layer that reads what another keeps, and one that attends to another sequence. Whole packed passes
at once, so that a program can record them.
"""

from __future__ import annotations

import numpy as np

from boostr import Tensor, ops
from boostr.engine.model import LanguageModel
from boostr.nn import fusion
from boostr.nn.linear import Linear
from boostr.nn.module import Module
from boostr.nn.states import Conv, Cross, Latent, Recurrent, Shares
from boostr.ops import core
from boostr.tensor import arange, zeros

HEADS, WIDTH, KEPT, TAPS = 2, 8, 4, 4  # H, D, N of the state; taps of the convolution
CHANNELS = HEADS * WIDTH


class Segments:
    """Where the tokens of each sequence lie in a pass.

    Attributes:
        of: int32 [T], the sequence of each token; of those behind the last B - 1.
        offset: int32 [T], tokens of its sequence before it in the pass.   ends: int32 [B].
    """

    def __init__(self, cu: Tensor, tokens: int) -> None:
        place = arange(tokens, backend=cu.backend)
        self.starts, self.ends = cu[:-1], cu[1:]
        before = core.cast((self.ends.reshape(1, -1) <= place.reshape(-1, 1)), "int32")
        self.of = core.minimum(core.sum(before, 1), self.ends.size - 1)
        self.offset = place - core.take(self.starts, self.of)


class StateMixer(Module):
    """x -> o(y): u = conv(in(x)); h_t = a_h h_(t-1) + u_t k_t^T, y_t = h_t q_t, with a in (0, 1) of
    each head and k, q = products of x."""

    readers = ()

    def __init__(self, layer: int, features: int, weights, backend) -> None:
        def made(*shape):
            return Tensor(weights(shape), backend=backend)

        self.in_proj, self.out_proj = Linear(features, CHANNELS), Linear(CHANNELS, features)
        self.in_proj.weight, self.out_proj.weight = (
            made(CHANNELS, features),
            made(features, CHANNELS),
        )
        self.k_proj, self.q_proj = (made(KEPT, features) for _ in range(2))
        self.taps = made(TAPS, CHANNELS)
        self._log_decay = Tensor(np.float32([-0.1, -0.6]), backend=backend)
        self._layer = layer

    def states(self):
        return [Conv(CHANNELS, TAPS), Recurrent((HEADS, WIDTH, KEPT))]

    def __call__(self, x, norm, batch, residual, factor):
        y = x if norm is None else norm(x)
        segments = Segments(batch.cu_seqlens, len(x))
        conv, state = batch.states.get(self._layer, (None, None))
        u = self._convolved(self.in_proj(y), segments, conv)
        u = u.reshape(-1, HEADS, WIDTH).permute(1, 0, 2)
        k, q = ops.linear(y, self.k_proj), ops.linear(y, self.q_proj)
        mixed = self._scanned(u, k, q, segments, state)
        return self.out_proj(mixed.permute(1, 0, 2).reshape(len(x), -1), residual, factor)

    def _convolved(self, u, segments, kept):
        B, T = segments.ends.size, len(u)
        shape = (B, TAPS - 1, CHANNELS)
        before = _kept(kept, shape, u.backend)
        every = core.concat([before.reshape(-1, CHANNELS), u])
        place, out = arange(T, backend=u.backend), None
        for tap in range(TAPS):
            old = segments.of * (TAPS - 1) + (TAPS - 1) + segments.offset - tap
            at = core.where(segments.offset >= tap, place - tap + B * (TAPS - 1), old)
            part = core.take(every, at) * self.taps[tap]
            out = part if out is None else out + part
        if kept:
            back = arange(TAPS - 1, backend=u.backend).reshape(1, -1) - (TAPS - 1)  # -3, -2, -1
            lengths = (segments.ends - segments.starts).reshape(-1, 1)
            rows = arange(B, backend=u.backend).reshape(-1, 1)
            old = rows * (TAPS - 1) + (TAPS - 1) + lengths + back
            new = B * (TAPS - 1) + segments.ends.reshape(-1, 1) + back
            at = core.where(lengths + back >= 0, new, old)
            ops.write_rows(kept, core.take(every, at.flatten()).reshape(shape))
        return out

    def _scanned(self, u, k, q, segments, kept):
        """y [H, T, D] of u [H, T, D], k and q [T, N]."""
        B, T = segments.ends.size, u.shape[1]
        decay = self._log_decay.reshape(-1, 1, 1)
        place = arange(T, backend=u.backend)
        gap = place.reshape(-1, 1) - place.reshape(1, -1)
        seen = (gap >= 0) & core.eq(segments.of.reshape(-1, 1), segments.of.reshape(1, -1))
        falls = core.exp(core.cast(core.maximum(gap, 0), "float32") * decay)
        scores = core.where(seen, core.matmul(q, k.T), 0)
        y = core.matmul(scores * falls, u)
        shape = (B, HEADS, WIDTH, KEPT)
        before = _kept(kept, shape, u.backend)
        own = core.take(before, segments.of).permute(1, 0, 2, 3)  # [H, T, D, N]
        since = core.exp(core.cast(segments.offset + 1, "float32").reshape(1, -1, 1) * decay)
        y = y + core.sum(own * q.reshape(1, T, 1, KEPT), -1) * since
        if kept:
            rows = arange(B, backend=u.backend)
            left = (core.take(segments.ends, segments.of) - 1 - place).reshape(1, 1, -1)
            member = core.eq(rows.reshape(-1, 1), segments.of.reshape(1, -1)) & (left[0] >= 0)
            falls = core.exp(core.cast(core.maximum(left, 0), "float32") * decay)
            weight = core.where(member, falls, 0)  # [H, B, T]
            outer = u.reshape(HEADS, T, WIDTH, 1) * k.reshape(1, T, 1, KEPT)
            added = core.matmul(weight, outer.reshape(HEADS, T, -1))
            lengths = core.cast(segments.ends - segments.starts, "float32").reshape(1, -1, 1)
            old = before.permute(1, 0, 2, 3).reshape(HEADS, B, -1) * core.exp(lengths * decay)
            ops.write_rows(kept, (old + added).reshape(HEADS, B, WIDTH, KEPT).permute(1, 0, 2, 3))
        return y


def _kept(state, shape, backend):
    """What is kept of each sequence; zeros where nothing is."""
    return zeros(shape, "float32", backend) if state is None else ops.read_rows(state)


def put_into(model, kinds):
    """The model with other mixers in its layers, of MIXERS, or None for its own."""
    module, rng = model.module, np.random.default_rng(3)
    features = module.config.hidden_size

    def weights(shape):
        return (rng.standard_normal(shape) / 4).astype(np.float32)

    for layer, kind in enumerate(kinds):
        if kind is not None:
            made = MIXERS[kind](layer, features, weights, model.backend)
            module.model.layers[layer].self_attn = made
    return LanguageModel(module, model.tokenizer, model.backend, model.source, [*model.eos_ids])


class LatentMixer(Module):
    """x -> o(attention(q, c, c)), where c [T, W] = products of x is all that is kept of a token."""

    WIDTH = 16
    readers = ()

    def __init__(self, layer: int, features: int, weights, backend) -> None:
        def made(*shape):
            return Tensor(weights(shape), backend=backend)

        self.down, self.q_proj = made(self.WIDTH, features), made(HEADS * self.WIDTH, features)
        self.out_proj = Linear(HEADS * self.WIDTH, features)
        self.out_proj.weight = made(features, HEADS * self.WIDTH)
        self._layer = layer

    def states(self):
        return [Latent(self.WIDTH)]

    def __call__(self, x, norm, batch, residual, factor):
        y = x if norm is None else norm(x)
        q = ops.linear(y, self.q_proj).reshape(len(x), HEADS, -1)
        cache, cu, c = batch.cache(self._layer), batch.cu_seqlens, self._latents(y, batch)
        if cache is None:
            mixed, _ = ops.varlen_attention(q, c, c, cu, cu, causal=True)
            return self.out_proj(mixed.reshape(len(x), -1), residual, factor)
        out = self.out_proj
        return fusion.attend(q, cache, cu, out.weight, out.bias, residual, factor=factor)

    def _latents(self, y, batch):
        """c, where there is no cache."""
        c, cache = ops.linear(y, self.down).reshape(len(y), 1, -1), batch.cache(self._layer)
        if cache is not None:
            ops.kv_write(c, c, cache.keys, cache.values, cache.slots)
        batch.shared[self._layer] = c
        return c


class SharingMixer(LatentMixer):
    """The same over what the first layer keeps."""

    def states(self):
        return [Shares(0)]

    def _latents(self, y, batch):
        return batch.shared[0]


class CrossMixer(Module):
    """x -> o(attention(q, k, v)), where k, v are up to SOURCE products of the first token's x. So
    many are read as the first token's id says; those behind them are nan."""

    SOURCE = 5
    readers = ()

    def __init__(self, layer: int, features: int, weights, backend) -> None:
        def made(*shape):
            return Tensor(weights(shape), backend=backend)

        each = self.SOURCE * WIDTH
        self.k_proj, self.v_proj = (made(each, features) for _ in range(2))
        self.q_proj = made(CHANNELS, features)
        self.out_proj = Linear(CHANNELS, features)
        self.out_proj.weight = made(features, CHANNELS)
        self._layer = layer

    def states(self):
        return [Cross(1, WIDTH, self.SOURCE)]

    def __call__(self, x, norm, batch, residual, factor):
        y = x if norm is None else norm(x)
        kept, of = batch.states.get(self._layer), Segments(batch.cu_seqlens, len(x)).of
        q = ops.linear(y, self.q_proj).reshape(len(x), HEADS, WIDTH)
        if kept and kept[0].begun is None:  # a decode step: rows are blocks
            keys, values, counts = kept
            table = keys.rows.reshape(-1, 1)
            mixed, _ = ops.paged_attention(
                q, keys.values, values.values, batch.cu_seqlens, table, ops.read_rows(counts),
                causal=False,
            )  # fmt: skip
        else:
            mixed = self._attended(q, of, *self._source(y, batch, kept))
        return self.out_proj(mixed.reshape(len(x), -1), residual, factor)

    def _source(self, y, batch, kept):
        """k, v [B, SOURCE, 1, D] and how many of them, int32 [B]: new ones of who begins."""
        first, backend = core.take(y, batch.first_tokens), y.backend
        counts = core.take(batch.ids, batch.first_tokens) % self.SOURCE + 1
        there = arange(self.SOURCE, backend=backend) < counts.reshape(-1, 1)
        new = [
            core.where(
                there.reshape(-1, self.SOURCE, 1, 1),
                ops.linear(first, weight).reshape(-1, self.SOURCE, 1, WIDTH),
                float("nan"),
            )
            for weight in (self.k_proj, self.v_proj)
        ] + [counts]
        if kept is None:
            return new
        for state, value in zip(kept, new, strict=True):
            ops.begin_rows(state, value)
        return [ops.read_rows(state._replace(begun=None)) for state in kept]

    def _attended(self, q, of, keys, values, counts):
        """[T, H, D], in primitives."""
        there = arange(self.SOURCE, backend=q.backend) < core.take(counts, of).reshape(-1, 1)
        there = there.reshape(-1, 1, self.SOURCE)
        k, v = (core.take(x, of).reshape(-1, 1, self.SOURCE, WIDTH) for x in (keys, values))
        scores = core.sum(q.reshape(-1, HEADS, 1, WIDTH) * k, -1) * WIDTH**-0.5
        weights = ops.softmax(core.where(there, scores, float("-inf")))
        parts = weights.reshape(-1, HEADS, self.SOURCE, 1) * v
        return core.sum(core.where(there.reshape(-1, 1, self.SOURCE, 1), parts, 0), 2)


MIXERS = {
    "state": StateMixer, "latent": LatentMixer, "shared": SharingMixer, "cross": CrossMixer,
}  # fmt: skip
