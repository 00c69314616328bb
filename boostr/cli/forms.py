"""What weights of a checkpoint are held as, and whose kernels multiply by them: from headers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boostr import backends, dtypes
from boostr.backends.forms import form_refusal
from boostr.errors import BoostrError
from boostr.io.gguf_split import GGUFSource
from boostr.io.safetensors import DTYPES, SafetensorsSource
from boostr.models.assemble import Assembled
from boostr.models.quantized import method_in, quantized_plan
from boostr.models.weights import stored_weights
from boostr.quant.forms import Form, scheme_form
from boostr.quant.gguf import BLOCK_TYPES
from boostr.quant.scheme import Scheme

INDICES = ("BOOL", "I64", "I32", "I16")  # types of buffers and masks, which are no parameters
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FORMS = {"float32": Form("f32"), "float16": Form("f16"), "bfloat16": Form("bf16")}


@dataclass(frozen=True)
class WeightRow:
    """A weight as it is held.

    Attributes:
        form: the name of a scheme, or a dtype.   scheme: None for floats.
        nbytes: in memory.
    """

    name: str
    form: str
    shape: tuple[int, ...]
    nbytes: int
    scheme: Scheme | None = None

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def weights_of_gguf(file: GGUFSource) -> list[WeightRow]:
    """The tensors of a GGUF file; blocks as the planes that they become."""
    rows = []
    for tensor in file.tensors.values():
        block = BLOCK_TYPES.get(tensor.type)
        if block is None or len(tensor.shape) < 2:
            form = _FLOATS.get(tensor.type, tensor.type)
            rows.append(WeightRow(tensor.name, form, tensor.shape, tensor.nbytes))
        else:
            rows.append(_packed(tensor.name, block.scheme, tensor.shape))
    return rows


def weights_of_folder(
    files: SafetensorsSource, raw: Mapping[str, Any], folder: Path
) -> tuple[list[WeightRow], str | None]:
    """(the weights of a safetensors checkpoint, why its packed ones are none)."""
    stored = stored_weights(files, str(folder))
    try:
        naming = quantized_plan(method_in(folder, raw)).load(stored)
    except BoostrError:  # a method that is not read: headers.py says so
        return [], None
    rows = []
    for name, weight in naming.weights.items():
        if isinstance(weight, Assembled) and weight.layout.floats is None:
            rows.append(_packed(name, weight.layout.scheme, weight.shape))
        elif isinstance(weight, Assembled):
            rows.append(_plain(name, str(weight.layout.floats), weight.shape))
        elif name in stored and files.info(name).dtype not in INDICES:
            kind = files.info(name).dtype
            rows.append(_plain(name, str(DTYPES[kind]), weight.shape))
    return rows, naming.problems[0] if naming.problems else None


def _packed(name: str, scheme: Scheme, shape: tuple[int, ...]) -> WeightRow:
    *lead, K = shape
    return WeightRow(name, scheme.name, shape, math.prod(lead) * scheme.row_bytes(K), scheme)


def _plain(name: str, dtype: str, shape: tuple[int, ...]) -> WeightRow:
    nbytes = math.prod(shape) * dtypes.parse(dtype).itemsize
    return WeightRow(name, dtype, shape, nbytes)


@dataclass(frozen=True)
class FormRow:
    """All matrices of one form.

    Attributes:
        count: of numbers.   nbytes: in memory.
        kernels: backend -> why none of its kernels multiplies by them, None if one does.
    """

    form: str
    weights: int
    count: int
    nbytes: int
    kernels: dict[str, str | None]

    @property
    def bits(self) -> float:
        """Of memory a number."""
        return 8 * self.nbytes / max(self.count, 1)


def forms_of(weights: Iterable[WeightRow]) -> list[FormRow]:
    """The forms of matrices and larger, the most bytes first."""
    groups: dict[str, list[WeightRow]] = {}
    for row in weights:
        if len(row.shape) > 1:
            groups.setdefault(row.form, []).append(row)
    made = [
        FormRow(
            form,
            len(rows),
            sum(r.count for r in rows),
            sum(r.nbytes for r in rows),
            _kernels(rows[0]),
        )
        for form, rows in groups.items()
    ]
    return sorted(made, key=lambda row: -row.nbytes)


def _kernels(row: WeightRow) -> dict[str, str | None]:
    form = _FORMS.get(row.form) if row.scheme is None else scheme_form(row.scheme)
    if form is None:
        return dict.fromkeys(backends.names(), f"{row.form} is not read")
    return {name: form_refusal(name, form) for name in backends.names()}
