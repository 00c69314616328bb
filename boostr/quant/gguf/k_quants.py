"""The K-quants: 256 inputs under a float16, in groups whose scales are small integers."""

from __future__ import annotations

from boostr.quant.gguf.block import Bits, BlockType, Lane, Small
from boostr.quant.scheme import SCHEMES

# Q2_K: 16 bytes, the scale of a group in the low nibble, its offset in the high one
_NIBBLES = tuple(
    Small(part, 16, (Lane(0, low, 4, range(16)),)) for part, low in (("scales", 0), ("offsets", 4))
)
_Q3_K_SCALES = Small(
    "scales",
    16,
    (
        Lane(96, 0, 4, range(8)),
        Lane(96, 4, 4, range(8, 16)),
        *(Lane(104, 2 * j, 2, range(4 * j, 4 * j + 4), 4) for j in range(4)),
    ),
    added=-32,
)


def _six_bits(part: str, first: int, low: int) -> Small:
    """Q4_K's 8 scales or offsets: 4 in the low bits of bytes, whose top bits are the upper ones of
    the other 4; the lower ones of these are nibbles that begin at bit `low`."""
    lanes = (
        Lane(first, 0, 6, range(4)),
        Lane(first, 6, 2, range(4, 8), 4),
        Lane(12, low, 4, range(4, 8)),
    )
    return Small(part, 8, lanes)


_SIX_BITS = (_six_bits("scales", 4, 0), _six_bits("offsets", 8, 4))


def _signed(at: int) -> tuple[tuple[str, int, float], ...]:
    """d, and the least value, which GGUF subtracts."""
    return ("supers", at, 1.0), ("floors", at + 2, -1.0)


TYPES = {
    "Q2_K": BlockType(
        SCHEMES["q2_k"], 256, 84, codes=(Bits(16, 2, 32),), halves=_signed(80), small=_NIBBLES
    ),
    "Q3_K": BlockType(
        SCHEMES["q3_k"], 256, 110, codes=(Bits(32, 2, 32), Bits(0, 1, 32, 2)),
        halves=(("supers", 108, 1.0),), small=(_Q3_K_SCALES,),
    ),
    "Q4_K": BlockType(
        SCHEMES["q4_k"], 256, 144, codes=(Bits(16, 4, 32),), halves=_signed(0), small=_SIX_BITS
    ),
    "Q5_K": BlockType(
        SCHEMES["q5_k"], 256, 176, codes=(Bits(48, 4, 32), Bits(16, 1, 32, 4)), halves=_signed(0),
        small=_SIX_BITS,
    ),
    "Q6_K": BlockType(
        SCHEMES["q6_k"], 256, 210, (("scales", 192, 16),), (Bits(0, 4, 64), Bits(128, 2, 32, 4)),
        (("supers", 208, 1.0),),
    ),
}  # fmt: skip
