"""Codes of fewer than 8 bits as planes and back; the layout is in `boostr.quant.scheme`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from boostr.quant.scheme import FIELDS, PACK


def pack_codes(codes: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    """The planes `codes` (and `high`) of uint8 codes [N, K] of 2 to 6 bits, K a multiple of 32."""
    low, *high = FIELDS[bits]
    if not high:
        return {"codes": _packed(codes, low)}
    return {"codes": _packed(codes & (1 << low) - 1, low), "high": _packed(codes >> low, high[0])}


def unpack_codes(parts: Mapping[str, np.ndarray], bits: int) -> np.ndarray:
    """The codes uint8 [N, K] that `pack_codes` packed."""
    low, *high = FIELDS[bits]
    codes = _unpacked(parts["codes"], low)
    return codes | _unpacked(parts["high"], high[0]) << low if high else codes


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Byte i of a group holds inputs i, i + s, i + 2s, ..., s = 4·bits, from its low bits up.

    Several bytes are shifted at a time, as one word: no bit leaves its byte.
    """
    N, K = codes.shape
    word = np.dtype(f"<u{min(4 * bits, 8)}")
    words = 4 * bits // word.itemsize
    groups = np.ascontiguousarray(codes).view(word).reshape(N * K // PACK, 8 // bits, words)
    out = np.empty((len(groups), words), word)
    for w in range(words):
        packed = groups[:, 0, w].copy()
        for field in range(1, 8 // bits):
            packed |= groups[:, field, w] << field * bits
        out[:, w] = packed
    return out.view(np.uint8).reshape(N, K * bits // 8)


def _unpacked(plane: np.ndarray, bits: int) -> np.ndarray:
    N, size = plane.shape
    parts = (
        plane.reshape(N, size // (4 * bits), 1, 4 * bits)
        >> np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    )
    return (parts & (1 << bits) - 1).reshape(N, size * 8 // bits)
