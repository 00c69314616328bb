"""Codes of fewer than 8 bits as planes and back; the layout is in `boostr.quant.scheme`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from boostr.quant.scheme import FIELDS, PACK


def pack_codes(codes: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    """The planes `codes` (and `high`) of uint8 codes [N, K] of 2 to 6 bits, K a multiple of 32."""
    N, K = codes.shape
    groups = codes.reshape(N, K // PACK, PACK)
    low, *high = FIELDS[bits]
    parts = {"codes": _packed(groups & (1 << low) - 1, low)}
    if high:
        parts["high"] = _packed(groups >> low, high[0])
    return parts


def unpack_codes(parts: Mapping[str, np.ndarray], bits: int) -> np.ndarray:
    """The codes uint8 [N, K] that `pack_codes` packed."""
    low, *high = FIELDS[bits]
    codes = _unpacked(parts["codes"], low)
    return codes | _unpacked(parts["high"], high[0]) << low if high else codes


def _packed(groups: np.ndarray, bits: int) -> np.ndarray:
    """Byte i of a group holds inputs i, i + s, i + 2s, ..., s = 4·bits, from its low bits up."""
    N, G, _ = groups.shape
    parts = groups.reshape(N, G, 8 // bits, 4 * bits)
    shifted = parts << np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(shifted, 2).reshape(N, G * 4 * bits)


def _unpacked(plane: np.ndarray, bits: int) -> np.ndarray:
    N, size = plane.shape
    parts = (
        plane.reshape(N, size // (4 * bits), 1, 4 * bits)
        >> np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    )
    return (parts & (1 << bits) - 1).reshape(N, size * 8 // bits)
