"""What the launches of GEMVs share: x as their kernels read it, and where arrays begin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from boostr.backends.wgpu.products.gemv_plan import (
    Stored,
    Tile,
    choose,
    in_digits,
    padded_rows,
)
from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.backends.wgpu.runtime.wgsl import name_of

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

QUANTIZE_THREADS = 256


class NormForm(NamedTuple):
    """What sources are specialised by of a norm: of RMS, or a layer's; what is added to weights."""

    layer: bool = False
    offset: float = 0.0
    bias: bool = False


class Norm(NamedTuple):
    """A norm of x before the product: weight and bias float32 [K], eps; see `operands.Norm`."""

    weight: GpuArray
    eps: float
    offset: float = 0.0
    layer: bool = False
    bias: GpuArray | None = None

    @property
    def form(self) -> NormForm:
        return NormForm(self.layer, float(self.offset), self.bias is not None)


class Input(NamedTuple):
    """x as a kernel reads it: arrays to bind first, and the values that describe it.

    Attributes:
        scales: float32 [M] of a rounded x.   norm: what is left to the product.
        narrow: whether x, or what it is made of, is of 16 bits.
    """

    x: GpuArray
    M: int
    scales: GpuArray | None
    norm: Norm | None
    slow: bool
    narrow: bool
    values: dict[str, Any]


def prepared(backend: WgpuBackend, x: GpuArray, w: Stored, norm: Norm | None) -> Input:
    """x contiguous and on a 16-byte border; rounded to int8 (and normed before) where w asks."""
    M, K = x.shape
    if w.form.rounds_input:
        values, scales = quantized_rows(backend, x, norm)
        return Input(values, M, scales, None, w.slow, False, {"X": "f32", "XS": values.shape[1]})
    x = aligned(backend, x)
    if norm is not None:
        weight, bias = (a and aligned(backend, a) for a in (norm.weight, norm.bias))
        norm = norm._replace(weight=weight, bias=bias)
    narrow = x.dtype.itemsize == 2
    return Input(x, M, None, norm, w.slow, narrow, {"X": name_of(x.dtype), "XS": K})


def aligned(backend: WgpuBackend, x: GpuArray) -> GpuArray:
    x = backend.dense(x)
    return backend.copy(x) if backend.offset(x) * x.dtype.itemsize % 16 else x


def quantized_rows(
    backend: WgpuBackend, x: GpuArray, norm: Norm | None = None
) -> tuple[GpuArray, GpuArray]:
    """(int8 [M, K rounded up to 16], zeros behind K; float32 [M]): rows of x or norm(x) by their
    absmax / 127."""
    x = backend.dense(x)
    M, K = x.shape
    padded = -(-K // 16) * 16
    values, scales = backend.empty((M, padded), np.int8), backend.empty((M,), np.float32)
    gains = [] if norm is None else [backend.dense(a) for a in present(norm.weight, norm.bias)]
    places = [*map(backend.offset, gains), 0, 0][:2]
    backend.launch(
        "gemv_quantize", "main", M, [x, *gains], [values, scales],
        [backend.offset(x), *places, norm.eps if norm else 0.0],
        X=name_of(x.dtype), K=K, XS=padded, THREADS=QUANTIZE_THREADS,
        NORM=norm.form if norm else "",
    )  # fmt: skip
    return values, scales


def specialised(
    backend: WgpuBackend, w: Stored, given: Input, N: int, least: int, tile: Tile | None
) -> tuple[Tile, dict[str, Any]]:
    """How to cut a product with w, one of weights of N rows in all, and what its source is
    specialised by; `least`: what the rows of a team must be a multiple of."""
    M = padded_rows(given.M)
    digits = given.narrow and in_digits(backend.caps, w, M)
    tile = tile or choose(backend.caps, w._replace(N=N), M, least, digits)
    return tile, {
        "FORM": w.form, "SLOW": given.slow, "K": w.K, "M": M, "DIGITS": digits,
        "NORM": given.norm.form if given.norm else "", "INPUT": "plain", **given.values,
        **tile.values(),
    }  # fmt: skip


def base(backend: WgpuBackend, array: GpuArray | None, size: int = 1) -> int:
    """Where an array begins, in units of `size` elements."""
    return 0 if array is None else backend.offset(array) // size


def x_base(backend: WgpuBackend, given: Input) -> int:
    return base(backend, given.x, 1 if given.slow else 16 // given.x.dtype.itemsize)


def norm_arrays(given: Input) -> list[GpuArray]:
    """Those of the norm that is left to the product."""
    return present(given.norm.weight, given.norm.bias) if given.norm else []


def norm_bases(backend: WgpuBackend, given: Input) -> list[int]:
    return [base(backend, a, 1 if given.slow else 4) for a in norm_arrays(given)] or [0]


def present(*arrays: GpuArray | None) -> list[GpuArray]:
    return [a for a in arrays if a is not None]


def name_or_none(array: GpuArray | None) -> str:
    return "" if array is None else name_of(array.dtype)
