"""GGUF's blocks as planes and back, without loss: one reader and one writer a type.

A reader takes the rows of a tensor as they lie in the file, uint8 [N, G, bytes of a block], and
gives the parts of its scheme (see `boostr.quant.scheme`); a writer gives the blocks again. Source:
the GGML reference, ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from boostr.quant.pack import pack_codes, unpack_codes

Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class BlockType:
    """A block type of GGUF: `size` inputs in `nbytes` bytes, and the scheme it is read as."""

    scheme: str
    size: int
    nbytes: int
    read: Callable[[np.ndarray], Parts]
    write: Callable[[Parts], np.ndarray]


def planes(kind: str, rows: np.ndarray) -> Parts:
    """The parts of rows uint8 [N, bytes] of a GGUF type such as "Q4_0"."""
    block = BLOCK_TYPES[kind]
    return block.read(rows.reshape(len(rows), rows.shape[1] // block.nbytes, block.nbytes))


def blocks(kind: str, parts: Parts) -> np.ndarray:
    """The rows uint8 [N, bytes] that `planes` reads as these parts."""
    return BLOCK_TYPES[kind].write(parts)


def _halves(blocks: np.ndarray, at: int) -> np.ndarray:
    """The f16 at byte `at` of each block: float16 [N, G]."""
    return blocks[..., at : at + 2].copy().view(np.float16)[..., 0]


def _joined(G: int, *fields: np.ndarray) -> np.ndarray:
    """Rows of G blocks, the fields of each block one after another: uint8 [N, bytes]."""
    N = len(fields[0])
    parts = [np.ascontiguousarray(f).view(np.uint8) for f in fields]
    return _flat(np.concatenate([_flat(p).reshape(N, G, _width(p) // G) for p in parts], 2))


def _flat(field: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(field).reshape(len(field), _width(field))


def _width(field: np.ndarray) -> int:
    """Elements of a row; also where there are no rows."""
    return math.prod(field.shape[1:])


def _read_q8_0(b: np.ndarray) -> Parts:
    return {"codes": _flat(b[..., 2:]).view(np.int8), "scales": _halves(b, 0)}


def _write_q8_0(parts: Parts) -> np.ndarray:
    return _joined(parts["scales"].shape[1], parts["scales"], parts["codes"])


def _read_q4_0(b: np.ndarray) -> Parts:
    return {"codes": _flat(b[..., 2:]), "scales": _halves(b, 0)}


def _read_q4_1(b: np.ndarray) -> Parts:
    return {"codes": _flat(b[..., 4:]), "scales": _halves(b, 0), "offsets": _halves(b, 2)}


def _write_q4_1(parts: Parts) -> np.ndarray:
    scales = parts["scales"]
    return _joined(scales.shape[1], scales, parts["offsets"], parts["codes"])


def _read_q6_k(b: np.ndarray) -> Parts:
    """256 inputs: 128 bytes of nibbles, 64 bytes of pairs, 16 int8 scales, f16 d.

    Each half of 128 inputs has 64 and 32 bytes: input 32·j + i has its nibble in byte
    32·(j % 2) + i, the low one for j < 2, and its pair in bits 2j, 2j + 1 of byte i.
    """
    N, G, _ = b.shape
    low, high = b[..., :128].reshape(N, G, 2, 2, 32), b[..., 128:192].reshape(N, G, 2, 1, 32)
    nibbles = np.concatenate([low & 15, low >> 4], 3)
    pairs = high >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    parts = pack_codes(_flat(nibbles | pairs << 4), 6)
    scales = _flat(b[..., 192:208]).view(np.int8)
    return {**parts, "scales": scales, "supers": _halves(b, 208).astype(np.float32)}


def _write_q6_k(parts: Parts) -> np.ndarray:
    N, G = parts["supers"].shape
    codes = unpack_codes(parts, 6).reshape(N, G, 2, 4, 32)
    nibbles = codes[:, :, :, :2] & 15 | (codes[:, :, :, 2:] & 15) << 4
    shifted = codes >> 4 << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    pairs = np.bitwise_or.reduce(shifted, 3)
    supers = parts["supers"].astype(np.float16)
    return _joined(G, nibbles, pairs, parts["scales"], supers)


BLOCK_TYPES = {
    "Q8_0": BlockType("q8_0", 32, 34, _read_q8_0, _write_q8_0),
    "Q4_0": BlockType("q4_0", 32, 18, _read_q4_0, _write_q8_0),
    "Q4_1": BlockType("q4_1", 32, 20, _read_q4_1, _write_q4_1),
    "Q6_K": BlockType("q6_k", 256, 210, _read_q6_k, _write_q6_k),
}
