"""Launches of the activation and softmax kernels; see `activation.wgsl` and `softmax.wgsl`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from boostr.backends import refusals
from boostr.backends.base import Kernel
from boostr.backends.wgpu.rows.rows import flat_rows, parts, plan, rows, run_length, type_of
from boostr.backends.wgpu.runtime.device import Caps
from boostr.backends.wgpu.runtime.kernels import Variant
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

FORMS = ("silu", "gelu", "gelu_tanh")
_THREADS = 256
_FEW = 256  # rows that leave a large GPU idle, so that each is split
_LONG = 8192  # elements of a row that is worth splitting


def _form(approximate: str) -> str:
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def _elementwise(
    form: str, x: Tensor, up: Tensor | None = None, g: Tensor | None = None
) -> list[Tensor]:
    """[f(x) · up], or with g [dx] or [dx, dup]."""
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    count = 2 if up is not None and g is not None else 1
    made = [backend.empty(x.shape, x.dtype) for _ in range(count)]
    sources = [t.data for t in (x, up, g) if t is not None]
    if x.size:
        for piece in parts(backend, *sources, *made):
            _launch(backend, form, piece[: len(sources)], piece[len(sources) :], up, g)
    return [Tensor.wrap(a, backend) for a in made]


def _gated_backward(
    form: str, g: Tensor, gate: Tensor, up: Tensor, again: bool
) -> tuple[Tensor, ...]:
    value = _elementwise(form, gate, up) if again else []
    return (*_elementwise(form, gate, up, g), *value)


def _launch(
    backend: WgpuBackend, form: str, sources: list[Any], made: list[Any], up: object, g: object
) -> None:
    dense, _, columns, strides = flat_rows(backend, *sources)
    run = run_length(backend, (columns, *strides), *dense, *made)
    steps = [s // run for s in strides]
    places = [backend.offset(a) // run for a in dense]
    if up is None:
        steps.insert(1, 0)
        places.insert(1, 0)
    if g is None:
        steps.append(0)
        places.append(0)
    per = 1 if run > 1 else 4 // made[0].dtype.itemsize
    count = made[0].size // run
    out = [backend.offset(a) // run for a in (made[0], made[-1])]
    backend.launch(
        "activation", "elementwise", -(-count // (_THREADS * per)), dense, made,
        (count, columns // run, *steps, *places, *out), X=type_of(made[0]), RUN=run, FORM=form,
        GATED=int(up is not None), BACK=int(g is not None),
    )  # fmt: skip


def _softmax(x: Tensor, axis: int, log: bool = False) -> Tensor:
    backend: WgpuBackend = x.backend  # type: ignore[assignment]
    if axis != x.ndim - 1:
        axes = [a for a in range(x.ndim) if a != axis] + [axis]
        moved = backend.permute(x.data, axes)
        made = _softmax(Tensor.wrap(backend.dense(moved), backend), x.ndim - 1, log)
        back = backend.permute(made.data, [axes.index(a) for a in range(x.ndim)])
        return Tensor.wrap(backend.dense(back), backend)
    out = backend.empty(x.shape, x.dtype)
    if x.size:
        for source, target in parts(backend, x.data, out):
            _launch_softmax(backend, source, target, log)
    return Tensor.wrap(out, backend)


def _launch_softmax(backend: WgpuBackend, x: Any, out: Any, log: bool) -> None:
    N = x.shape[-1]
    source, inner, stride = rows(backend, x)
    count = x.size // N
    run = run_length(backend, (N, stride), source, out)
    shape = plan(N, run, count, backend.caps)
    places = [backend.offset(a) // run for a in (source, out)]
    values = {"X": type_of(x), "LOG": int(log), **shape}
    params = [count, N // run, inner, stride // run, *places]
    if run > 1 and N >= _LONG and count < _FEW:
        _launch_split(backend, source, out, values, params)
        return
    share = shape["ROWS"] if run > 1 else 4 // x.dtype.itemsize
    backend.launch(
        "softmax", "softmax", -(-count // share), [source], [out], (*params, 1, N // run),
        SPLIT="", **values,
    )  # fmt: skip


def _launch_split(
    backend: WgpuBackend, source: Any, out: Any, values: dict[str, Any], params: list[int]
) -> None:
    """A row has several workgroups, of at least four runs a thread."""
    count, runs = params[:2]
    lanes = min(256, values["LANES"])
    splits = max(1, min(lanes, 2 * _FEW // count, runs // (4 * lanes)))
    share = -(-runs // splits)
    values = {**values, "ITEMS": 0, "LANES": lanes, "ROWS": 1, "EXACT": 0}
    partial = backend.empty((count, splits, 4), "float32")
    for name, reads, target in (("partial", [source], partial), ("apply", [source, partial], out)):
        backend.launch(
            "softmax", f"softmax_{name}", count * splits, reads, [target],
            (*params, splits, share), SPLIT=name, **values,
        )  # fmt: skip


def gated(gate: Tensor, up: Tensor, act: str) -> Tensor:
    """act(gate) · up, act being "silu", "gelu" or "gelu_tanh"."""
    return _elementwise(act, gate, up)[0]


KERNELS = {
    "silu": Kernel(lambda x: _elementwise("silu", x)[0], refusals.floats),
    "gelu": Kernel(lambda x, form: _elementwise(_form(form), x)[0], refusals.floats),
    "swiglu": Kernel(lambda gate, up: _elementwise("silu", gate, up)[0], refusals.floats),
    "geglu": Kernel(lambda gate, up, form: _elementwise(_form(form), gate, up)[0], refusals.floats),
    "silu_backward": Kernel(
        lambda g, x: _elementwise("silu", x, None, g)[0], refusals.activation_backward
    ),
    "gelu_backward": Kernel(
        lambda g, x, form: _elementwise(_form(form), x, None, g)[0], refusals.activation_backward
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
}  # fmt: skip

_CAPS = Caps("", "", "")
VARIANTS = [
    *(
        Variant("activation", {"X": x, "RUN": run, "FORM": form, "GATED": gate, "BACK": back})
        for x, run, form, gate, back in (
            ("bf16", 8, "silu", 1, 0), ("bf16", 8, "gelu", 1, 1), ("f16", 4, "gelu_tanh", 0, 1),
            ("f32", 4, "gelu_tanh", 1, 1), ("f32", 4, "silu", 0, 1), ("f16", 1, "gelu", 0, 0),
            ("bf16", 1, "silu", 1, 1), ("f32", 1, "gelu", 0, 1),
        )
    ),
    *(
        Variant("softmax", {"X": x, "LOG": log, "SPLIT": split, **plan(N, run, 9999, _CAPS)})
        for x, run, N, log, split in (
            ("bf16", 8, 2048, 0, ""), ("f16", 1, 65, 1, ""), ("f32", 4, 128256, 1, ""),
            ("f32", 4, 64, 0, ""), ("f32", 1, 65, 0, ""), ("bf16", 8, 128256, 0, "partial"),
            ("bf16", 8, 128256, 1, "apply"), ("f32", 4, 128256, 0, "apply"),
        )
    ),
]  # fmt: skip
