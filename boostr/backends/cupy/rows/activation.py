"""Launches of the activation and softmax kernels; see `shaders/cuda/rows/activation.cu`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.cupy.rows.rows import flat_rows, plan, rows, run_length
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

FORMS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}
_THREADS, _UNROLL = 256, 1


def _form(approximate: str) -> str:
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def _elementwise(backend: CupyBackend, name: str, form: str, sources: list[Any], outputs: list[Any],
                 gated: bool) -> None:  # fmt: skip
    """Launch over arrays of one shape. Outputs may lie apart by rows as the sources do."""
    if not sources[0].size:
        return
    arrays, count, columns, strides = flat_rows(backend, *sources, *outputs)
    run = run_length((columns, *strides), *arrays)
    chunks = -(-columns // (run * _THREADS * _UNROLL))
    ins, outs = arrays[: len(sources)], arrays[len(sources) :]
    lengths = [np.int64(s) for s in strides[: len(sources)]]
    if not gated:  # the place of `up`
        ins.append(None)
        lengths.append(np.int64(0))
    if name == "elementwise_backward":
        outs += [None] * (3 - len(outs))
    backend.launch(
        "activation", name, (count * chunks,), (_THREADS,),
        [*ins, *outs, np.int64(columns), chunks, *lengths, np.int64(strides[-1])],
        dependent=True, X=backend.c_type(sources[0].dtype), VEC=run, THREADS=_THREADS,
        UNROLL=_UNROLL, FORM=FORMS[form], GATED=int(gated), AGAIN=int(len(outputs) == 3),
    )  # fmt: skip


def _forward(form: str, x: Tensor, up: Tensor | None = None) -> Tensor:
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    out = backend.empty(x.shape, x.dtype)
    sources = [x.data] if up is None else [x.data, up.data]
    _elementwise(backend, "elementwise", form, sources, [out], up is not None)
    return Tensor.wrap(out, backend)


def _backward(form: str, g: Tensor, x: Tensor) -> Tensor:
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    dx = backend.empty(x.shape, x.dtype)
    _elementwise(backend, "elementwise_backward", form, [g.data, x.data], [dx], False)
    return Tensor.wrap(dx, backend)


def _gated_backward(
    form: str, g: Tensor, gate: Tensor, up: Tensor, again: bool
) -> tuple[Tensor, ...]:
    backend: CupyBackend = gate.backend  # type: ignore[assignment]
    found = [backend.empty(gate.shape, gate.dtype) for _ in range(2 + again)]
    sources = [g.data, gate.data, up.data]
    _elementwise(backend, "elementwise_backward", form, sources, found, True)
    return tuple(Tensor.wrap(a, backend) for a in found)


def gated(backend: CupyBackend, gate_up: Any, act: str) -> Any:
    """act(gate) * up [T, F] for one array [T, 2F], gate in its left half and up in its right.

    act: "silu", "gelu" or "gelu_tanh". Rows may be strided.
    """
    T, F = gate_up.shape[0], gate_up.shape[1] // 2
    out = backend.empty((T, F), gate_up.dtype)
    _elementwise(backend, "elementwise", act, [gate_up[:, :F], gate_up[:, F:]], [out], True)
    return out


def _softmax(x: Tensor, axis: int, log: bool = False) -> Tensor:
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    out = backend.empty(x.shape, x.dtype)
    N = x.shape[axis]
    if not x.size:
        return Tensor.wrap(out, backend)
    macros: dict[str, Any] = {"X": backend.c_type(x.dtype), "LOG": int(log)}
    if axis != x.ndim - 1:
        inner = int(np.prod(x.shape[axis + 1 :]))
        columns = x.size // N
        backend.launch(
            "activation", "softmax_columns", (-(-columns // 128),), (128,),
            [backend.dense(x.data), out, np.int64(columns), N, inner], dependent=True,
            **macros, **plan(32, 1, True),
        )  # fmt: skip
        return Tensor.wrap(out, backend)
    source, inner, stride = rows(backend, x.data)
    count = x.size // N
    shape = plan(N, run_length((N, stride), source), count > 4 * backend.caps.sms)
    backend.launch(
        "activation", "softmax", (-(-count // shape["ROWS"]),), (shape["LANES"] * shape["ROWS"],),
        [source, out, count, N, inner, np.int64(stride)], dependent=True, **macros, **shape,
    )  # fmt: skip
    return Tensor.wrap(out, backend)


KERNELS = {
    "silu": Kernel(lambda x: _forward("silu", x), refusals.floats),
    "gelu": Kernel(lambda x, form: _forward(_form(form), x), refusals.floats),
    "swiglu": Kernel(lambda gate, up: _forward("silu", gate, up), refusals.floats),
    "geglu": Kernel(lambda gate, up, form: _forward(_form(form), gate, up), refusals.floats),
    "silu_backward": Kernel(lambda g, x: _backward("silu", g, x), refusals.activation_backward),
    "gelu_backward": Kernel(
        lambda g, x, form: _backward(_form(form), g, x), refusals.activation_backward
    ),
    "swiglu_backward": Kernel(
        lambda g, gate, up, again=False: _gated_backward("silu", g, gate, up, again),
        refusals.activation_backward,
    ),
    "geglu_backward": Kernel(
        lambda g, gate, up, form, again=False: _gated_backward(_form(form), g, gate, up, again),
        refusals.activation_backward,
    ),
    "softmax": Kernel(_softmax, refusals.floats),
    "log_softmax": Kernel(lambda x, axis: _softmax(x, axis, True), refusals.floats),
}

VARIANTS = [
    *(
        Variant("activation", {"X": x, "VEC": run, "THREADS": _THREADS, "UNROLL": _UNROLL,
                               "FORM": FORMS[form], "GATED": gate, "AGAIN": again})
        for x, run, form, gate, again in (
            ("bf16", 8, "silu", 1, 0), ("bf16", 8, "gelu", 1, 1), ("bf16", 8, "gelu_tanh", 0, 0),
            ("float", 4, "gelu_tanh", 1, 1), ("float", 4, "silu", 0, 0), ("f16", 1, "gelu", 0, 0),
            ("bf16", 8, "silu", 1, 1), ("f16", 1, "silu", 1, 1),
        )
    ),
    *(
        Variant("activation", {"X": x, "LOG": log, **plan(length, run, True)})
        for x, run, length, log in (
            ("bf16", 8, 2048, 0), ("f16", 1, 65, 1), ("float", 4, 128256, 1), ("float", 4, 512, 0),
        )
    ),
]  # fmt: skip
