"""An object file turned into one block of code that runs wherever it is mapped.

The kernels need nothing from outside: their object files hold code, constants, and references from
one to the other relative to the place of use. Once these are filled in, loading a kernel is mapping
a file: 20 MB of memory and 50 ms less than through LLVM's linker, which has to be loaded first.

Only 64-bit ELF for x86-64 is understood; `flatten` gives None for anything else.
"""

import mmap
import struct
from dataclasses import dataclass

import numpy as np

_ALLOC, _WRITE = 2, 1  # section flags
_PROGBITS, _SYMTAB, _RELA, _NOBITS = 1, 2, 4, 8  # section types
_X86_64, _PC32, _PLT32 = 62, 2, 4


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


def _sections(data: bytes) -> list[Section] | None:
    """The section table; None if this is not an object file for x86-64."""
    if data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<HH", data, 16) != (1, _X86_64):
        return None
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    rows = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    sections = [Section(r[1], r[2], r[4], r[5], r[6], r[7], r[8]) for r in rows]
    for row, section in zip(rows, sections, strict=True):
        start = sections[names].offset + row[0]
        section.name = data[start : data.index(b"\0", start)].decode()
    return sections


def _place(data: bytes, sections: list[Section]) -> bytearray | None:
    """Lays code and constants one after the other; None if there is writable data."""
    image = bytearray()
    for section in sections:
        if not section.flags & _ALLOC or section.name == ".eh_frame" or not section.size:
            continue
        if section.flags & _WRITE or section.kind != _PROGBITS:
            return None
        image += bytes(-len(image) % max(section.align, 1))
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


def flatten(data: bytes, symbol: str) -> tuple[bytes, int] | None:
    """(image, offset of `symbol` in it) of an object file; None where it needs a real linker."""
    sections = _sections(data)
    if sections is None:
        return None
    image = _place(data, sections)
    if image is None:
        return None
    symbols = _symbols(data, sections)
    for section in sections:
        if section.kind != _RELA or sections[section.info].place < 0:
            continue
        base = sections[section.info].place
        for at in range(section.offset, section.offset + section.size, 24):
            offset, info, addend = struct.unpack_from("<QQq", data, at)
            kind, place = info & 0xFFFFFFFF, symbols[info >> 32][1]
            if kind not in (_PC32, _PLT32) or place < 0:
                return None
            struct.pack_into("<i", image, base + offset, place + addend - base - offset)
    entry = dict(symbols).get(symbol, -1)
    return (bytes(image), entry) if entry >= 0 else None


def map_file(descriptor: int, size: int, offset: int) -> tuple[mmap.mmap, int] | None:
    """(mapping, address of byte `offset`) of an open file as code; None if that is forbidden."""
    if not hasattr(mmap, "PROT_EXEC"):
        return None
    try:
        protection = mmap.PROT_READ | mmap.PROT_EXEC
        view = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=protection)
    except (OSError, ValueError):
        return None
    return view, np.frombuffer(view, np.uint8).ctypes.data + offset
