"""A weight as kernels bind it: form and planes, which `shaders/wgsl/products/planes.wgsl` reads."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.quant.forms import W8A8, Form, form_of
from boostr.quant.scheme import FIELDS, PACK, QuantizedTensor
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.wgpu.backend import WgpuBackend

Weight = Tensor | QuantizedTensor
Planes = tuple[GpuArray, ...]
PACKED = tuple(f"c{bits}" for bits in FIELDS if bits < 8)  # codes that lie 32 inputs together
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
    if form.rounds_input and form != W8A8:
        return "inputs are rounded, and codes are not int8 with one scale a row"
    # a load of packed codes may have two groups of 16
    packed = form.codes in PACKED and form.group != _TOGETHER
    if form.group % (PACK if packed else _TOGETHER):
        return f"groups are of {form.group} inputs"
    if form.super and (form.super % PACK or not form.group or form.super % form.group):
        return f"groups are of {form.group} inputs, super-groups of {form.super}"
    return None


_INTEGERS = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0,
             69.0, 89.0, 113.0)  # fmt: skip
# for the compile gate, not all that there are: each snippet of planes.wgsl, alone or beside others
FORMS = (
    Form("f32"), Form("f16"), Form("bf16"), W8A8, Form("c8", scale="f32"),
    Form("c8", group=64, scale="f32"), Form("c8", group=32, scale="f16"),
    Form("c8", -128, 64, "bf16", offsets="bf16"), Form("c8", 0, 128, "f16", offsets="zeros"),
    Form("c8", scale="f16"), Form("e4m3", scale="f32"), Form("e4m3", 0, 32, "e8m0"),
    Form("c6", 32, 16, "i8", 256), Form("c6", 0, 16, "f32", offsets="f16"),
    Form("c5", 0, 32, "i8", 256, "u8"), Form("c4", 8, scale="f32"), Form("c4", 8, 32, "f16"),
    Form("c4", 0, 32, "i8", 256, "u8"), Form("c4", 8, 128, "bf16", offsets="f32"),
    Form("c4", 0, 16, "e4m3", 256, table=_INTEGERS, factor=0.5),
    Form("c4", 0, 64, "f32", table=_INTEGERS), Form("c3", 0, 32, "f16", offsets="zeros"),
    Form("c3", 0, 16, "i8", 256, table=_INTEGERS[:8]), Form("c2", 0, 16, "i8", 256, "u8"),
)  # fmt: skip


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
    scheme, borders = weight.scheme, {}
    if scheme.bits < 8:
        fields = zip(("codes", "high"), FIELDS[scheme.bits], strict=False)
        borders = {name: 4 * bits for name, bits in fields}
        if scheme.group_size == _TOGETHER:  # a word has both scales of a load
            borders |= {"scales": 4, "offsets": 4, "zeros": 4}
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
    """Where planes begin in what is bound: codes (or floats) in loads of that many bytes, packed
    ones of what they take for 32 inputs at most; the others in elements."""
    fields = FIELDS[int(form.codes[1:])] if form.codes in PACKED else ()
    loads = [min(load, 4 * bits) for bits in fields] or [load]
    return [
        backend.offset(p) * p.dtype.itemsize // (size or p.dtype.itemsize)
        for p, size in zip_longest(planes, loads)
    ]
