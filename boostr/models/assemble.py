"""The rule for weights that a checkpoint stores in several tensors: packed codes, scales, zeros.

`assemble(method)` makes one weight `NAME.weight` of the tensors `NAME.PART` of each module that a
method of quantization (`boostr.quant.formats`) has packed. Like all rules it reads no weight; rows
and columns of the weight are cut in its tensors, and what is read in the end is a band of rows at a
time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from boostr import backends, ops
from boostr.backends.base import Backend
from boostr.errors import ModelFileError
from boostr.io.mapping import release
from boostr.models.lazy import (
    Expected,
    FromFile,
    Held,
    Index,
    Indices,
    LazyWeight,
    composed,
    pick,
)
from boostr.models.plan import Naming, Rule
from boostr.nn.module import Weight
from boostr.operands import Ordered
from boostr.quant.formats.layout import Layout, Method, Numbers
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

_BAND = 1 << 20  # codes that are unpacked at a time: a few MiB, which caches hold


class Assembled(LazyWeight):
    """A weight [N, K] in tensors, or some of its rows and columns."""

    def __init__(
        self,
        tensors: Mapping[str, FromFile],
        layout: Layout,
        rows: Index | None = None,
        columns: range | None = None,
    ) -> None:
        self.tensors, self.layout = tensors, layout
        N, K = layout.shape
        self._rows: Index = range(N) if rows is None else rows
        self._columns = range(K) if columns is None else columns
        self.path = next(iter(tensors.values())).path
        self.sources = tuple(name for part in tensors.values() for name in part.sources)
        self.shape = len(self._rows), len(self._columns)

    def read(self, indices: Indices) -> np.ndarray:
        """Its numbers, of a weight that is kept as floats."""
        if self.layout.floats is None:
            raise ModelFileError(
                f"{self.path}: {' + '.join(self.sources)} are the parts of one packed weight, "
                "which cannot be turned, stacked or joined with others"
            )
        out = np.empty((len(indices[0]), len(indices[1])), self.layout.floats)
        rows = composed((self._rows,), (indices[0],))[0]
        wanted = composed((self._columns,), (indices[1],))[0]
        whole = range(self.layout.shape[1])
        for start, band in _bands(rows, len(whole)):
            planes = self._planes(band, whole)
            weight = _quantized(self.layout, (len(band), len(whole)), planes)
            decoded = ops.dequantize(weight, out.dtype).numpy()
            out[start : start + len(band)] = pick(decoded, (range(len(band)), wanted))
        return out

    def weight(self, backend: Backend) -> Weight:
        if self.layout.floats is not None:
            return super().weight(backend)
        scheme, (N, K) = self.layout.scheme, self.shape
        sizes = {name: ((N, part.columns(K)), part.dtype) for name, part in scheme.parts.items()}
        parts = {n: Tensor.wrap(backend.room(*size), backend) for n, size in sizes.items()}
        for start, rows in _bands(self._rows, K):
            for name, plane in self._planes(rows, self._columns).items():
                parts[name][start : start + len(rows)].assign(plane)
        for tensor in self.tensors.values():
            release(tensor.array())
        packed = QuantizedTensor(scheme, self.shape, parts)
        order = self.layout.order
        return packed if order is None else Ordered(packed, Tensor(order, backend=backend))

    def take(self, axis: int, index: Index) -> LazyWeight:
        if axis == 0:
            rows = composed((self._rows,), (index,))[0]
            return Assembled(self.tensors, self.layout, rows, self._columns)
        if self.layout.floats is not None:
            return super().take(axis, index)
        if isinstance(index, range) and index == range(self.shape[1]):
            return self
        columns = composed((self._columns,), (index,))[0]
        unit, K = self.layout.scheme.unit, self.layout.shape[1]
        if self.layout.order is not None:
            raise ModelFileError(
                f"{self.path}: {self.sources[0]}: its inputs are sorted by group (desc_act), so "
                "that columns cannot be cut"
            )
        if (
            not isinstance(columns, range)
            or columns.step != 1
            or columns.start % unit
            or (columns.stop % unit and columns.stop != K)
        ):
            raise ModelFileError(
                f"{self.path}: {self.sources[0]}: columns can be cut at multiples of {unit}, got "
                f"{columns}"
            )
        return Assembled(self.tensors, self.layout, self._rows, columns)

    def _planes(self, rows: Index, columns: range) -> Numbers:
        """The planes of some rows; what was read of the files is given back."""
        used: list[np.ndarray] = []
        try:
            planes = self.layout.read(self.tensors, rows, columns, used.append)
        except ModelFileError as error:
            raise ModelFileError(f"{self.path}: {error}") from None
        for array in used:
            if array.flags.c_contiguous and not any(
                np.may_share_memory(array, plane) for plane in planes.values()
            ):
                release(array)
        return planes


def _bands(rows: Index, K: int) -> Iterator[tuple[int, Index]]:
    """(start, rows) of bands of rows."""
    step = max(_BAND // max(K, 1), 1)
    return ((start, rows[start : start + step]) for start in range(0, len(rows), step))


def _quantized(layout: Layout, shape: tuple[int, int], planes: Numbers) -> QuantizedTensor:
    host = backends.get("numpy")
    parts = {name: Tensor(plane, backend=host) for name, plane in planes.items()}
    return QuantizedTensor(layout.scheme, shape, parts)


@dataclass(frozen=True)
class _Assemble:
    method: Method

    def load(self, naming: Naming) -> None:
        modules, marks = self._packed_modules(naming), self.method.marks
        if marks and not modules:
            naming.problems.append(
                f"the config says {self.method.name}, but no tensor's name ends with "
                f".{' or .'.join(marks)}; if the weights are floats, take that out of the config"
            )
        for module in modules:
            names = {part: f"{module}.{part}" for part in self.method.parts}
            found = {p: naming.weights.pop(n) for p, n in names.items() if n in naming.weights}
            tensors = cast(dict[str, FromFile], found)  # the first rule of a plan sees files
            made: LazyWeight = Expected((), tuple(names[part] for part in found))
            try:
                layout = self.method.layout(module, tensors)
                layout.check(tensors)
                made = Assembled(tensors, layout)
            except ModelFileError as error:
                naming.problems.append(f"{module} ({self.method.name}): {error}")
            bias = naming.weights.get(f"{module}.bias")
            if bias is not None:  # AutoGPTQ writes one for models that have none
                bias.is_optional = True
            naming.put(f"{module}.weight", made)

    def _packed_modules(self, naming: Naming) -> list[str]:
        marks = tuple(f".{mark}" for mark in self.method.marks)
        names = [name for name in naming.weights if name.endswith(marks)]
        found = (name.removesuffix(m) for name in names for m in marks if name.endswith(m))
        return list(dict.fromkeys(found))

    def save(self, naming: Naming) -> None:
        for name, weight in list(naming.weights.items()):
            module = name.removesuffix(".weight")
            if not isinstance(weight, Held) or not isinstance(weight.value, QuantizedTensor):
                continue
            arrays = self.method.written(module, weight.value)
            if arrays is not None:
                del naming.weights[name]
                for part, array in arrays.items():
                    naming.put(f"{module}.{part}", Held(f"{part} of {name}", array))


def assemble(method: Method) -> Rule:
    """Tensors `NAME.PART` of packed modules as weights `NAME.weight`: the first rule of a plan."""
    return _Assemble(method)
