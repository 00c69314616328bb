"""Schemes of quantized weights as data, and the tensor that carries one: planes plus a shape.

Every scheme is the same sum, w[n, k] = s[n, g] · (v(code[n, k]) - zero) + o[n, g], where g is the
group that input k is in and s = factor · scale. What differs is a row of `SCHEMES`: how wide codes
are, what number a code stands for, how many inputs share a scale, whether scales have a second
level, whether there are offsets. The parts lie apart ("planes"), row-major, so that a kernel reads
whole words of each:

    codes    8 bits: int8 [N, K], or uint8 where they are floats (e4m3). Fewer: the low 4 bits (of
             codes of 3 bits 2), uint8; a field of b bits takes 4·b bytes for every 32 inputs, byte
             i with inputs i, i + 4·b, i + 8·b, ... from its low bits up. So nibbles are 16 bytes,
             byte i with input i in its low nibble and input i + 16 in its high one.
    high     the bits above those, laid out alike: 2 bits of 6-bit codes, 1 bit of 5 and of 3.
             Of pairs, the word that has them for inputs 4m .. 4m+3 of nibble word m is word m % 2,
             shifted by 2·(m // 2); for 16 inputs later by 4 more. Single bits are one word for 32
             inputs; those of inputs 4m .. 4m+3 are its bytes' bits m.
    scales   see SCALES; [N, G], G = ceil(K / group), 1 for a row.
    supers   float32 [N, ceil(K / super)]: what the scales of that many inputs are multiplied by.
    offsets  float32, float16 or bfloat16 [N, G], added as they are; or uint8 under `floors`.
    floors   float32 [N, ceil(K / super)]: what the uint8 offsets are multiplied by.
    zeros    int8 [N, G], in place of offsets: subtracted from codes, as `zero` is.

Products with a scale are exact in float32 (at most 24 bits), so the order of operations does not
matter and decoding is bit for bit what the format means; with floats that have a scale, or a scale
with a super-scale that is no power of two, it is one rounding of each product, in this order:
(code · (scale · super)). Expert stacks have one axis more in front.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

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


# how scales are stored, and the dtype of their part: int8 ones have super-scales, e8m0 is
# 2^(byte - 127), e4m3 the 8-bit float without infinities
SCALES = {
    "f32": dtypes.float32, "f16": dtypes.float16, "bf16": dtypes.bfloat16, "i8": dtypes.int8,
    "e8m0": dtypes.uint8, "e4m3": dtypes.uint8,
}  # fmt: skip
# how offsets are stored: added, times `floors` (u8), or subtracted from codes (zeros)
OFFSETS = {
    "f32": dtypes.float32, "f16": dtypes.float16, "bf16": dtypes.bfloat16, "u8": dtypes.uint8,
    "zeros": dtypes.int8,
}  # fmt: skip
FIELDS = {8: (8,), 6: (4, 2), 5: (4, 1), 4: (4,), 3: (2, 1), 2: (2,)}  # bits of codes, and of high


@dataclass(frozen=True)
class Scheme:
    """One way to store a weight; see the module for what the parts mean.

    Attributes:
        name: for messages; a user writes those of QUANTIZABLE.
        group_size: inputs that share a scale; 0 is a whole row.
        bits: of a code, a key of FIELDS; those of 8 are signed, the others not.
        zero: subtracted from a code's number.
        values: the numbers that codes stand for, () for the codes themselves; "e4m3" for codes of 8
            bits that are floats.
        scale: a key of SCALES.   factor: a power of two, in all scales.
        super_size: inputs that share a super-scale; 0 has none.
        offsets: a key of OFFSETS, "" for none.
        activations_int8: whether `linear` also rounds its input to int8, one scale for each token.
        multiple: what the number of inputs must be a multiple of.
    """

    name: str
    group_size: int = 0
    bits: int = 8
    zero: int = 0
    values: tuple[float, ...] | str = ()
    scale: str = "f32"
    factor: float = 1.0
    super_size: int = 0
    offsets: str = ""
    activations_int8: bool = False
    multiple: int = 1

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The planes of a weight, in the order in which a kernel takes them."""
        low, *high = FIELDS[self.bits]
        if self.bits == 8:
            found = {"codes": Part(dtypes.uint8 if self.values else dtypes.int8, 1)}
        else:
            found = {"codes": Part(dtypes.uint8, 8 // low, PACK)}
        if high:
            found["high"] = Part(dtypes.uint8, 8 // high[0], PACK)
        found["scales"] = Part(SCALES[self.scale], self.group_size)
        if self.super_size:
            found["supers"] = Part(dtypes.float32, self.super_size)
        if self.offsets:
            name = "zeros" if self.offsets == "zeros" else "offsets"
            found[name] = Part(OFFSETS[self.offsets], self.group_size)
        if self.offsets == "u8":
            found["floors"] = Part(dtypes.float32, self.super_size)
        return found

    def row_bytes(self, K: int) -> int:
        """Of all planes, for an output of K inputs."""
        return sum(part.columns(K) * part.dtype.itemsize for part in self.parts.values())

    @cached_property
    def unit(self) -> int:
        """Inputs at whose multiples a row can be cut into columns."""
        return math.lcm(*(part.unit or 1 for part in self.parts.values()))


# the quantiles of a normal distribution, of bitsandbytes. Source: QLoRA, Dettmers et al. 2023
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip

# what codes of GGUF's types stand for; a sign is the top bit where they come from grids
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # doubled: under factor 0.5
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_IQ3_S = (1, 3, 5, 7, 9, 11, 13, 15)
_IQ3_XXS = (4, 12, 20, 28, 36, 44, 52, 62)
_IQ2 = (8, 25, 43, 0)
_IQ1 = (-7, 1, 9, 0, -9, -1, 7, 0)  # 8 times -1, 0, 1, and a delta of 1 or, under the sign, -1


def _signed(values: tuple[float, ...]) -> tuple[float, ...]:
    return (*values, *(-value for value in values))


def _super(name: str, group: int, bits: int, **changes: Any) -> Scheme:
    """GGUF's superblocks: int8 scales under one of 256 inputs."""
    return Scheme(name, group, bits, scale="i8", super_size=256, multiple=256, **changes)


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8"),
        Scheme("int8-g32", 32),
        Scheme("int8-g64", 64),
        Scheme("int8-g128", 128),
        Scheme("w8a8", activations_int8=True),
        Scheme("int4-g32", 32, bits=4, zero=8, scale="bf16", multiple=PACK),
        Scheme("int4-g64", 64, bits=4, zero=8, scale="bf16", multiple=PACK),
        Scheme("int4-g128", 128, bits=4, zero=8, scale="bf16", multiple=PACK),
        Scheme("nf4", 64, bits=4, values=NF4, multiple=PACK),
        Scheme("fp8", values="e4m3"),
        Scheme("q8_0", 32, scale="f16", multiple=32),
        Scheme("q4_0", 32, bits=4, zero=8, scale="f16", multiple=32),
        Scheme("q4_1", 32, bits=4, scale="f16", offsets="f16", multiple=32),
        Scheme("q5_0", 32, bits=5, zero=16, scale="f16", multiple=32),
        Scheme("q5_1", 32, bits=5, scale="f16", offsets="f16", multiple=32),
        _super("q2_k", 16, 2, offsets="u8"),
        _super("q3_k", 16, 3, zero=4),
        _super("q4_k", 32, 4, offsets="u8"),
        _super("q5_k", 32, 5, offsets="u8"),
        _super("q6_k", 16, 6, zero=32),
        Scheme("iq4_nl", 32, bits=4, values=_IQ4, scale="f16", multiple=32),
        _super("iq4_xs", 32, 4, values=_IQ4),
        _super("iq3_s", 32, 4, values=_signed(_IQ3_S)),
        _super("iq3_xxs", 32, 4, values=_signed(_IQ3_XXS)),
        _super("iq2_s", 16, 3, values=_signed(_IQ2)),
        _super("iq2_xs", 16, 3, values=_signed(_IQ2)),
        _super("iq2_xxs", 32, 3, values=_signed(_IQ2)),
        _super("iq1_s", 32, 3, values=_IQ1),
        _super("iq1_m", 16, 3, values=_IQ1),
        Scheme("mxfp4", 32, bits=4, values=_E2M1, scale="e8m0", factor=0.5, multiple=32),
        Scheme(
            "nvfp4", 16, bits=4, values=_E2M1, scale="e4m3", factor=0.5, super_size=256, multiple=64
        ),
        Scheme("tq1_0", 256, bits=2, zero=1, scale="f16", multiple=256),
        Scheme("tq2_0", 256, bits=2, zero=1, scale="f16", multiple=256),
        Scheme("q1_0", 128, bits=2, zero=1, scale="f16", multiple=128),
        Scheme("q2_0", 64, bits=2, zero=1, scale="f16", multiple=64),
    )
}
QUANTIZABLE = (
    "int8", "int8-g32", "int8-g64", "int8-g128", "w8a8", "int4-g32", "int4-g64", "int4-g128", "nf4",
    "fp8",
)  # fmt: skip


def parse_scheme(name: str) -> Scheme:
    """The scheme that weights can be quantized to, by name."""
    if name not in QUANTIZABLE:
        raise OptionError(
            f"quantize: unknown scheme {name!r}; known: {', '.join(QUANTIZABLE)}"
            f"{did_you_mean(name, QUANTIZABLE)}"
        )
    return SCHEMES[name]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, in any case."""
    cases = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), cases, n=1)
    return f"; did you mean {cases[near[0]]!r}?" if near else ""


def affine_scheme(bits: int, group_size: int, floats: str = "bf16") -> Scheme:
    """Codes of `bits` from the least number of a group to its greatest, as MLX has them; `floats`
    is the kind of scales and offsets."""
    zero = -128 if bits == 8 else 0  # codes of 8 bits are signed
    name, multiple = f"int{bits}-g{group_size}-offsets", 1 if bits == 8 else PACK
    return Scheme(name, group_size, bits, zero, scale=floats, offsets=floats, multiple=multiple)


def embedding_scheme(scheme: str | None, wanted: str | bool | None = None) -> str | None:
    """What embedding and head become where the linear layers become `scheme`; None: nothing.

    Args:
        wanted: a scheme, True for `scheme` itself, False for nothing; None leaves them as stored
            under schemes of 8 bits and makes them int8-g32 under those of fewer, since a head that
            stays wide is then most of what a small model reads for a token.
    """
    if wanted is None:
        return "int8-g32" if scheme is not None and parse_scheme(scheme).bits < 8 else None
    if scheme is None and wanted is True:
        raise OptionError("quantize_embeddings=True needs quantize, the scheme that it repeats")
    return (scheme if wanted else None) if isinstance(wanted, bool) else parse_scheme(wanted).name


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
