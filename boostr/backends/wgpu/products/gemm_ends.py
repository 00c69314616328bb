"""The end of a product, what is done to its sums, here or in `gemm_finish.wgsl`; and the parameters
of a launch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from boostr import dtypes
from boostr.backends.wgpu.products.gemm_operands import Operand
from boostr.backends.wgpu.runtime import wgsl
from boostr.backends.wgpu.runtime.array import GpuArray

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend


@dataclass(frozen=True)
class Ends:
    """Sums times x_scale, plus bias [N], plus residual, which lies as the result. All optional.

    Attributes:
        x_scale: f32 [M] of rows in int8 or f16.
    """

    bias: GpuArray | None = None
    residual: GpuArray | None = None
    x_scale: GpuArray | None = None

    def rows(self, start: int, stop: int, N: int) -> Ends:
        """For rows start to stop of the result alone."""
        return replace(
            self,
            residual=_window(self.residual, start * N, (stop - start, N)),
            x_scale=_window(self.x_scale, start, (stop - start,)),
        )

    def columns(self, start: int, stop: int) -> Ends:
        """For some columns; the residual stays as wide as the result."""
        shape = (stop - start,)
        return replace(self, bias=_window(self.bias, start, shape))

    def tail(self) -> list[GpuArray]:
        """Bias and residual as far as there are any."""
        return [a for a in (self.bias, self.residual) if a is not None]

    def values(self, apply: bool = True) -> dict[str, str]:
        """What templates must know of `tail`."""
        parts = (("BIAS", self.bias), ("RESIDUAL", self.residual))
        return {k: wgsl.name_of(a.dtype) if apply and a is not None else "" for k, a in parts}

    def offsets(self, backend: WgpuBackend) -> tuple[int, int, int]:
        """Of x_scale, bias and residual, as the shaders' parameters want them."""
        x_scale, bias, residual = (
            0 if a is None else backend.offset(a) for a in (self.x_scale, self.bias, self.residual)
        )
        return x_scale, bias, residual


def _window(array: GpuArray | None, skip: int, shape: tuple[int, ...]) -> GpuArray | None:
    if array is None:
        return None
    strides = (shape[1], 1) if len(shape) == 2 else (1,)
    return array.view(shape=shape, strides=strides, offset=array.offset + skip)


def finish(
    backend: WgpuBackend,
    part: GpuArray,
    ends: Ends,
    y: GpuArray,
    splits: int,
    w_scales: GpuArray | None,
) -> None:
    """y [..., M, N] from `splits` slabs of sums, f32, or int32 that are yet to be scaled by both
    sides' scales (w_scales: f32 [N])."""
    integers = part.dtype == dtypes.int32
    scales = [a for a in (w_scales, ends.x_scale) if a is not None] if integers else []
    w_scale = backend.offset(w_scales) if integers and w_scales is not None else 0
    offsets, at = ends.offsets(backend), backend.offset(y)
    whole = (y.shape[-1] | at | offsets[1] | offsets[2]) % 4 == 0
    backend.launch(
        "gemm_finish", "finish", -(-y.size // 1024), [part, *scales, *ends.tail()], [y],
        (y.size, y.shape[-1], splits, w_scale, *offsets, at),
        WHOLE=whole, SPLITS=splits if whole else 0,
        PART=wgsl.name_of(part.dtype), OUT=wgsl.name_of(y.dtype), **ends.values(),
    )  # fmt: skip


def parameters(
    backend: WgpuBackend, x: Operand, w: Operand, load: int, ends: Ends, y: GpuArray,
    sizes: tuple[int, int, int, int, int],
) -> tuple[int, ...]:  # fmt: skip
    """`struct Params` of gemm_head.wgsl.

    Args:
        load: bytes of codes that the kernel loads at a time.
        sizes: N, length of sums, steps of a split, splits, first column.
    """
    N, units, share, splits, column = sizes
    return (
        x.rows, N, x.inputs, units, share, splits, *x.bases(backend), x.line, x.batch,
        *w.bases(backend, load), w.line, w.batch, *ends.offsets(backend),
        y.shape[-1], column, backend.offset(y),
    )  # fmt: skip
