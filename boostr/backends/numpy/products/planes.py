"""A weight of any stored form as kernels get it: its `Form`, and words for where planes lie."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np

from boostr.backends.numpy.backend import NumpyBackend, address
from boostr.backends.numpy.kernels.runtime import layout
from boostr.quant.forms import W8A8, Form, form_of
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

Weight = Tensor | QuantizedTensor


def why_not(weight: Weight) -> str | None:
    """Why the kernels do not read a weight's form; None if they do."""
    form = form_of(weight)
    return f"no kernel reads {weight!r}" if form is None else form_refusal(form)


@cache
def form_refusal(form: Form) -> str | None:
    """Why the kernels do not know a form; None if they do."""
    if form.group % 32 and form.group != 16:
        return f"groups of {form.group} inputs; kernels know 16 and multiples of 32"
    if form.super % 32:
        return f"super-scales of {form.super} inputs; kernels know multiples of 32"
    rounds = form.rounds_input and form != W8A8
    return "a rounded input with weights other than bytes under row scales" if rounds else None


def stored_form(weight: Weight) -> Form:
    """The form of a weight as memory holds it, whatever a product does to its input."""
    form = form_of(weight)
    if form is None:
        raise TypeError(f"no kernel reads {weight!r}; `why_not` says so")
    return replace(form, rounds_input=False) if form.rounds_input else form


def place(weight: Weight, backend: NumpyBackend) -> tuple[list[int], list[np.ndarray]]:
    """(the words of `layout.PLANES`, the arrays that lie there).

    Rows may lie apart, as those of a slice of columns do; elements of a row may not.
    """
    parts = {"codes": weight} if isinstance(weight, Tensor) else weight.parts
    words, arrays = [0] * layout.PLANE_WORDS, []
    for name, part in parts.items():
        x = part.data
        if x.ndim != 2:
            x = backend.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
        if not x.flags.c_contiguous and (x.strides[1] != x.itemsize or x.shape[1] == 1):
            x = backend.dense(x)
        at = layout.PLANES[name]
        words[at], words[at + 1] = address(x), x.strides[0]
        arrays.append(x)
    return words, arrays
