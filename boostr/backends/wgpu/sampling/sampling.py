"""Launches of shaders/wgsl/sampling/*.wgsl: draws, argmax, penalties, random bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import name_of
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend
    from boostr.backends.wgpu.runtime.device import Caps

_MOST = 1 << 18  # columns that `sample` takes
_PIECE = 1 << 12  # columns that a workgroup reads faster than a second kernel starts
_PIECES = 64  # of a wider row, at most
# threads, bins and list of a draw
_SIZES = ((1024, 512, 1024), (512, 512, 1024), (256, 512, 512), (128, 256, 256))


def refusal(x: Tensor, *others: Any) -> str | None:
    """Why the kernels do not take these logits and what comes with them."""
    if x.dtype not in dtypes.MODEL_FLOATS:
        return f"it is {x.dtype}, not float32, float16 or bfloat16"
    most = x.backend.caps.binding_bytes  # type: ignore[attr-defined]
    for one in (x, *(o for o in others if isinstance(o, Tensor))):
        if one.nbytes > most:
            return f"{one.nbytes} bytes are more than the {most} of a binding"
    return None


def row_threads(caps: Caps, V: int) -> int:
    """A power of 2: of the workgroup that reads a row."""
    most = min(caps.workgroup_threads, 64 if caps.kind == "software" else 1024)
    return min(most, 64 if V <= 512 else 256 if V <= 8192 else 1024)


def reading(backend: WgpuBackend, logits: Any, threads: int) -> dict[str, Any]:
    """Values of sources that read rows of logits."""
    aligned = logits.shape[-1] % 4 == 0 and backend.offset(logits) % 4 == 0
    software = backend.caps.kind == "software"  # its compiler is slow, and one source is enough
    return {
        "LOGIT": name_of(logits.dtype),
        "VEC": logits.dtype == dtypes.float32 and aligned and not software,
        "THREADS": threads, "LOADS": 1 if software else 2,
        "SUBGROUPS": backend.caps.subgroup_max > 1,
    }  # fmt: skip


# -- argmax --------------------------------------------------------------------------------------
def _argmax_supports(x: Tensor, axis: int) -> str | None:
    if axis != x.ndim - 1:
        return "only the last axis"
    return refusal(x)


def _argmax(x: Tensor, axis: int) -> Tensor:
    return _largest(x, 0)


def _greedy(logits: Tensor) -> Tensor:
    return _largest(logits, 1)


def _largest(x: Tensor, finite: int) -> Tensor:
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    out = backend.empty(x.shape[:-1], np.int32)
    V = x.shape[-1]
    if out.size:
        rows, source = out.size, backend.dense(x.data)
        parts = 1 if V <= 2 * _PIECE or rows >= _PIECES else min(_PIECES, -(-V // _PIECE))
        piece = -(-V // (4 * parts)) * 4 if parts > 1 else V
        values = reading(backend, source, row_threads(backend.caps, piece))
        values["LOADS"] *= 2
        found = backend.empty((rows, parts, 2), np.uint32) if parts > 1 else out
        backend.launch(
            "sampling_argmax", "argmax", rows * parts, [source], [found],
            [rows, V, backend.offset(source), parts, piece, finite], **values,
            PARTS=int(parts > 1), PAIRS=0,
        )  # fmt: skip
        if parts > 1:
            _largest_of_pairs(backend, found, out, finite)
    return Tensor.wrap(out, backend)


def _largest_of_pairs(backend: WgpuBackend, found: Any, out: Any, finite: int) -> None:
    rows, parts, _ = found.shape
    values = {"LOGIT": "f32", "VEC": False, "THREADS": 64, "LOADS": 1, "PARTS": 0, "PAIRS": 1}
    params = [rows, parts, 0, 1, parts, finite]
    backend.launch(
        "sampling_argmax", "argmax", rows, [found], [out], params, **values,
        SUBGROUPS=backend.caps.subgroup_max > 1,
    )  # fmt: skip


# -- draws ---------------------------------------------------------------------------------------
def _sample_supports(logits: Tensor, *rest: Tensor) -> str | None:
    if logits.shape[1] > _MOST:
        return f"{logits.shape[1]} columns are more than {_MOST}"
    if logits.shape[0] > 65535:
        return f"{logits.shape[0]} rows are more than 65535"
    return refusal(logits)


def _sizes(caps: Caps, V: int) -> dict[str, int]:
    """Threads, bins and list, the largest for which shared memory has room."""
    most = row_threads(caps, V)
    lanes = caps.subgroup_min if 1 < caps.subgroup_min == caps.subgroup_max else 0
    for threads, bins, listed in _SIZES:
        threads = min(threads, most)
        firsts = threads // lanes if lanes and threads <= lanes * lanes else threads
        if 24 * bins + 16 * (threads + listed) + 8 * firsts + 128 <= caps.workgroup_bytes:
            break
    return {"THREADS": threads, "BINS": bins, "LIST": listed}


def _draw(parts: tuple[Tensor, ...], out: Any, draw: bool) -> Tensor:
    backend: WgpuBackend = parts[0].backend  # type: ignore[assignment]
    arrays = [backend.dense(x.data) for x in parts]
    B, V = arrays[0].shape
    sizes = _sizes(backend.caps, V)
    values = {**reading(backend, arrays[0], sizes["THREADS"]), **sizes}
    params = [V, *map(backend.offset, arrays), *(() if draw else (0, 0)), 4, 13, 3 + draw]
    backend.launch(
        "sampling", "sample" if draw else "filtered_probabilities", (B, 1, 1), arrays, [out],
        params, **values, DRAW=draw,
    )  # fmt: skip
    return Tensor.wrap(out, backend)


def _sample(logits, temperature, top_k, top_p, min_p, seeds, counters) -> Tensor:
    out = logits.backend.empty(logits.shape[:1], np.int32)
    return _draw((logits, temperature, top_k, top_p, min_p, seeds, counters), out, True)


def _filtered(logits, temperature, top_k, top_p, min_p) -> Tensor:
    out = logits.backend.empty(logits.shape, np.float32)
    return _draw((logits, temperature, top_k, top_p, min_p), out, False)


# -- the rest ------------------------------------------------------------------------------------
def _penalize(logits, seen, counts, repetition, presence, frequency) -> Tensor:
    backend: WgpuBackend = logits.backend  # type: ignore[assignment]
    out = backend.empty(logits.shape, np.float32)
    tensors = (logits, seen, counts, repetition, presence, frequency)
    arrays = [backend.dense(x.data) for x in tensors]
    backend.launch(
        "sampling_penalties", "penalize", -(-out.size // 1024), arrays, [out],
        [logits.shape[1], out.size, *map(backend.offset, arrays)], ENTRY="penalize",
        LOGIT=name_of(logits.dtype),
    )  # fmt: skip
    return Tensor.wrap(out, backend)


def _add_bias(logits: Tensor, ids: Tensor, values: Tensor) -> None:
    backend: WgpuBackend = logits.backend  # type: ignore[assignment]
    x, reads = logits.data, [backend.dense(t.data) for t in (ids, values)]
    reads = [backend.copy(a) if a.buffer.block is x.buffer.block else a for a in reads]
    backend.launch(
        "sampling_penalties", "add_bias", -(-ids.size // 64), reads, [x],
        [ids.size, ids.shape[1], logits.shape[1], *map(backend.offset, (*reads, x))],
        ENTRY="add_bias",
    )  # fmt: skip


def _record_supports(ids: Tensor, seen: Tensor, counts: Tensor) -> str | None:
    if seen.data.buffer.block is counts.data.buffer.block:
        return "seen and counts lie in one buffer"
    return refusal(Tensor.wrap(counts.data.view(dtype=dtypes.float32), ids.backend), seen)


def _record_tokens(ids, seen, counts) -> None:
    backend: WgpuBackend = ids.backend  # type: ignore[assignment]
    B, V = seen.shape
    tokens = backend.dense(ids.data)
    if tokens.buffer.block in (seen.data.buffer.block, counts.data.buffer.block):
        tokens = backend.copy(tokens)
    params = [B, V, *map(backend.offset, (tokens, seen.data, counts.data))]
    backend.launch(
        "sampling_penalties", "record_tokens", -(-B // 64), [tokens], [seen.data, counts.data],
        params, ENTRY="record_tokens",
    )  # fmt: skip


def _philox(counters: Tensor, keys: Tensor) -> Tensor:
    backend: WgpuBackend = counters.backend  # type: ignore[assignment]
    B = counters.shape[0]
    out = backend.empty((B, 4), np.uint32)
    arrays = [backend.dense(x.data) for x in (counters, keys)]
    params = [B, *map(backend.offset, arrays)]
    backend.launch("sampling_philox", "philox", -(-B // 64), arrays, [out], params)
    return Tensor.wrap(out, backend)


KERNELS = {
    "argmax": Kernel(_argmax, _argmax_supports),
    "greedy": Kernel(_greedy, refusal),
    "sample": Kernel(_sample, _sample_supports),
    "filtered_probabilities": Kernel(_filtered, _sample_supports),
    "penalize": Kernel(_penalize, refusal),
    "add_bias": Kernel(_add_bias, refusal),
    "record_tokens": Kernel(_record_tokens, _record_supports),
    "philox": Kernel(_philox),
}


def variant(family: str, logit: str, vec: bool, subgroups: bool, threads: int, **rest) -> Variant:
    values = {
        "LOGIT": logit, "VEC": vec, "THREADS": threads, "LOADS": 2 if threads > 64 else 1,
        "SUBGROUPS": subgroups, **rest,
    }  # fmt: skip
    needs = ("subgroup_max",) if subgroups else ()
    return Variant(family, values, needs)


_LARGE = {"BINS": 512, "LIST": 1024}
VARIANTS = [
    variant("sampling_argmax", "f32", True, True, 1024, PARTS=0, PAIRS=0),
    variant("sampling_argmax", "f32", True, True, 256, PARTS=1, PAIRS=0),
    variant("sampling_argmax", "f32", False, True, 64, PARTS=0, PAIRS=1),
    variant("sampling_argmax", "bf16", False, False, 64, PARTS=1, PAIRS=0),
    variant("sampling_argmax", "f32", False, False, 64, PARTS=0, PAIRS=1),
    variant("sampling", "f32", True, True, 1024, DRAW=True, **_LARGE),
    variant("sampling", "bf16", False, True, 64, DRAW=True, BINS=512, LIST=512),
    variant("sampling", "f16", False, False, 128, DRAW=True, BINS=256, LIST=256),
    variant("sampling", "f32", True, False, 128, DRAW=False, BINS=256, LIST=256),
    Variant("sampling_penalties", {"ENTRY": "record_tokens"}),
    Variant("sampling_penalties", {"ENTRY": "add_bias"}),
    *(Variant("sampling_penalties", {"ENTRY": "penalize", "LOGIT": x}) for x in ("bf16", "f32")),
    Variant("sampling_philox"),
]
