"""GGUF's blocks as planes and back, without loss: a row of `BLOCK_TYPES` for each type.

Rows of a tensor as they lie in the file, uint8 [N, bytes], become the parts of a scheme (see
`boostr.quant.scheme`). What lies in a block as it does in a plane is only copied, which a row says
by numbers; a reader and a writer do the rest, if there is any. Source: the GGML reference,
ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from boostr.quant.pack import pack_codes, unpack_codes
from boostr.quant.scheme import SCHEMES, Scheme

Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class BlockType:
    """A block type of GGUF: `size` inputs in `nbytes` bytes.

    Attributes:
        scheme: what it is read as.
        fields: (part, first byte, bytes) of what is copied as it is.
        read: gives the other parts of blocks uint8 [N, G, nbytes].
        write: the other way round, into blocks that have their fields.
    """

    scheme: Scheme
    size: int
    nbytes: int
    fields: tuple[tuple[str, int, int], ...]
    read: Callable[[np.ndarray], Parts] | None = None
    write: Callable[[Parts, np.ndarray], None] | None = None


def planes(kind: str, rows: np.ndarray) -> Parts:
    """The parts of rows uint8 [N, bytes] of a GGUF type such as "Q4_0"."""
    block = BLOCK_TYPES[kind]
    b = rows.reshape(len(rows), rows.shape[1] // block.nbytes, block.nbytes)
    found = {name: _flat(b[..., at : at + size]) for name, at, size in block.fields}
    if block.read is not None:
        found |= block.read(b)
    return {name: found[name].view(part.dtype) for name, part in block.scheme.parts.items()}


def blocks(kind: str, parts: Parts) -> np.ndarray:
    """The rows uint8 [N, bytes] that `planes` reads as these parts."""
    block = BLOCK_TYPES[kind]
    name, _, size = block.fields[0]
    N, G = len(parts[name]), parts[name].view(np.uint8).shape[1] // size
    b = np.empty((N, G, block.nbytes), np.uint8)
    for name, at, size in block.fields:
        plane = np.ascontiguousarray(parts[name]).view(np.uint8)
        b[..., at : at + size] = plane.reshape(N, G, size)
    if block.write is not None:
        block.write(parts, b)
    return _flat(b)


def _flat(field: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(field).reshape(len(field), math.prod(field.shape[1:]))


def _read_q6_k(b: np.ndarray) -> Parts:
    """256 inputs: 128 bytes of nibbles, 64 bytes of pairs, 16 int8 scales, f16 d.

    Each half of 128 inputs has 64 and 32 bytes: input 32·j + i has its nibble in byte
    32·(j % 2) + i, the low one for j < 2, and its pair in bits 2j, 2j + 1 of byte i.
    """
    N, G, _ = b.shape
    low, high = b[..., :128].reshape(N, G, 2, 2, 32), b[..., 128:192].reshape(N, G, 2, 1, 32)
    nibbles = np.concatenate([low & 15, low >> 4], 3)
    pairs = high >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    supers = b[..., 208:].copy().view(np.float16)[..., 0]
    return {**pack_codes(_flat(nibbles | pairs << 4), 6), "supers": supers.astype(np.float32)}


def _write_q6_k(parts: Parts, b: np.ndarray) -> None:
    N, G, _ = b.shape
    codes = unpack_codes(parts, 6).reshape(N, G, 2, 4, 32)
    nibbles = codes[:, :, :, :2] & 15 | (codes[:, :, :, 2:] & 15) << 4
    shifted = codes >> 4 << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    b[..., :128] = nibbles.reshape(N, G, 128)
    b[..., 128:192] = np.bitwise_or.reduce(shifted, 3).reshape(N, G, 64)
    b[..., 208:] = parts["supers"].astype(np.float16)[..., None].view(np.uint8)


BLOCK_TYPES = {
    "Q8_0": BlockType(SCHEMES["q8_0"], 32, 34, (("scales", 0, 2), ("codes", 2, 32))),
    "Q4_0": BlockType(SCHEMES["q4_0"], 32, 18, (("scales", 0, 2), ("codes", 2, 16))),
    "Q4_1": BlockType(
        SCHEMES["q4_1"], 32, 20, (("scales", 0, 2), ("offsets", 2, 2), ("codes", 4, 16))
    ),
    "Q6_K": BlockType(SCHEMES["q6_k"], 256, 210, (("scales", 192, 16),), _read_q6_k, _write_q6_k),
}
