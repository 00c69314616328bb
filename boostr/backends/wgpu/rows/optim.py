"""Launches of shaders/wgsl/rows/optim.wgsl: AdamW, tensor by tensor, and the norm of many."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.wgpu.rows.rows import parts, type_of
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

_THREADS = 256
_MOST_SUMS = 1024  # workgroups of one tensor's norm


def _adamw(
    params, grads, ms, vs, masters, step, lr, grad_scale, beta1, beta2, eps, weight_decay
) -> None:
    if not params:
        return
    backend: WgpuBackend = params[0].backend  # type: ignore[assignment]
    knobs = [*(-math.log(b) if b else 1e4 for b in (beta1, beta2)), 1 - beta1, 1 - beta2,
             float(eps), float(weight_decay)]  # fmt: skip
    scalars = [backend.dense(s.data) if isinstance(s, Tensor) else float(s)
               for s in (step, lr, grad_scale)]  # fmt: skip
    for i, param in enumerate(params):
        if not param.size:
            continue
        arrays = [backend.dense(grads[i].data), param.data, ms[i].data, vs[i].data]
        arrays += [] if masters is None else [masters[i].data]
        flat = [a.view(shape=(a.size,), strides=(1,)) for a in arrays]
        for piece in parts(backend, *flat):
            _update(backend, piece, scalars, knobs)


def _update(
    backend: WgpuBackend, arrays: list[Any], scalars: list[Any], knobs: list[float]
) -> None:
    """One step of arrays [n]: grad, param, m, v and perhaps master."""
    grad, param = arrays[:2]
    n = param.size
    places = [backend.offset(a) for a in arrays]
    run = 1 if any(at % 4 for at in places) else 4  # 16 bytes of the many float32 arrays
    whole = n // run if run > 1 else 0
    reads = [s for s in scalars if not isinstance(s, float)]
    kinds = ["" if isinstance(s, float) else type_of(s) for s in scalars]
    at = [0 if isinstance(s, float) else backend.offset(s) for s in scalars]
    numbers = [s if isinstance(s, float) else 0.0 for s in scalars]
    values = {"P": type_of(param), "G": type_of(grad), "MASTER": len(arrays) - 4,
              "STEP": kinds[0], "LR": kinds[1], "SCALE": kinds[2]}  # fmt: skip

    def launch(count: int, run: int, places: list[int]) -> None:
        places = [*places, 0][:5]
        per = 4 // param.dtype.itemsize if run == 1 else 1
        threads = count // per + 1 + (per > 1)  # an unaligned parameter has one word more
        backend.launch(
            "optim", "adamw", -(-threads // _THREADS), [grad, *reads], arrays[1:],
            (count, *places, *at, *numbers, *knobs), ENTRY="adamw", RUN=run, **values,
        )  # fmt: skip

    if whole:
        launch(whole, run, [at // run for at in places])
    if n > whole * run:
        launch(n - whole * run, 1, [at + whole * run for at in places])


def _adamw_supports(params, grads, ms, vs, masters, step, *rest) -> str | None:
    if reason := refusals.only_floats(*params, *grads):
        return reason
    for i in range(len(params)):
        written = [group[i].data.buffer.block for group in (params, ms, vs, masters) if group]
        if len({id(b) for b in written}) < len(written):
            return "two of the tensors that are written lie in one buffer"
        read = (grads[i], step, *rest[:2])
        if {id(x.data.buffer.block) for x in read if isinstance(x, Tensor)} & set(map(id, written)):
            return "a tensor that is read lies in the buffer of one that is written"
    return None


def _global_norm(tensors: list[Tensor]) -> Tensor:
    backend: WgpuBackend = tensors[0].backend  # type: ignore[assignment]
    flat = []
    for x in tensors:
        if x.size:
            dense = backend.dense(x.data)
            flat += [p[0] for p in parts(backend, dense.view(shape=(x.size,), strides=(1,)))]
    lanes = _lanes(backend)
    share = 4 * 8 * lanes  # elements that a workgroup should have, at least
    groups = [min(_MOST_SUMS, -(-x.size // share)) for x in flat]
    partial = backend.empty((max(sum(groups), 1),), np.float32)
    norm = backend.empty((), np.float32)
    first = 0
    for x, count in zip(flat, groups, strict=True):
        backend.launch(
            "optim", "square_sums", count, [x, x], [partial],
            (x.size, backend.offset(x), first, count * lanes), ENTRY="square_sums",
            G=type_of(x), RUN=16 // x.dtype.itemsize, LANES=lanes,
        )  # fmt: skip
        first += count
    backend.launch(
        "optim", "root_of_sums", 1, [partial], [norm], (first,), ENTRY="root_of_sums", RUN=4,
        LANES=lanes,
    )  # fmt: skip
    return Tensor.wrap(norm, backend)


def _lanes(backend: WgpuBackend) -> int:
    return 64 if backend.caps.kind == "software" else 256


def _norm_supports(tensors: list[Tensor]) -> str | None:
    return refusals.only_floats(*tensors)


KERNELS = {
    "adamw": Kernel(_adamw, _adamw_supports),
    "global_norm": Kernel(_global_norm, _norm_supports),
}
VARIANTS = [
    *(
        Variant("optim", {"ENTRY": "adamw", "P": p, "G": g, "MASTER": master, "STEP": step,
                          "LR": lr, "SCALE": scale, "RUN": run})
        for p, g, master, step, lr, scale, run in (
            ("f32", "f32", 0, "", "", "", 4), ("bf16", "bf16", 1, "i32", "f32", "f32", 4),
            ("f16", "f32", 1, "f32", "", "", 4), ("bf16", "f32", 0, "", "f32", "", 1),
            ("f32", "f16", 1, "i32", "", "f32", 1),
        )
    ),
    *(
        Variant("optim", {"ENTRY": "square_sums", "G": g, "RUN": run, "LANES": lanes})
        for g, run, lanes in (("f32", 4, 256), ("bf16", 8, 256), ("f16", 8, 64))
    ),
    Variant("optim", {"ENTRY": "root_of_sums", "RUN": 4, "LANES": 256}),
]  # fmt: skip
