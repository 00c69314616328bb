"""All primitives of the wgpu backend. Views are here; what starts kernels is in the mixins.

What WebGPU cannot promise: a number below 2^-126 may count as 0; a nan may lose its payload in
arithmetic (copies keep it). An index outside of its axis is drawn to the border (numpy raises), and
where `put_rows` names a row twice either value may win.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from boostr.backends.wgpu.primitives import layout
from boostr.backends.wgpu.primitives.primitives_copy import Copying
from boostr.backends.wgpu.primitives.primitives_elementwise import Elementwise
from boostr.backends.wgpu.primitives.primitives_index import Indexing
from boostr.backends.wgpu.primitives.primitives_matmul import Products
from boostr.backends.wgpu.primitives.primitives_reduce import Reductions
from boostr.backends.wgpu.runtime.array import GpuArray, Shape


class Primitives(Elementwise, Copying, Reductions, Indexing, Products):
    """What `Backend` asks for, but memory, transfer and programs."""

    def shape(self, x: GpuArray) -> Shape:
        return x.shape

    def dtype(self, x: GpuArray) -> np.dtype:
        return x.dtype

    def is_contiguous(self, x: GpuArray) -> bool:
        return x.contiguous

    def reshape(self, x: GpuArray, shape: Shape) -> GpuArray:
        if -1 in shape:
            known = -math.prod(shape)
            shape = tuple(x.size // max(known, 1) if n == -1 else n for n in shape)
        view = layout.reshaped(x, shape)
        return layout.dense_view(self.copy(x), shape) if view is None else view

    def permute(self, x: GpuArray, axes: Sequence[int]) -> GpuArray:
        return x.view(
            shape=tuple(x.shape[i] for i in axes), strides=tuple(x.strides[i] for i in axes)
        )

    def broadcast_to(self, x: GpuArray, shape: Shape) -> GpuArray:
        return layout.broadcast(x, shape)

    def slice(self, x: GpuArray, slices: tuple[slice, ...]) -> GpuArray:
        shape, strides, offset = list(x.shape), list(x.strides), x.offset
        for axis, part in enumerate(slices):
            start, stop, step = part.indices(x.shape[axis])
            shape[axis] = len(range(start, stop, step))
            offset += start * x.strides[axis] if shape[axis] else 0
            strides[axis] *= step
        return x.view(shape=tuple(shape), strides=tuple(strides), offset=offset)

    def bitcast(self, x: GpuArray, dtype: Any) -> GpuArray:
        old, new = x.dtype.itemsize, np.dtype(dtype).itemsize
        lead = x.strides[:-1]
        whole = all(s * old % new == 0 for s in (x.offset, *lead)) and x.strides[-1] == 1
        if not whole and not (old == new and x.contiguous):
            x = self.copy(x)
        if old == new:
            return x.view(dtype=np.dtype(dtype))
        return x.view(
            dtype=np.dtype(dtype),
            shape=(*x.shape[:-1], x.shape[-1] * old // new),
            strides=(*(s * old // new for s in x.strides[:-1]), 1),
            offset=x.offset * old // new,
        )
