"""A weight as kernels bind it: form and planes, which `shaders/wgsl/products/planes.wgsl` reads."""

from __future__ import annotations

from itertools import chain, repeat
from typing import TYPE_CHECKING

from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.quant.forms import Form, form_of, scheme_form
from boostr.quant.scheme import PACK, SCHEMES, QuantizedTensor
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

Weight = Tensor | QuantizedTensor
Planes = tuple[GpuArray, ...]
PACKED = ("c6", "c4")  # codes that lie 32 inputs together
_CODES = ("c8", *PACKED)  # that there are decoders for
_TOGETHER = 16  # inputs that a kernel decodes with one scale


def refusal(weight: Weight) -> str | None:
    """None if kernels can decode the weight, else why not."""
    form = form_of(weight)
    if isinstance(weight, Tensor):
        return None if form else f"dtype {weight.dtype} is none of float32, float16, bfloat16"
    reason = None if form is None else form_refusal(form)
    return None if reason is None else f"{weight.scheme.name}: {reason}"


def form_refusal(form: Form) -> str | None:
    """The same of a form of codes."""
    if form.codes not in _CODES:
        return f"there is no decoder of {form.codes} codes"
    if form.table or form.factor != 1.0:
        return "codes stand for other numbers"
    if form.offsets not in ("", "f16"):
        return f"offsets are {form.offsets}"
    if form.scale not in ("f32", "f16", "i8") or (form.scale == "i8") != (form.super > 0):
        return f"scales are {form.scale}, super-scales of {form.super} inputs"
    if form.group == 0:
        plain = form.codes == "c8" and form.scale == "f32" and not (form.zero or form.offsets)
        return None if plain else "a row has one scale, and codes are not int8 or have offsets"
    # a load of packed codes has two groups of 16, whose scales then lie in one word
    short = form.scale == "i8" and not form.offsets and form.group == _TOGETHER
    if form.group % (_TOGETHER if form.codes == "c8" or short else PACK) or form.super % form.group:
        return f"groups are of {form.group} inputs, super-groups of {form.super}"
    return "inputs are rounded, and scales are of groups" if form.rounds_input else None


# every form that there may be, for the compile gate
FORMS = (Form("f32"), Form("f16"), Form("bf16"), *(
    form for form in dict.fromkeys(map(scheme_form, SCHEMES.values())) if not form_refusal(form)
))  # fmt: skip


def stored_form(weight: Weight) -> Form:
    """The form of a weight that `refusal` takes."""
    form = form_of(weight)
    if form is None:
        raise TypeError("a weight of this dtype has no form")
    return form


def planes_of(backend: WgpuBackend, weight: Weight) -> Planes:
    """The planes of a weight [N, K], rows without gaps, as far on their borders as loads need."""
    if isinstance(weight, Tensor):
        return (_rows(backend, weight.data, 1),)
    scheme, borders = weight.scheme, {"high": 8}
    if scheme.bits < 8:
        borders["codes"] = 16
    if scheme.super_size:  # a word may have the scales of two groups of a load
        borders["scales"] = 4
    return tuple(
        _rows(backend, weight.parts[name].data, borders.get(name, 1)) for name in scheme.parts
    )


def _rows(backend: WgpuBackend, array: GpuArray, border: int) -> GpuArray:
    """The array with dense rows; a single row may have any stride. border: bytes it begins at."""
    dense = backend.dense(array)
    if dense.offset * dense.dtype.itemsize % border:
        dense = backend.copy(dense)
    width = dense.shape[1]
    return dense if dense.strides == (width, 1) else dense.view(strides=(width, 1))


def cut(planes: Planes, first: int, count: int) -> Planes:
    """Some rows of all planes."""
    return tuple(
        p.view(shape=(count, p.shape[1]), offset=p.offset + first * p.shape[1]) for p in planes
    )


def bases(backend: WgpuBackend, form: Form, planes: Planes, load: int) -> list[int]:
    """Where planes begin in what is bound: codes (or floats) in loads of that many bytes, high bits
    in loads of 8 at most, the others in elements."""
    loads = chain((load, min(load, 8)) if form.codes == "c6" else (load,), repeat(None))
    return [
        backend.offset(p) * p.dtype.itemsize // (size or p.dtype.itemsize)
        for p, size in zip(planes, loads, strict=False)
    ]
