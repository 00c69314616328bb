"""How blocks of GGUF are described: what of a block lies where, as data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from boostr.quant.pack import pack_codes, unpack_codes
from boostr.quant.scheme import Scheme

Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Bits:
    """Fields of a block: so many bits of every number, put at `shift` of it.

    They lie in runs of `run` bytes. Field j of byte i of a run, counted from the low bits up, is of
    number j·run + i of those that the run holds; so run 1 is a plain stream of bits.
    """

    first: int
    bits: int
    run: int
    shift: int = 0


@dataclass(frozen=True)
class Lane:
    """A field of some bytes, `bits` from bit `low` on: byte first + i has that of numbers[i], where
    it goes to bit `shift`."""

    first: int
    low: int
    bits: int
    numbers: range
    shift: int = 0


@dataclass(frozen=True)
class Small:
    """A part of small integers, `count` in a block: each is what the lanes make up plus `added`."""

    part: str
    count: int
    lanes: tuple[Lane, ...]
    added: int = 0


@dataclass(frozen=True)
class BlockType:
    """A block type of GGUF: `size` inputs in `nbytes` bytes.

    Attributes:
        scheme: what it is read as.
        fields: (part, first byte, bytes) of what is copied as it is.
        codes: where the bits of the codes are, unless they are copied.
        halves: (part, first byte, factor) of float16 numbers that become factor (a power of two)
            times the number in a float32 part.
        small: parts of integers of a few bits, such as the scales of K-quants.
        read: gives the parts that are none of these, of blocks uint8 [N, G, nbytes].
        write: the other way round, into blocks that have all but these; None for types whose blocks
            cannot be made of parts.
    """

    scheme: Scheme
    size: int
    nbytes: int
    fields: tuple[tuple[str, int, int], ...] = ()
    codes: tuple[Bits, ...] = ()
    halves: tuple[tuple[str, int, float], ...] = ()
    small: tuple[Small, ...] = ()
    read: Callable[[np.ndarray], Parts] | None = None
    write: Callable[[Parts, np.ndarray], None] | None = None

    @property
    def writable(self) -> bool:
        return self.read is None or self.write is not None


def unpack(b: np.ndarray, size: int, *fields: Bits) -> np.ndarray:
    """The `size` numbers of each block that some fields make up: uint8, or uint16 of more bits."""
    wide = max(field.bits + field.shift for field in fields) > 8
    out = np.zeros((*b.shape[:2], size), np.uint16 if wide else np.uint8)
    for field in fields:
        nbytes = size * field.bits // 8
        runs = b[..., field.first : field.first + nbytes]
        runs = runs.reshape(*b.shape[:2], nbytes // field.run, 1, field.run)
        shifts = np.arange(0, 8, field.bits, dtype=np.uint8)[:, None]
        found = runs >> shifts & (1 << field.bits) - 1
        out |= found.reshape(out.shape).astype(out.dtype) << field.shift
    return out


def pack(numbers: np.ndarray, b: np.ndarray, *fields: Bits) -> None:
    """Puts numbers uint8 [N, G, size] into the blocks that `unpack` takes them from."""
    N, G, size = numbers.shape
    for field in fields:
        nbytes = size * field.bits // 8
        found = numbers >> field.shift & (1 << field.bits) - 1
        runs = found.reshape(N, G, nbytes // field.run, 8 // field.bits, field.run)
        shifts = np.arange(0, 8, field.bits, dtype=np.uint8)[:, None]
        packed = np.bitwise_or.reduce(runs << shifts, 3)
        b[..., field.first : field.first + nbytes] = packed.reshape(N, G, nbytes)


def _unpack_small(b: np.ndarray, small: Small) -> np.ndarray:
    """The integers of each block, uint8 [N, G, count]."""
    out = np.zeros((*b.shape[:2], small.count), np.uint8)
    for lane in small.lanes:
        found = b[..., lane.first : lane.first + len(lane.numbers)] >> lane.low
        out[..., lane.numbers] |= (found & (1 << lane.bits) - 1) << lane.shift
    return out + np.int8(small.added).view(np.uint8)


def _pack_small(numbers: np.ndarray, b: np.ndarray, small: Small) -> None:
    """Puts integers uint8 [N, G, count] into the blocks that `_unpack_small` takes them from."""
    numbers = numbers - np.int8(small.added).view(np.uint8)
    for lane in small.lanes:
        found = numbers[..., lane.numbers] >> lane.shift & (1 << lane.bits) - 1
        b[..., lane.first : lane.first + len(lane.numbers)] |= found << lane.low


def halves(b: np.ndarray, first: int) -> np.ndarray:
    """The float16 at a byte of each block, [N, G]."""
    return b[..., first : first + 2].copy().view(np.float16)[..., 0]


def read_parts(block: BlockType, b: np.ndarray) -> Parts:
    """The parts of blocks uint8 [N, G, nbytes]."""
    found = {name: flat(b[..., at : at + size]) for name, at, size in block.fields}
    if block.codes:
        found |= pack_codes(flat(unpack(b, block.size, *block.codes)), block.scheme.bits)
    for name, at, factor in block.halves:
        found[name] = _times(halves(b, at).astype(np.float32), factor)
    for small in block.small:
        found[small.part] = flat(_unpack_small(b, small))
    if block.read is not None:
        found |= block.read(b)
    return {name: found[name].view(part.dtype) for name, part in block.scheme.parts.items()}


def write_parts(block: BlockType, parts: Parts) -> np.ndarray:
    """The blocks uint8 [N, G, nbytes] that `read_parts` reads as these parts."""
    scheme, codes = block.scheme, parts["codes"]
    N, G = len(codes), codes.shape[1] * scheme.parts["codes"].inputs // block.size
    b = np.zeros((N, G, block.nbytes), np.uint8)
    for name, at, size in block.fields:
        plane = np.ascontiguousarray(parts[name]).view(np.uint8)
        b[..., at : at + size] = plane.reshape(N, G, size)
    if block.codes:
        pack(unpack_codes(parts, scheme.bits).reshape(N, G, block.size), b, *block.codes)
    for name, at, factor in block.halves:
        numbers = _times(parts[name], 1 / factor).astype(np.float16)
        b[..., at : at + 2] = numbers[..., None].view(np.uint8)
    for small in block.small:
        numbers = np.ascontiguousarray(parts[small.part]).view(np.uint8)
        _pack_small(numbers.reshape(N, G, small.count), b, small)
    if block.write is not None:
        block.write(parts, b)
    return b


def _times(numbers: np.ndarray, factor: float) -> np.ndarray:
    """A product that leaves the bits of a NaN alone where it only changes the sign."""
    if abs(factor) == 1:
        return -numbers if factor < 0 else numbers
    with np.errstate(invalid="ignore"):  # those that read files refuse NaN by the tensor's name
        return numbers * np.float32(factor)


def flat(field: np.ndarray) -> np.ndarray:
    """[N, ...] as [N, bytes]."""
    return np.ascontiguousarray(field).reshape(len(field), math.prod(field.shape[1:]))
