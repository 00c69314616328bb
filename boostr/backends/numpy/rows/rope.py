"""Launches of the rope kernel; see `kernels/rows/rope.py`."""

from __future__ import annotations

from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.rows.rows import not_float32, rows
from boostr.tensor import Tensor


def _supports(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str) -> str | None:
    return not_float32(x, cos, sin)


def _launch(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str, backward: bool
) -> Tensor:
    backend: NumpyBackend = x.backend  # type: ignore[assignment]
    source, _, stride = rows(backend, x.data)
    tables = [backend.dense(t.data) for t in (cos, sin, positions)]
    out = backend.empty(x.shape)
    T, H, D = x.shape
    params = [address(a) for a in (source, out, *tables)]
    params += [H, D, cos.shape[1], stride, cos.shape[0]]
    backend.launch(
        "rope.rope", params, items=T, grain=max(1, 2048 // max(H * D, 1)),
        reads=[source, *tables], writes=[out], interleaved=layout == "interleaved",
        backward=backward,
    )  # fmt: skip
    return Tensor.wrap(out, backend)


def _rope(*args) -> Tensor:
    return _launch(*args, backward=False)


def _rope_backward(*args) -> Tensor:
    return _launch(*args, backward=True)


KERNELS = {"rope": Kernel(_rope, _supports), "rope_backward": Kernel(_rope_backward, _supports)}
