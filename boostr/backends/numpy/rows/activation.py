"""Launches of the activation and softmax kernels; see `activation.py` and
`activation_backward.py` in `kernels/rows/`."""

from __future__ import annotations

from boostr.backends.base import Kernel
from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.kernels.runtime.layout_ops import CHUNK
from boostr.backends.numpy.rows.rows import not_float32, rows
from boostr.tensor import Tensor


def _elementwise(form: str, x: Tensor, up: Tensor | None = None) -> Tensor:
    backend: NumpyBackend = x.backend  # type: ignore[assignment]
    sources = [rows(backend, t.data) for t in (x, x if up is None else up)]
    out = backend.empty(x.shape)
    F = x.shape[-1] if x.ndim else 1
    chunks = max(1, -(-F // CHUNK))
    params = [*(address(array) for array, _, _ in sources), address(out), F, chunks]
    for _, inner, stride in sources:
        params += [max(inner, 1), stride]
    items = x.size // max(F, 1) * chunks
    backend.launch(
        "activation.elementwise", params, items=items, grain=min(16, max(1, items // 16)),
        reads=[array for array, _, _ in sources], writes=[out], form=form, gated=up is not None,
    )  # fmt: skip
    return Tensor.wrap(out, backend)


def _backward(
    form: str, g: Tensor, x: Tensor, up: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(dx, dup): dup only of a gated form."""
    backend: NumpyBackend = x.backend  # type: ignore[assignment]
    sources = [rows(backend, t.data) for t in (g, x, x if up is None else up)]
    dx = backend.empty(x.shape)
    dup = None if up is None else backend.empty(x.shape)
    F = x.shape[-1] if x.ndim else 1
    chunks = max(1, -(-F // CHUNK))
    params = [*(address(array) for array, _, _ in sources), address(dx)]
    params += [0 if dup is None else address(dup), F, chunks]
    for _, inner, stride in sources:
        params += [max(inner, 1), stride]
    items = x.size // max(F, 1) * chunks
    backend.launch(
        "activation_backward.elementwise", params, items=items, grain=min(16, max(1, items // 16)),
        reads=[array for array, _, _ in sources], writes=[dx] if dup is None else [dx, dup],
        form=form, gated=up is not None,
    )  # fmt: skip
    return Tensor.wrap(dx, backend), None if dup is None else Tensor.wrap(dup, backend)


def _gated_backward(
    form: str, g: Tensor, gate: Tensor, up: Tensor, again: bool
) -> tuple[Tensor | None, ...]:
    found = _backward(form, g, gate, up)
    return (*found, _elementwise(form, gate, up)) if again else found


def _form(approximate: str) -> str:
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def _supports_last(x: Tensor, axis: int) -> str | None:
    return not_float32(x) or (None if axis == x.ndim - 1 else f"axis {axis} is not the last")


def _softmax(x: Tensor, axis: int, logarithm: bool = False) -> Tensor:
    backend: NumpyBackend = x.backend  # type: ignore[assignment]
    source, inner, stride = rows(backend, x.data)
    out = backend.empty(x.shape)
    N = x.shape[-1]
    params = [address(source), address(out), N, max(inner, 1), stride]
    backend.launch(
        "activation.softmax", params, items=x.size // max(N, 1), grain=max(1, 2048 // max(N, 1)),
        reads=[source], writes=[out], logarithm=logarithm,
    )  # fmt: skip
    return Tensor.wrap(out, backend)


KERNELS = {
    "silu": Kernel(lambda x: _elementwise("silu", x), not_float32),
    "gelu": Kernel(lambda x, form: _elementwise(_form(form), x), not_float32),
    "swiglu": Kernel(lambda gate, up: _elementwise("silu", gate, up), not_float32),
    "geglu": Kernel(lambda gate, up, form: _elementwise(_form(form), gate, up), not_float32),
    "silu_backward": Kernel(lambda g, x: _backward("silu", g, x)[0], not_float32),
    "gelu_backward": Kernel(lambda g, x, form: _backward(_form(form), g, x)[0], not_float32),
    "swiglu_backward": Kernel(
        lambda g, gate, up, again=False: _gated_backward("silu", g, gate, up, again), not_float32
    ),
    "geglu_backward": Kernel(
        lambda g, gate, up, form, again=False: _gated_backward(_form(form), g, gate, up, again),
        not_float32,
    ),
    "softmax": Kernel(_softmax, _supports_last),
    "log_softmax": Kernel(lambda x, axis: _softmax(x, axis, True), _supports_last),
}
