"""Launches of rope; see `shaders/wgsl/rows/rope.wgsl`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.wgpu.rows.rows import has_dense_rows, parts, row_stride, type_of
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

_THREADS = 256


def _run_pairs(D: int, half: int, item: int, *places: int) -> int:
    """Elements of a run, if both parts of a head come in pairs of them, else 1."""
    for run in (8, 4) if item == 2 else (4,):
        if not any(n % run for n in (half, *places)) and (D - 2 * half) % (2 * run) == 0:
            return run
    return 1


def _rope(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str, turn: float = 1.0
) -> Tensor:
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    out = backend.empty(x.shape, x.dtype)
    if x.size:
        tables = [backend.dense(t.data) for t in (cos, sin)]
        rows = backend.dense(positions.data)
        for source, target, places in parts(backend, x.data, out, rows):
            _launch(backend, source, target, tables, places, layout, turn)
    return Tensor.wrap(out, backend)


def _launch(
    backend: WgpuBackend, x: Any, out: Any, tables: list[Any], rows: Any, layout: str, turn: float
) -> None:
    x = x if has_dense_rows(x) else backend.dense(x)
    T, H, D = x.shape
    half, stride = tables[0].shape[1], row_stride(x)
    at = [backend.offset(a) for a in (x, *tables, rows, out)]
    run = _run_pairs(D, half, x.dtype.itemsize, stride, at[0], at[-1])
    if any(n % 4 for n in at[1:3]):
        run = 1
    if run > 1:
        threads = out.size // (2 * run)
        places = [at[0] // run, at[1] // 4, at[2] // 4, at[3], at[4] // run]
    else:
        places = at
        threads = -(-out.size * out.dtype.itemsize // 4)
    backend.launch(
        "rope", "rope", -(-threads // _THREADS), [x, *tables, rows], [out],
        (T, stride // run, *places, turn), X=type_of(x), RUN=run, D=D, HALF=half, H=H,
        INTERLEAVED=int(layout == "interleaved"),
    )  # fmt: skip


def _supports(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str) -> str | None:
    if str(cos.dtype) != "float32" or str(sin.dtype) != "float32":
        return f"the tables are {cos.dtype}, not float32"
    return "no dimension is rotated" if not cos.shape[1] else refusals.floats(x)


def _rope_backward(g: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str) -> Tensor:
    return _rope(g, cos, sin, positions, layout, -1.0)


KERNELS = {"rope": Kernel(_rope, _supports), "rope_backward": Kernel(_rope_backward, _supports)}

VARIANTS = [
    Variant("rope", {"X": x, "RUN": run, "D": D, "HALF": half, "H": H, "INTERLEAVED": interleaved})
    for x, run, D, half, H, interleaved in (
        ("bf16", 8, 128, 64, 32, 0), ("bf16", 8, 80, 16, 4, 1), ("f32", 4, 96, 24, 3, 0),
        ("f32", 4, 256, 128, 2, 1), ("f16", 4, 96, 24, 9, 0), ("f16", 1, 6, 3, 3, 0),
        ("bf16", 1, 5, 2, 3, 1), ("f32", 1, 5, 2, 1, 0),
    )
]  # fmt: skip
