"""Schemes of quantized weights, and the tensor that carries one: packed parts plus a logical shape.

Symmetric int8 (`int8`, `int8-g32|g64|g128`, `w8a8`): parts `values` int8 [N, K] and `scales`
float32 [N, G], one scale for each row (G = 1) or for each group of 32, 64 or 128 inputs (G =
ceil(K / group); the last group may be short). w = values · scale.
GGUF blocks (`q8_0`, `q4_1`): one part `blocks` uint8 [N, bytes], the rows as they lie in the file,
32 inputs to a block. Q8_0: f16 d, 32 int8; w = d·q. Q4_1: f16 d, f16 m, 16 bytes whose low nibbles
are elements 0..15 and high nibbles 16..31; w = d·q + m. (Source: the GGML reference, ggml-quants.)
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from boostr.errors import OptionError, ShapeError

if TYPE_CHECKING:
    from boostr.backends.base import Backend
    from boostr.tensor import Tensor


@dataclass(frozen=True)
class Scheme:
    """One way to store a weight.

    Attributes:
        name: as a user writes it.
        group_size: inputs that share a scale; 0 is a whole row.
        block_bytes: bytes of one block of 32 inputs, for GGUF block schemes, else 0.
        activations_int8: whether `linear` also rounds its input to int8, one scale for each token.
    """

    name: str
    group_size: int = 0
    block_bytes: int = 0
    activations_int8: bool = False

    @property
    def is_block(self) -> bool:
        return self.block_bytes > 0


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8"),
        Scheme("int8-g32", group_size=32),
        Scheme("int8-g64", group_size=64),
        Scheme("int8-g128", group_size=128),
        Scheme("w8a8", activations_int8=True),
        Scheme("q8_0", group_size=32, block_bytes=34),
        Scheme("q4_1", group_size=32, block_bytes=20),
    )
}
QUANTIZABLE = tuple(name for name, scheme in SCHEMES.items() if not scheme.is_block)


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
    """A weight [N, K] in packed form, which `ops.linear` and `ops.embedding` take as it is."""

    scheme: Scheme
    shape: tuple[int, int]
    parts: dict[str, Tensor]

    def __post_init__(self) -> None:
        N, K = self.shape
        group = self.scheme.group_size or max(K, 1)
        if self.scheme.is_block:
            if K % 32:
                raise ShapeError(f"{self.scheme.name}: inputs must be a multiple of 32, got {K}")
            want = {"blocks": (N, K // 32 * self.scheme.block_bytes)}
        else:
            want = {"values": (N, K), "scales": (N, -(-K // group))}
        got = {name: part.shape for name, part in self.parts.items()}
        if got != want:
            raise ShapeError(f"{self.scheme.name}: parts must be {want}, got {got}")

    @property
    def backend(self) -> Backend:
        return next(iter(self.parts.values())).backend

    @property
    def size(self) -> int:
        """Weights as numbers."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    def to(self, backend: str | Backend) -> QuantizedTensor:
        """The same weight on another backend."""
        moved = {name: part.to(backend) for name, part in self.parts.items()}
        return QuantizedTensor(self.scheme, self.shape, moved)

    def __repr__(self) -> str:
        return f"QuantizedTensor({self.scheme.name}, shape={list(self.shape)})"
