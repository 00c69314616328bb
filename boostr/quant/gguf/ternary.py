"""Types of three or four values: -1, 0, 1 (and 2) times a float16."""

from __future__ import annotations

import numpy as np

from boostr.quant.gguf.block import Bits, BlockType, Parts, flat
from boostr.quant.pack import pack_codes, unpack_codes
from boostr.quant.scheme import SCHEMES

_RUNS = ((0, 32, 5), (32, 16, 5), (48, 4, 4))  # of TQ1_0: first byte, bytes, digits of each
_POWERS = np.array([[1], [3], [9], [27], [81]], np.uint8)


def _read_tq1_0(b: np.ndarray) -> Parts:
    """Bytes of 5 (the last 4) digits of base 3, as fractions: the first digit is 3·byte / 256, the
    next ones come up when the byte is multiplied by 3 and cut to 8 bits."""
    digits = []
    for first, count, each in _RUNS:
        shifted = b[..., None, first : first + count] * _POWERS[:each]
        digits.append((shifted.astype(np.uint16) * 3 >> 8).reshape(*b.shape[:2], each * count))
    return pack_codes(flat(np.concatenate(digits, 2).astype(np.uint8)), 2)


def _write_tq1_0(parts: Parts, b: np.ndarray) -> None:
    codes, start = unpack_codes(parts, 2).reshape(*b.shape[:2], 256), 0
    for first, count, each in _RUNS:
        digits = codes[..., start : start + each * count].reshape(*b.shape[:2], each, count)
        number = (digits.astype(np.uint16) * _POWERS[::-1][:each]).sum(2, dtype=np.uint16)
        b[..., first : first + count] = -(-number.astype(np.uint32).view(np.int32) * 256 // 243)
        start += each * count


TYPES = {
    "TQ1_0": BlockType(
        SCHEMES["tq1_0"], 256, 54, (("scales", 52, 2),), read=_read_tq1_0, write=_write_tq1_0
    ),
    "TQ2_0": BlockType(SCHEMES["tq2_0"], 256, 66, (("scales", 64, 2),), (Bits(0, 2, 32),)),
    "Q1_0": BlockType(SCHEMES["q1_0"], 128, 18, (("scales", 0, 2),), (Bits(2, 1, 1, 1),)),
    "Q2_0": BlockType(SCHEMES["q2_0"], 64, 18, (("scales", 0, 2),), (Bits(2, 2, 1),)),
}
