"""Schemes of quantized weights as data, and the tensor that carries one: planes plus a shape.

Every scheme is the same sum, w[n, k] = scale[n, g] · (code[n, k] - zero) + offset[n, g], where g is
the group that input k is in. What differs is a row of `SCHEMES`: how wide codes are, how many
inputs share a scale, whether scales have a second level, whether there are offsets. The parts lie
apart ("planes"), row-major, so that a kernel reads whole words of each:

    codes    8 bits: int8 [N, K]. Fewer: the low 4 bits, uint8 [N, K/2]; 16 bytes for every 32
             inputs, byte i with input i in its low nibble and input i + 16 in its high one.
    high     the bits above 4 of 6-bit codes, uint8 [N, K/4]; 8 bytes for every 32 inputs, byte i
             with input i + 8·t in its bits 2t and 2t + 1. The word that has them for inputs
             4m .. 4m+3 of nibble word m is word m % 2, shifted by 2·(m // 2); for 16 inputs later
             by 4 more.
    scales   float32, float16, or int8 under `supers`; [N, G], G = ceil(K / group), 1 for a row.
    supers   float32 [N, K / 256]: what int8 scales of that many inputs are multiplied by.
    offsets  float16 [N, G].

Products with a scale are exact in float32 (at most 24 bits), so the order of operations does not
matter and decoding is bit for bit what the format means. Expert stacks have one axis more in front.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from boostr import dtypes
from boostr.errors import OptionError, ShapeError

if TYPE_CHECKING:
    from boostr.backends.base import Backend
    from boostr.tensor import Tensor

PACK = 32  # inputs whose codes of fewer than 8 bits are packed together


@dataclass(frozen=True)
class Part:
    """One plane of a scheme.

    Attributes:
        dtype: of its elements.   inputs: how many inputs of a row one element covers; 0 is all.
        pack: inputs whose elements are interleaved, so that columns can only be cut between them.
    """

    dtype: np.dtype
    inputs: int
    pack: int = 1

    def columns(self, K: int) -> int:
        """Elements of a row of K inputs."""
        return -(-K // self.inputs) if self.inputs else min(K, 1)

    @property
    def unit(self) -> int:
        """Inputs at whose multiples a row of this part can be cut; 0 if anywhere."""
        return math.lcm(self.inputs, self.pack)


@dataclass(frozen=True)
class Scheme:
    """One way to store a weight; see the module for what the parts mean.

    Attributes:
        name: as a user writes it.
        group_size: inputs that share a scale; 0 is a whole row.
        bits: of a code: 8 (signed), 6 or 4 (unsigned).   zero: subtracted from a code.
        scale: dtype of the scales.   super_size: inputs that share a super-scale; 0 has none.
        has_offsets: whether every group has one.
        activations_int8: whether `linear` also rounds its input to int8, one scale for each token.
        multiple: what the number of inputs must be a multiple of.
    """

    name: str
    group_size: int = 0
    bits: int = 8
    zero: int = 0
    scale: np.dtype = dtypes.float32
    super_size: int = 0
    has_offsets: bool = False
    activations_int8: bool = False
    multiple: int = 1

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The planes of a weight, in the order in which a kernel takes them."""
        if self.bits == 8:
            found = {"codes": Part(dtypes.int8, 1)}
        else:
            found = {"codes": Part(dtypes.uint8, 2, PACK)}
        if self.bits == 6:
            found["high"] = Part(dtypes.uint8, 4, PACK)
        found["scales"] = Part(self.scale, self.group_size)
        if self.super_size:
            found["supers"] = Part(dtypes.float32, self.super_size)
        if self.has_offsets:
            found["offsets"] = Part(dtypes.float16, self.group_size)
        return found

    @cached_property
    def unit(self) -> int:
        """Inputs at whose multiples a row can be cut into columns."""
        return math.lcm(*(part.unit or 1 for part in self.parts.values()))


_F16, _I8 = dtypes.float16, dtypes.int8
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8"),
        Scheme("int8-g32", 32),
        Scheme("int8-g64", 64),
        Scheme("int8-g128", 128),
        Scheme("w8a8", activations_int8=True),
        Scheme("q8_0", 32, scale=_F16, multiple=32),
        Scheme("q4_0", 32, bits=4, zero=8, scale=_F16, multiple=32),
        Scheme("q4_1", 32, bits=4, scale=_F16, has_offsets=True, multiple=32),
        Scheme("q6_k", 16, bits=6, zero=32, scale=_I8, super_size=256, multiple=256),
    )
}
QUANTIZABLE = ("int8", "int8-g32", "int8-g64", "int8-g128", "w8a8")


def parse_scheme(name: str) -> Scheme:
    """The scheme that weights can be quantized to, by name."""
    if name not in QUANTIZABLE:
        near = difflib.get_close_matches(name, QUANTIZABLE, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise OptionError(
            f"quantize: unknown scheme {name!r}; known: {', '.join(QUANTIZABLE)}{hint}"
        )
    return SCHEMES[name]


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight [N, K], or a stack of them [X, N, K], in packed form: `ops.linear`, `ops.embedding`
    and `ops.dequantize` take it as it is."""

    scheme: Scheme
    shape: tuple[int, ...]
    parts: dict[str, Tensor]

    def __post_init__(self) -> None:
        *lead, K = self.shape
        if K % self.scheme.multiple:
            raise ShapeError(
                f"{self.scheme.name}: inputs must be a multiple of {self.scheme.multiple}, got {K}"
            )
        want = {n: ((*lead, p.columns(K)), p.dtype) for n, p in self.scheme.parts.items()}
        got = {name: (part.shape, part.dtype) for name, part in self.parts.items()}
        if got != want:
            raise ShapeError(
                f"{self.scheme.name}: parts must be {_described(want)}, got {_described(got)}"
            )

    def tensors(self) -> Iterator[Tensor]:
        """The tensors that it is made of."""
        yield from self.parts.values()

    def rows(self, start: int, stop: int) -> QuantizedTensor:
        """Outputs [start, stop) of a weight [N, K], as views."""
        parts = {name: part[start:stop] for name, part in self.parts.items()}
        return QuantizedTensor(self.scheme, (stop - start, self.shape[-1]), parts)

    def columns(self, start: int, stop: int) -> QuantizedTensor:
        """Inputs [start, stop) of a weight [N, K], as views where the backend has strides.

        Raises:
            ShapeError: if a group or a packed word would be cut.
        """
        K, unit = self.shape[-1], self.scheme.unit
        if start % unit or (stop % unit and stop != K):
            raise ShapeError(
                f"{self.scheme.name}: columns can be cut at multiples of {unit}, got {start}:{stop}"
            )
        parts = {}
        for name, part in self.scheme.parts.items():
            first = start // part.inputs if part.inputs else 0
            parts[name] = self.parts[name][..., first : first + part.columns(stop - start)]
        return QuantizedTensor(self.scheme, (*self.shape[:-1], stop - start), parts)

    def expert(self, index: int) -> QuantizedTensor:
        """Weight `index` [N, K] of a stack [X, N, K]."""
        parts = {name: part[index] for name, part in self.parts.items()}
        return QuantizedTensor(self.scheme, self.shape[1:], parts)

    @property
    def backend(self) -> Backend:
        return next(iter(self.parts.values())).backend

    @property
    def size(self) -> int:
        """Weights as numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    def to(self, backend: str | Backend) -> QuantizedTensor:
        """The same weight on another backend."""
        return replace(self, parts={name: part.to(backend) for name, part in self.parts.items()})

    def __repr__(self) -> str:
        return f"QuantizedTensor({self.scheme.name}, shape={list(self.shape)})"


def _described(parts: dict) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (shape, dtype) in parts.items())
