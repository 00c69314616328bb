"""Launches of the kernels that choose tokens; see `kernels/sampling/sampling.py`."""

from __future__ import annotations

from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.kernels.runtime.layout_ops import PENALTY_CHUNK
from boostr.backends.numpy.rows.rows import not_float32, rows
from boostr.tensor import Tensor


def _argmax_supports(x: Tensor, axis: int) -> str | None:
    return not_float32(x) or (None if axis == x.ndim - 1 else f"axis {axis} is not the last")


def _argmax(x: Tensor, axis: int) -> Tensor:
    return _largest(x, 0)


def _greedy(logits: Tensor) -> Tensor:
    return _largest(logits, 1)


def _largest(x: Tensor, finite: int) -> Tensor:
    backend: NumpyBackend = x.backend  # type: ignore[assignment]
    source, inner, stride = rows(backend, x.data)
    out = backend.empty(x.shape[:-1], "int32")
    V = x.shape[-1]
    params = [address(source), address(out), V, max(inner, 1), stride, finite]
    backend.launch(
        "sampling.argmax", params, items=out.size, grain=max(1, 4096 // V), reads=[source],
        writes=[out],
    )  # fmt: skip
    return Tensor.wrap(out, backend)


def _penalize_supports(logits: Tensor, seen: Tensor, counts: Tensor, *rest) -> str | None:
    if not (seen.data.flags.c_contiguous and counts.data.flags.c_contiguous):
        return "seen or counts is not dense"
    return not_float32(logits, *rest)


def _penalize(
    logits: Tensor, seen: Tensor, counts: Tensor, repetition: Tensor, presence: Tensor,
    frequency: Tensor,
) -> Tensor:  # fmt: skip
    backend: NumpyBackend = logits.backend  # type: ignore[assignment]
    source, inner, stride = rows(backend, logits.data)
    state = [backend.dense(t.data) for t in (seen, counts, repetition, presence, frequency)]
    out = backend.empty(logits.shape)
    B, V = logits.shape
    chunks = -(-V // PENALTY_CHUNK)
    params = [address(source), inner, stride, *map(address, state)]
    params += [address(out), V, chunks]
    backend.launch(
        "sampling.penalize", params, items=B * chunks, grain=4, reads=[source, *state],
        writes=[out],
    )  # fmt: skip
    return Tensor.wrap(out, backend)


def _add_bias(logits: Tensor, ids: Tensor, values: Tensor) -> None:
    backend: NumpyBackend = logits.backend  # type: ignore[assignment]
    (B, V), reads = logits.shape, [backend.dense(x.data) for x in (ids, values)]
    params = [address(logits.data), *map(address, reads), V, ids.shape[1]]
    backend.launch(
        "sampling.add_bias", params, items=B, grain=16, reads=reads, writes=[logits.data]
    )


def _sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor,
    seeds: Tensor, counters: Tensor,
) -> Tensor:  # fmt: skip
    backend: NumpyBackend = logits.backend  # type: ignore[assignment]
    source, inner, stride = rows(backend, logits.data)
    options = [backend.dense(t.data) for t in (temperature, top_k, top_p, min_p, seeds, counters)]
    B, V = logits.shape
    scratch, out = backend.empty((B, V), "int32"), backend.empty((B,), "int32")
    params = [address(source), inner, stride, V, *map(address, (*options, scratch, out))]
    backend.launch(
        "sampling.sample", params, items=B, grain=1, reads=[source, *options],
        writes=[scratch, out],
    )  # fmt: skip
    return Tensor.wrap(out, backend)


def _record_tokens(ids: Tensor, seen: Tensor, counts: Tensor) -> None:
    backend: NumpyBackend = ids.backend  # type: ignore[assignment]
    tokens = backend.dense(ids.data)
    params = [address(tokens), address(seen.data), address(counts.data), seen.shape[1]]
    backend.launch(
        "sampling.record_tokens", params, items=ids.size, grain=64, reads=[tokens],
        writes=[seen.data, counts.data],
    )  # fmt: skip


KERNELS = {
    "argmax": Kernel(_argmax, _argmax_supports),
    "greedy": Kernel(_greedy, not_float32),
    "penalize": Kernel(_penalize, _penalize_supports),
    "add_bias": Kernel(_add_bias),
    "sample": Kernel(_sample, lambda logits, *rest: not_float32(logits)),
    "record_tokens": Kernel(_record_tokens),
}
