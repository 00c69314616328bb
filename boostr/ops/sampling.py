"""Choosing tokens from logits, a batch at a time and on the device: no value is read on the host.

The order is that of Hugging Face's warpers: penalties and bias, temperature, top-k, top-p, min-p,
draw. Each row has its own options and its own random stream, so a row gives the same token alone
and in a batch. The draw is defined so that every backend can repeat it:

    candidates   i = 0, 1, ... in order of falling logit, ties by rising id
    w[i]         exp((x[i] - x[0]) / temperature); C[i] = w[0] + ... + w[i]
    kept         the first n candidates: i < top_k, C[i] - w[i] < top_p · C[min(top_k, V) - 1],
                 w[i] >= min_p, and always candidate 0
    drawn        the first i with C[i] > u · C[n - 1], u = (word 0 of Philox4x32-10 >> 8) / 2^24,
                 Philox's key being the row's seed and its counter (counter, 0, 0, 0)

A row with a nan, or whose largest logit is infinite, has no token: it gives -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import BackendError, DTypeError, ShapeError
from boostr.ops import core
from boostr.tensor import Tensor, arange, full

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def penalize(
    logits: Tensor,
    seen: Tensor,
    counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> Tensor:
    """Logits after the penalties on tokens that are there already.

    A seen token's logit x becomes x / repetition if x > 0, else x · repetition; then presence is
    subtracted once and frequency counts times from every token with a count.

    Args:
        logits: [B, V] float.   seen: bool or uint8 [B, V], tokens of the prompt or the output.
        counts: int32 [B, V], how often each token is in the output.
        repetition (1 is none), presence, frequency (0 is none): float32 [B].
    Returns:
        float32 [B, V]. No gradient.
    Source: Keskar et al. 2019, CTRL (repetition); OpenAI's API (presence, frequency).
    """
    _check_logits("penalize", logits)
    for name, x, kinds in (("seen", seen, _FLAGS), ("counts", counts, (dtypes.int32,))):
        _check("penalize", name, x, logits.shape, kinds)
    rows = (("repetition", repetition), ("presence", presence), ("frequency", frequency))
    for name, x in rows:
        _check("penalize", name, x, logits.shape[:1], (dtypes.float32,))
    return _penalize(logits.detach(), seen, counts, repetition, presence, frequency)


def add_bias(logits: Tensor, ids: Tensor, values: Tensor) -> None:
    """logits[b, ids[b, n]] += values[b, n], in place: OpenAI's logit_bias, behind `penalize`.

    Args:
        logits: float32 [B, V], contiguous.   ids: int32 [B, N], distinct in a row; those outside
            of 0..V-1 are skipped.   values: float32 [B, N].
    """
    _check_logits("add_bias", logits)
    _check("add_bias", "logits", logits, logits.shape, (dtypes.float32,))
    if ids.ndim != 2 or ids.shape[0] != logits.shape[0]:
        raise ShapeError(
            f"add_bias: ids must be [B, N] with B = {logits.shape[0]}, got {list(ids.shape)}"
        )
    _check("add_bias", "ids", ids, ids.shape, (dtypes.int32,))
    _check("add_bias", "values", values, ids.shape, (dtypes.float32,))
    if not logits.backend.is_contiguous(logits.data):
        raise BackendError("add_bias: logits are written in place and must be contiguous")
    if ids.size:
        _add_bias(logits.detach(), ids, values)


def greedy(logits: Tensor) -> Tensor:
    """The largest logit of each row, the lowest id among equals: int32 [B] from float [B, V].

    -1 for a row with a nan, or whose largest logit is infinite. No gradient.
    """
    _check_logits("greedy", logits)
    return _greedy(logits.detach())


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    counters: Tensor,
) -> Tensor:
    """One token id for each row, drawn as the module's docstring says.

    Args:
        logits: [B, V] float.   temperature: float32 [B]; 0 takes the largest logit, lowest id.
        top_k: int32 [B], 0 is off.   top_p: float32 [B], 1 is off.   min_p: float32 [B], 0 is off.
        seeds: uint32 [B, 2], low and high word (`seed_words`).   counters: int32 or uint32 [B]:
            which number of the row's stream to use; another for every token of a sequence.
    Returns:
        int32 [B]; -1 for a row with a nan, or whose largest logit is infinite.
    Source: Salmon et al. 2011 (Philox); Holtzman et al. 2019 (top-p); Nguyen et al. 2024 (min-p).
    """
    _check_filters("sample", logits, temperature, top_k, top_p, min_p)
    B = logits.shape[0]
    _check("sample", "seeds", seeds, (B, 2), (dtypes.uint32,))
    _check("sample", "counters", counters, (B,), (dtypes.int32, dtypes.uint32))
    return _sample(logits.detach(), temperature, top_k, top_p, min_p, seeds, counters)


def filtered_probabilities(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """The distribution that `sample` draws from, with its arguments: float32 [B, V] in id order."""
    _check_filters("filtered_probabilities", logits, temperature, top_k, top_p, min_p)
    return _filtered(logits.detach(), temperature, top_k, top_p, min_p)


def record_tokens(ids: Tensor, seen: Tensor, counts: Tensor) -> None:
    """Note the drawn tokens for the next `penalize`, in place: seen[b, ids[b]] = 1, counts += 1.

    Args:
        ids: int32 [B]; a negative one is skipped.   seen: bool or uint8 [B, V].
        counts: int32 [B, V].
    """
    if seen.ndim != 2:
        raise ShapeError(f"record_tokens: seen must be [B, V], got {list(seen.shape)}")
    _check("record_tokens", "ids", ids, seen.shape[:1], (dtypes.int32,))
    _check("record_tokens", "seen", seen, seen.shape, _FLAGS)
    _check("record_tokens", "counts", counts, seen.shape, (dtypes.int32,))
    for name, x in (("seen", seen), ("counts", counts)):
        if not x.backend.is_contiguous(x.data):
            raise BackendError(f"record_tokens: {name} is written in place and must be contiguous")
    _record(ids, seen, counts)


def philox(counters: Tensor, keys: Tensor) -> Tensor:
    """Random bits: Philox4x32-10 of uint32 counters [B, 4] under uint32 keys [B, 2], uint32 [B, 4].

    Source: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3 (Random123).
    """
    if counters.ndim != 2:
        raise ShapeError(f"philox: counters must be [B, 4], got {list(counters.shape)}")
    B = counters.shape[0]
    _check("philox", "counters", counters, (B, 4), (dtypes.uint32,))
    _check("philox", "keys", keys, (B, 2), (dtypes.uint32,))
    return _philox(counters, keys)


def seed_words(seeds: Sequence[int]) -> np.ndarray:
    """uint32 [B, 2], the low and high words of seeds modulo 2^64, as `sample` takes them."""
    words = [[s & 0xFFFFFFFF, s >> 32 & 0xFFFFFFFF] for s in seeds]
    return np.array(words, np.uint32).reshape(-1, 2)


# -- validation ----------------------------------------------------------------------------------
_FLAGS = (dtypes.bool_, dtypes.uint8)


def _check(op: str, name: str, x: Tensor, shape: tuple[int, ...], kinds: tuple) -> None:
    if x.shape != shape:
        raise ShapeError(f"{op}: {name} must be {list(shape)}, got {list(x.shape)}")
    if x.dtype not in kinds:
        wanted = " or ".join(kind.name for kind in kinds)
        raise DTypeError(f"{op}: {name} must be {wanted}, got {x.dtype}")


def _check_logits(op: str, logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ShapeError(f"{op}: logits must be [B, V] with V > 0, got {list(logits.shape)}")
    if not dtypes.is_float(logits.dtype):
        raise DTypeError(f"{op}: logits must be a float tensor, got {logits.dtype}")


def _check_filters(op, logits, temperature, top_k, top_p, min_p) -> None:
    _check_logits(op, logits)
    rows = (("temperature", temperature), ("top_p", top_p), ("min_p", min_p))
    for name, x in rows:
        _check(op, name, x, logits.shape[:1], (dtypes.float32,))
    _check(op, "top_k", top_k, logits.shape[:1], (dtypes.int32,))


# -- composites ----------------------------------------------------------------------------------
def _penalize_composite(logits, seen, counts, repetition, presence, frequency) -> Tensor:
    x = core.cast(logits, dtypes.float32)
    r = repetition.unsqueeze(1)
    x = core.where(core.ne(seen, 0), core.where(x > 0, x / r, x * r), x)
    used = core.cast(counts > 0, dtypes.float32) * presence.unsqueeze(1)
    return x - (used + core.cast(counts, dtypes.float32) * frequency.unsqueeze(1))


def _add_bias_composite(logits: Tensor, ids: Tensor, values: Tensor) -> None:
    B, V = logits.shape
    known = (ids >= 0) & (ids < V)
    places = core.where(known, arange(B, backend=ids.backend).unsqueeze(1) * V + ids, -1).flatten()
    flat = logits.flatten()
    biased = core.take(flat, core.maximum(places, 0)) + values.flatten()
    logits.backend.put_rows(flat.data, places.data, biased.data)


def _candidates(logits, temperature, top_k, top_p, min_p):
    """(ids int32 [B, V] in candidate order, w, C, kept bool [B, V]) of the module's definition."""
    V = logits.shape[1]
    x = core.cast(logits, dtypes.float32)
    ids = core.argsort(-x, 1)
    x = core.take_along(x, ids, 1)
    heat = core.where(temperature > 0, temperature, 1.0).unsqueeze(1)
    w = core.exp((x - x[:, :1]) / heat)
    C = core.cumsum(w, 1)
    place = arange(V, backend=logits.backend)
    first = core.minimum(core.where(top_k > 0, top_k, V), V).unsqueeze(1)
    nucleus = core.where(top_p < 1, top_p, math.inf).unsqueeze(1) * core.take_along(C, first - 1, 1)
    kept = (place < first) & (C - w < nucleus) & (w >= min_p.unsqueeze(1))
    kept = core.where((temperature > 0).unsqueeze(1), kept, False) | core.eq(place, 0)
    return ids, w, C, kept


def _filtered_composite(logits, temperature, top_k, top_p, min_p) -> Tensor:
    ids, w, _, kept = _candidates(logits, temperature, top_k, top_p, min_p)
    p = core.where(kept, w, 0.0)
    p = p / core.sum(p, 1, keepdims=True)
    return core.take_along(p, core.argsort(ids, 1), 1)


def _greedy_composite(logits: Tensor) -> Tensor:
    return _or_none(core.argmax(logits, 1), logits)


def _or_none(ids: Tensor, logits: Tensor) -> Tensor:
    """ids, -1 where the largest of a row's logits is no finite number."""
    top = core.max(core.cast(logits, dtypes.float32), 1)
    return core.where(core.abs(top) < math.inf, ids, -1)


def _sample_composite(logits, temperature, top_k, top_p, min_p, seeds, counters) -> Tensor:
    ids, _, C, kept = _candidates(logits, temperature, top_k, top_p, min_p)
    last = core.sum(core.cast(kept, dtypes.int32), 1, keepdims=True) - 1  # kept is a prefix
    target = _uniform(seeds, counters).unsqueeze(1) * core.take_along(C, last, 1)
    passed = core.cast(target >= C, dtypes.int32)
    drawn = core.minimum(core.sum(passed, 1, keepdims=True), last)
    return _or_none(core.take_along(ids, drawn, 1).squeeze(1), logits)


def _uniform(seeds: Tensor, counters: Tensor) -> Tensor:
    """float32 [B] in [0, 1), with 24 random bits: u · total < total also after rounding."""
    zeros = full((counters.size, 3), 0, dtypes.uint32, counters.backend)
    block = core.concat([core.cast(counters, dtypes.uint32).unsqueeze(1), zeros], 1)
    return core.cast(_philox(block, seeds)[:, 0] >> 8, dtypes.float32) * 2.0**-24


def _philox_composite(counters: Tensor, keys: Tensor) -> Tensor:
    """Both halves of the cipher at once: [2, B] `even` holds words 0 and 2, `odd` words 1 and 3."""
    words = counters.T
    even, odd, key = words[0::2], words[1::2], keys.T
    M, step = (
        Tensor(np.array(pair, np.uint32).reshape(2, 1), backend=counters.backend)
        for pair in (_MULTIPLIERS, _KEY_STEPS)
    )
    for i in range(_ROUNDS):
        key = key + step if i else key
        high, low = _high_product(even, M), even * M
        even, odd = (high[::-1] ^ odd) ^ key, low[::-1]
    return core.concat([even[:1], odd[:1], even[1:], odd[1:]]).T


def _high_product(a: Tensor, b: Tensor) -> Tensor:
    """The high 32 bits of a · b from 16-bit halves, as WebGPU has no 64-bit integers."""
    a0, a1, b0, b1 = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    middle = a1 * b0 + (a0 * b0 >> 16)
    return a1 * b1 + (middle >> 16) + ((a0 * b1 + (middle & 0xFFFF)) >> 16)


def _record_composite(ids: Tensor, seen: Tensor, counts: Tensor) -> None:
    B, V = counts.shape
    rows = core.where(ids >= 0, arange(B, backend=ids.backend) * V + ids, -1)
    flat_seen, flat_counts = seen.flatten(), counts.flatten()
    one = full((B,), 1, seen.dtype, seen.backend)
    seen.backend.put_rows(flat_seen.data, rows.data, one.data)
    more = core.take(flat_counts, core.maximum(rows, 0)) + 1
    counts.backend.put_rows(flat_counts.data, rows.data, more.data)


_penalize = Op("penalize", _penalize_composite)
_add_bias = Op("add_bias", _add_bias_composite)
_filtered = Op("filtered_probabilities", _filtered_composite)
_greedy = Op("greedy", _greedy_composite)
_sample = Op("sample", _sample_composite)
_philox = Op("philox", _philox_composite)
_record = Op("record_tokens", _record_composite)
