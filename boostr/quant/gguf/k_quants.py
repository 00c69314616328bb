"""The K-quants: 256 inputs under a float16, in groups whose scales are small integers."""

from __future__ import annotations

import numpy as np

from boostr.quant.gguf.block import Bits, BlockType, Parts, flat, pack, unpack
from boostr.quant.scheme import SCHEMES

_SUB_BIAS = 32  # of Q3_K's scales
_NIBBLES_16, _SIX_BITS = Bits(0, 4, 16), (Bits(96, 4, 8), Bits(104, 2, 4, 4))


def _read_q2_k(b: np.ndarray) -> Parts:
    """16 bytes: the scale of a group of 16 in the low nibble, its offset in the high one."""
    both = unpack(b, 32, _NIBBLES_16)
    return {"scales": flat(both[..., :16]), "offsets": flat(both[..., 16:])}


def _write_q2_k(parts: Parts, b: np.ndarray) -> None:
    both = [parts[name].view(np.uint8).reshape(*b.shape[:2], 16) for name in ("scales", "offsets")]
    pack(np.concatenate(both, 2), b, _NIBBLES_16)


def _read_q3_k(b: np.ndarray) -> Parts:
    """16 scales of 6 bits."""
    return {"scales": flat(unpack(b, 16, *_SIX_BITS) - np.uint8(_SUB_BIAS))}


def _write_q3_k(parts: Parts, b: np.ndarray) -> None:
    scales = parts["scales"].view(np.uint8) + np.uint8(_SUB_BIAS)
    pack(scales.reshape(*b.shape[:2], 16), b, *_SIX_BITS)


def _read_q4_k(b: np.ndarray) -> Parts:
    """8 scales and 8 offsets of 6 bits in 3 times 4 bytes: scales 0-3, offsets 0-3, and 4-7 of both
    in nibbles, whose upper two bits are those of the first and the second 4 bytes."""
    scales, offsets, nibbles = (b[..., at : at + 4] for at in (4, 8, 12))
    later = nibbles & 15 | (scales >> 6) << 4, nibbles >> 4 | (offsets >> 6) << 4
    both = zip((scales & 63, offsets & 63), later, strict=True)
    found = [flat(np.concatenate(halves, 2)) for halves in both]
    return dict(zip(("scales", "offsets"), found, strict=True))


def _write_q4_k(parts: Parts, b: np.ndarray) -> None:
    scales, offsets = (
        parts[name].view(np.uint8).reshape(*b.shape[:2], 8) for name in ("scales", "offsets")
    )
    b[..., 4:8] = scales[..., :4] | scales[..., 4:] >> 4 << 6
    b[..., 8:12] = offsets[..., :4] | offsets[..., 4:] >> 4 << 6
    b[..., 12:16] = scales[..., 4:] & 15 | (offsets[..., 4:] & 15) << 4


def _signed(at: int) -> tuple[tuple[str, int, float], ...]:
    """d, and the least value, which GGUF subtracts."""
    return ("supers", at, 1.0), ("floors", at + 2, -1.0)


TYPES = {
    "Q2_K": BlockType(
        SCHEMES["q2_k"], 256, 84, codes=(Bits(16, 2, 32),), halves=_signed(80),
        read=_read_q2_k, write=_write_q2_k,
    ),
    "Q3_K": BlockType(
        SCHEMES["q3_k"], 256, 110, codes=(Bits(32, 2, 32), Bits(0, 1, 32, 2)),
        halves=(("supers", 108, 1.0),), read=_read_q3_k, write=_write_q3_k,
    ),
    "Q4_K": BlockType(
        SCHEMES["q4_k"], 256, 144, codes=(Bits(16, 4, 32),), halves=_signed(0),
        read=_read_q4_k, write=_write_q4_k,
    ),
    "Q5_K": BlockType(
        SCHEMES["q5_k"], 256, 176, codes=(Bits(48, 4, 32), Bits(16, 1, 32, 4)), halves=_signed(0),
        read=_read_q4_k, write=_write_q4_k,
    ),
    "Q6_K": BlockType(
        SCHEMES["q6_k"], 256, 210, (("scales", 192, 16),), (Bits(0, 4, 64), Bits(128, 2, 32, 4)),
        (("supers", 208, 1.0),),
    ),
}  # fmt: skip
