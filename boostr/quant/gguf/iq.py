"""The IQ types: codes that index a table, or a grid of whole vectors of magnitudes with signs.

A grid is looked up once, here: what products read are codes of 3 or 4 bits whose top bit is the
sign, and whose table the scheme has. In memory they are larger than in the file, and the numbers
are the same. IQ1's deltas of an eighth are folded into the table.
"""

from __future__ import annotations

import numpy as np

from boostr.quant.gguf.block import Bits, BlockType, Lane, Parts, Small, flat, halves, unpack
from boostr.quant.gguf.grids import grid, signs
from boostr.quant.pack import pack_codes
from boostr.quant.scheme import SCHEMES

_IQ4_XS_SCALES = Small(
    "scales",
    8,
    (
        Lane(4, 0, 4, range(0, 8, 2)),
        Lane(4, 4, 4, range(1, 8, 2)),
        *(Lane(2, 2 * j, 2, range(j, 8, 4), 4) for j in range(4)),
    ),
    added=-32,
)


def _looked_up(kind: str, index: np.ndarray, minus: np.ndarray, scales: np.ndarray) -> Parts:
    """The parts of indices into a grid [N, G, entries], the signs of all inputs (1 is
    minus), and scales, which stand for 2·scale + 1."""
    codes = grid(kind)[index]
    bits = 4 if codes.shape[-1] == 4 else 3
    codes |= minus.reshape(codes.shape).astype(np.uint8) << bits - 1
    odd = (2 * scales + 1).astype(np.uint8)
    return {**pack_codes(flat(codes), bits), "scales": flat(odd)}


def _words(b: np.ndarray, first: int, end: int, dtype: str) -> np.ndarray:
    return b[..., first:end].copy().view(dtype)


def _read_iq2_xxs(b: np.ndarray) -> Parts:
    """32 inputs in two words: 4 indices; 4 times 7 bits of signs and 4 bits of scale."""
    pairs = _words(b, 2, 66, "<u4").reshape(*b.shape[:2], 8, 2)
    index = pairs[..., 0].copy().view(np.uint8)
    return _looked_up("IQ2_XXS", index, *_signs_and_scales(pairs[..., 1]))


def _read_iq3_xxs(b: np.ndarray) -> Parts:
    return _looked_up("IQ3_XXS", b[..., 2:66], *_signs_and_scales(_words(b, 66, 98, "<u4")))


def _signs_and_scales(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return signs()[words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127], words >> 28


def _read_iq2_xs(b: np.ndarray) -> Parts:
    """16-bit words, 9 bits of index and 7 of signs; 16 scales."""
    words = _words(b, 2, 66, "<u2")
    return _looked_up("IQ2_XS", words & 511, signs()[words >> 9], unpack(b, 16, Bits(66, 4, 1)))


def _read_iq2_s(b: np.ndarray) -> Parts:
    index, minus = unpack(b, 32, Bits(2, 8, 32), Bits(66, 2, 1, 8)), unpack(b, 256, Bits(34, 1, 1))
    return _looked_up("IQ2_S", index, minus, unpack(b, 16, Bits(74, 4, 1)))


def _read_iq3_s(b: np.ndarray) -> Parts:
    index, minus = unpack(b, 64, Bits(2, 8, 64), Bits(66, 1, 1, 8)), unpack(b, 256, Bits(74, 1, 1))
    return _looked_up("IQ3_S", index, minus, unpack(b, 8, Bits(106, 4, 1)))


def _read_iq1_s(b: np.ndarray) -> Parts:
    """A 16-bit word for 32 inputs: 4 times 3 bits of index, 3 bits of scale, the sign of delta."""
    words = _words(b, 34, 50, "<u2")
    high = words[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7
    index = b[..., 2:34] | high.reshape(*b.shape[:2], 32) << 8
    minus = np.repeat(words >> 15, 32, 2)
    return _looked_up("IQ1_S", index, minus, words >> 12 & 7)


def _read_iq1_m(b: np.ndarray) -> Parts:
    """A nibble for 8 inputs: 3 bits of index, the sign of delta. Four 16-bit words: 4 times 3 bits
    of scale, a nibble of the float16 d."""
    high, words = unpack(b, 32, Bits(32, 4, 1)), _words(b, 48, 56, "<u2")
    index = b[..., :32] | (high & 7).astype(np.uint16) << 8
    scales = words[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7
    nibbles = words >> 12 << np.arange(0, 16, 4, dtype=np.uint16)
    d = np.bitwise_or.reduce(nibbles, 2)[..., None].view(np.uint8)
    found = _looked_up("IQ1_S", index, np.repeat(high >> 3, 8, 2), scales)
    with np.errstate(invalid="ignore"):  # of NaN
        return found | {"supers": halves(d, 0).astype(np.float32) / 8}


def _gridded(name: str, nbytes: int, factor: float, read) -> BlockType:
    return BlockType(SCHEMES[name], 256, nbytes, halves=(("supers", 0, factor),), read=read)


TYPES = {
    "IQ4_XS": BlockType(
        SCHEMES["iq4_xs"], 256, 136, codes=(Bits(8, 4, 16),), halves=(("supers", 0, 1.0),),
        small=(_IQ4_XS_SCALES,),
    ),
    "IQ3_S": _gridded("iq3_s", 110, 1.0, _read_iq3_s),
    "IQ3_XXS": _gridded("iq3_xxs", 98, 1 / 4, _read_iq3_xxs),
    "IQ2_S": _gridded("iq2_s", 82, 1 / 8, _read_iq2_s),
    "IQ2_XS": _gridded("iq2_xs", 74, 1 / 8, _read_iq2_xs),
    "IQ2_XXS": _gridded("iq2_xxs", 66, 1 / 8, _read_iq2_xxs),
    "IQ1_S": _gridded("iq1_s", 50, 1 / 8, _read_iq1_s),
    "IQ1_M": BlockType(SCHEMES["iq1_m"], 256, 56, read=_read_iq1_m),
}  # fmt: skip
