"""Products of any dtype and strides; floats go to the tiles of gemm.py."""

from __future__ import annotations

import math

import numpy as np

from boostr import dtypes
from boostr.backends.wgpu.primitives import layout
from boostr.backends.wgpu.primitives.launcher import Launcher
from boostr.backends.wgpu.primitives.primitives_reduce import WIDE
from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.backends.wgpu.runtime.wgsl import VALUE, name_of

THREADS = 64


class Products(Launcher):
    """matmul."""

    def matmul(self, a: GpuArray, b: GpuArray) -> GpuArray:
        if dtypes.is_float(a.dtype):
            from boostr.backends.wgpu.products import gemm

            return gemm.matmul(self, a, b)  # type: ignore[arg-type]  (a part of WgpuBackend)
        return product(self, a, b)


def product(backend: Launcher, a: GpuArray, b: GpuArray, tiled: bool | None = None) -> GpuArray:
    """a [..., M, K] @ b [..., K, N] by matmul.wgsl; `tiled` chooses its kernel."""
    M, K, N = a.shape[-2], a.shape[-1], b.shape[-1]
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape, batches = (*lead, M, N), math.prod(lead)
    if batches * M * N * K == 0:
        return backend.full(shape, 0, a.dtype)
    a, b = layout.broadcast(a, (*lead, M, K)), layout.broadcast(b, (*lead, K, N))
    sizes, steps = layout.collapse(lead, a.strides[:-2], b.strides[:-2])
    if len(sizes) > 2:
        return product(backend, backend.copy(a), backend.copy(b), tiled)
    kind = name_of(a.dtype)
    out = backend.empty(shape, WIDE[VALUE[kind]])
    if tiled is None:
        tiled = backend.caps.kind != "software" and M * N > 1024
    if batches == 1:
        steps = [[0], [0]]
    walks = [(backend.offset(x), s) for x, s in zip((a, b), steps, strict=True)]
    params = [
        batches, M, N, K, *map(layout.word, (*a.strides[-2:], *b.strides[-2:])), M * N,
        *layout.walk(2, sizes, walks),
    ]  # fmt: skip
    threads = 256 if tiled else THREADS
    if tiled:
        grid = batches * (-(-M // 64) * -(-N // 64))
    else:
        grid = -(-batches * M * -(-N // 4) // threads)
    backend.launch(
        "matmul", "main", grid, [a, b], [out], params, IN=kind, TILED=tiled, threads=threads
    )
    return out if out.dtype == a.dtype else backend.cast(out, a.dtype)


VARIANTS = [
    Variant("matmul", {"IN": kind, "TILED": tiled, "threads": 256 if tiled else THREADS})
    for kind in ("f32", "bf16", "f16", "i32", "u32", "i8", "u8") for tiled in (False, True)
]  # fmt: skip
