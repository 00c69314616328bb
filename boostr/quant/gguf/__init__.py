"""GGUF's blocks as planes and back: a row of `BLOCK_TYPES` for each type.

Rows of a tensor as they lie in the file, uint8 [N, bytes], become the parts of a scheme (see
`boostr.quant.scheme`), and mean the same numbers bit for bit. A row says as data where in a block
its parts are; what is packed in another way a reader and a writer know. All types come back as
they were but the IQ types that have a grid, and TQ1_0 where a byte is none that its writer makes.
Source: the GGML reference, ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from boostr.quant.gguf import iq, k_quants, ternary
from boostr.quant.gguf.block import Bits, BlockType, Parts, flat, read_parts, write_parts
from boostr.quant.scheme import SCHEMES

__all__ = ["BLOCK_TYPES", "Bits", "BlockType", "Parts", "blocks", "planes"]


def planes(kind: str, rows: np.ndarray) -> Parts:
    """The parts of rows uint8 [N, bytes] of a GGUF type such as "Q4_0"."""
    block = BLOCK_TYPES[kind]
    return read_parts(block, rows.reshape(len(rows), rows.shape[1] // block.nbytes, block.nbytes))


def blocks(kind: str, parts: Parts) -> np.ndarray:
    """The rows uint8 [N, bytes] that `planes` reads as these parts, of a `writable` type."""
    return flat(write_parts(BLOCK_TYPES[kind], parts))


def _ones(b: np.ndarray) -> Parts:
    """NVFP4's scale of the whole tensor, which lies in a tensor of its own."""
    return {"supers": np.ones((len(b), -(-b.shape[1] * 64 // 256)), np.float32)}


_SCALE = ("scales", 0, 2)
BLOCK_TYPES = {
    "Q8_0": BlockType(SCHEMES["q8_0"], 32, 34, (_SCALE, ("codes", 2, 32))),
    "Q4_0": BlockType(SCHEMES["q4_0"], 32, 18, (_SCALE, ("codes", 2, 16))),
    "Q4_1": BlockType(SCHEMES["q4_1"], 32, 20, (_SCALE, ("offsets", 2, 2), ("codes", 4, 16))),
    "Q5_0": BlockType(SCHEMES["q5_0"], 32, 22, (_SCALE,), (Bits(6, 4, 16), Bits(2, 1, 1, 4))),
    "Q5_1": BlockType(
        SCHEMES["q5_1"], 32, 24, (_SCALE, ("offsets", 2, 2)), (Bits(8, 4, 16), Bits(4, 1, 1, 4))
    ),
    **k_quants.TYPES,
    "IQ4_NL": BlockType(SCHEMES["iq4_nl"], 32, 18, (_SCALE, ("codes", 2, 16))),
    **iq.TYPES,
    "MXFP4": BlockType(SCHEMES["mxfp4"], 32, 17, (("scales", 0, 1), ("codes", 1, 16))),
    "NVFP4": BlockType(
        SCHEMES["nvfp4"], 64, 36, (("scales", 0, 4),), (Bits(4, 4, 8),),
        read=_ones, write=lambda parts, b: None,
    ),
    **ternary.TYPES,
}  # fmt: skip
