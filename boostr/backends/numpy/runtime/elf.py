"""A kernel's ELF object file turned into one block of code that runs wherever it is mapped.

The kernels need nothing from outside: their object files hold code, constants, and references from
one to the other relative to the place of use. Once these are filled in, loading a kernel is mapping
a file: 20 MB of memory and 50 ms less than through LLVM's linker, which has to be loaded first.

Understood are 64-bit objects for x86-64 and aarch64, of the relocations that the kernels use; for
anything else `flatten` gives None. Sources: the System V ABI (section and symbol tables), its
AMD64 supplement, and "ELF for the Arm 64-bit Architecture", whose letters these are: S + A is what
a relocation refers to, P the place that it fills in.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_ALLOC, _WRITE = 2, 1  # section flags
_PROGBITS, _SYMTAB, _RELA = 1, 2, 4  # section types
_REACH = 1 << 20  # bytes: an image of this size is in reach of every relocation below
PAGE = 4096  # what aarch64's ADRP counts in, whatever the system's own pages are


@dataclass
class Section:
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    name: str = ""
    place: int = -1  # in the image


# ---------------------------------------------------------------- relocations

# A relocation writes into the image at byte `at`; S + A and P count from the start of a page.
Relocation = Callable[[bytearray, int, int, int], None]


def _distance(form: str) -> Relocation:
    """S + A - P as an integer of a `struct` format."""

    def fill(image: bytearray, at: int, target: int, place: int) -> None:
        struct.pack_into(form, image, at, target - place)

    return fill


def _insert(image: bytearray, at: int, value: int, bits: int, low: int) -> None:
    """The lowest `bits` of a value as the bits from `low` on of an instruction."""
    (word,) = struct.unpack_from("<I", image, at)
    mask = (1 << bits) - 1
    struct.pack_into("<I", image, at, word & ~(mask << low) | (value & mask) << low)


def _branch(image: bytearray, at: int, target: int, place: int) -> None:
    """B, BL: the distance in words."""
    _insert(image, at, (target - place) >> 2, 26, 0)


def _page(image: bytearray, at: int, target: int, place: int) -> None:
    """ADRP: the distance from page to page, its two lowest bits apart from the others."""
    pages = target // PAGE - place // PAGE
    _insert(image, at, pages, 2, 29)
    _insert(image, at, pages >> 2, 19, 5)


def _in_page(shift: int) -> Relocation:
    """ADD, LDR, STR: where in its page the target is, in units of 1 << `shift` bytes."""

    def fill(image: bytearray, at: int, target: int, place: int) -> None:
        _insert(image, at, target % PAGE >> shift, 12, 10)

    return fill


_X86_64: dict[int, Relocation] = {
    2: _distance("<i"),  # R_X86_64_PC32
    4: _distance("<i"),  # R_X86_64_PLT32
}
_AARCH64: dict[int, Relocation] = {
    260: _distance("<q"),  # R_AARCH64_PREL64
    261: _distance("<i"),  # R_AARCH64_PREL32
    275: _page,  # R_AARCH64_ADR_PREL_PG_HI21
    277: _in_page(0),  # R_AARCH64_ADD_ABS_LO12_NC
    278: _in_page(0),  # R_AARCH64_LDST8_ABS_LO12_NC
    282: _branch,  # R_AARCH64_JUMP26
    283: _branch,  # R_AARCH64_CALL26
    284: _in_page(1),  # R_AARCH64_LDST16_ABS_LO12_NC
    285: _in_page(2),  # R_AARCH64_LDST32_ABS_LO12_NC
    286: _in_page(3),  # R_AARCH64_LDST64_ABS_LO12_NC
    299: _in_page(4),  # R_AARCH64_LDST128_ABS_LO12_NC
}
_MACHINES = {62: _X86_64, 183: _AARCH64}  # by the number in an object's head


# ---------------------------------------------------------------- object files


def _relocations(data: bytes) -> dict[int, Relocation] | None:
    """The relocations of the processor that an object file is for; None if it is not known."""
    if data[:6] != b"\x7fELF\x02\x01":  # 64-bit, little-endian
        return None
    kind, machine = struct.unpack_from("<HH", data, 16)
    return _MACHINES.get(machine) if kind == 1 else None


def _sections(data: bytes) -> list[Section]:
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    rows = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    sections = [Section(r[1], r[2], r[4], r[5], r[6], r[7], r[8]) for r in rows]
    for row, section in zip(rows, sections, strict=True):
        start = sections[names].offset + row[0]
        section.name = data[start : data.index(b"\0", start)].decode()
    return sections


def _place(data: bytes, sections: list[Section], origin: int) -> bytearray | None:
    """Lays code and constants one after the other; None if there is writable data."""
    image = bytearray()
    for section in sections:
        if not section.flags & _ALLOC or section.name == ".eh_frame" or not section.size:
            continue
        if section.flags & _WRITE or section.kind != _PROGBITS:
            return None
        image += bytes(-(origin + len(image)) % max(section.align, 1))
        section.place = len(image)
        image += data[section.offset : section.offset + section.size]
    return image


def _symbols(data: bytes, sections: list[Section]) -> list[tuple[str, int]]:
    """(name, place in the image) of each symbol; place -1 if it is not in the image."""
    found = []
    for section in sections:
        if section.kind != _SYMTAB:
            continue
        strings = sections[section.link].offset
        for at in range(section.offset, section.offset + section.size, 24):
            name, _, _, home, value, _ = struct.unpack_from("<IBBHQQ", data, at)
            start = strings + name
            text = data[start : data.index(b"\0", start)].decode()
            inside = 0 < home < len(sections) and sections[home].place >= 0
            found.append((text, sections[home].place + value if inside else -1))
    return found


def flatten(data: bytes, symbol: str, origin: int = 0) -> tuple[bytes, int] | None:
    """(image, offset of `symbol` in it) of an object file; None where it needs a real linker.

    The image has to be mapped `origin` bytes behind the start of a page.
    """
    relocations = _relocations(data)
    if relocations is None:
        return None
    sections = _sections(data)
    image = _place(data, sections, origin)
    if image is None or len(image) >= _REACH:
        return None
    symbols = _symbols(data, sections)
    for section in sections:
        if section.kind != _RELA or sections[section.info].place < 0:
            continue
        for row in range(section.offset, section.offset + section.size, 24):
            offset, info, addend = struct.unpack_from("<QQq", data, row)
            fill, place = relocations.get(info & 0xFFFFFFFF), symbols[info >> 32][1]
            if fill is None or place < 0:
                return None
            at = sections[section.info].place + offset
            fill(image, at, origin + place + addend, origin + at)
    entry = dict(symbols).get(symbol, -1)
    return (bytes(image), entry) if entry >= 0 else None


def map_file(descriptor: int, size: int, offset: int) -> tuple[mmap.mmap, int] | None:
    """(mapping, address of byte `offset`) of an open file as code; None if that is forbidden.

    The system makes the instruction cache of an aarch64 see a file's pages when it maps them, as
    for any program: only who writes code through a mapping of its own has to flush.
    """
    if not hasattr(mmap, "PROT_EXEC"):
        return None
    try:
        protection = mmap.PROT_READ | mmap.PROT_EXEC
        view = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=protection)
    except (OSError, ValueError):
        return None
    return view, np.frombuffer(view, np.uint8).ctypes.data + offset
