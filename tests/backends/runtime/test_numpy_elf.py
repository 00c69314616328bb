"""Object files turned into images: each relocation against what an assembler writes for its result.

The objects are made here, one relocation each: code that refers to a constant of another section.
"""

import platform
import struct
import sys

import pytest

from boostr.backends.numpy.runtime import elf, jit, kernel_files

X86_64, AARCH64 = 62, 183
ORIGIN = 128  # where in its page an image is mapped
CODE = 64  # bytes of the code section; a constant section of 4 KiB and more lies behind it


def elf_object(machine, kind, at, instruction, addend, data=8192, align=16, external=False):
    """An object file: .text with `instruction` at byte `at`, referring to `.rodata + addend`."""
    code = bytearray(CODE)
    code[at : at + len(instruction)] = instruction
    names = b"\0.text\0.rodata\0.rela\0.symtab\0.strtab\0entry\0far\0"
    home = 0 if external else 2
    symbols = bytes(24) + struct.pack("<IBBHQQ", names.index(b"entry"), 0x12, 0, 1, 0, CODE)
    symbols += struct.pack("<IBBHQQ", names.index(b"far"), 0x10, 0, home, 0, 0)
    rela = struct.pack("<QQq", at, 2 << 32 | kind, addend)
    bodies = [b"", bytes(code), bytes(range(256)) * (data // 256), rela, symbols, names]
    # name, type, flags, link, info, align of each section
    heads = (
        (b"\0", 0, 0, 0, 0, 0),
        (b".text", 1, 6, 0, 0, 64),
        (b".rodata", 1, 2, 0, 0, align),
        (b".rela", 4, 0, 4, 1, 8),
        (b".symtab", 2, 0, 5, 1, 8),
        (b".strtab", 3, 0, 0, 0, 1),
    )
    offset, table, content = 64, b"", b""
    for (name, form, flags, link, info, border), body in zip(heads, bodies, strict=True):
        table += struct.pack(
            "<IIQQQQIIQQ",
            names.index(name), form, flags, 0, offset, len(body), link, info, border, 0,
        )  # fmt: skip
        offset, content = offset + len(body), content + body
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = struct.pack("<HHIQQQIHHHHHH", 1, machine, 1, 0, 0, offset, 0, 64, 0, 0, 64, 6, 5)
    return ident + head + content + table


# Machine, relocation, place, addend, and, as an assembler writes them, the instruction with 0 for
# its target and with its target. The constants begin at byte 64 of the image, which is byte 192 of
# its first page: .rodata + 3904 is the start of the next one.
CASES = {
    "PC32": (X86_64, 2, 3, 5, "00000000", struct.pack("<i", 64 + 5 - 3)),
    "PLT32": (X86_64, 4, 8, -4, "00000000", struct.pack("<i", 64 - 4 - 8)),
    "PREL64": (AARCH64, 260, 8, 100, "00" * 8, struct.pack("<q", 64 + 100 - 8)),
    "PREL32": (AARCH64, 261, 60, -100, "00000000", struct.pack("<i", 64 - 100 - 60)),
    "ADRP, same page": (AARCH64, 275, 4, 3903, "03000090", "03000090"),  # adrp x3, #0
    "ADRP, next page": (AARCH64, 275, 4, 3904, "03000090", "030000b0"),  # adrp x3, #4096
    "ADRP, far": (AARCH64, 275, 4, 3904 + 5 * 4096, "03000090", "230000d0"),  # adrp x3, #0x6000
    "ADRP, before": (AARCH64, 275, 4, -192 - 5 * 4096, "03000090", "c3fffff0"),  # adrp x3, #-0x5000
    "ADD": (AARCH64, 277, 4, 3904 + 0x84, "20000091", "20100291"),  # add x0, x1, #0x84
    "LDRB": (AARCH64, 278, 4, 3904 + 0x83, "22004039", "220c4239"),  # ldrb w2, [x1, #0x83]
    "LDRH": (AARCH64, 284, 4, 3904 + 0x82, "22004079", "22044179"),  # ldrh w2, [x1, #0x82]
    "LDR S": (AARCH64, 285, 4, 3904 + 0x84, "220040bd", "228440bd"),  # ldr s2, [x1, #0x84]
    "LDR D": (AARCH64, 286, 4, 3904 + 0x88, "220040fd", "224440fd"),  # ldr d2, [x1, #0x88]
    "LDR Q": (AARCH64, 299, 4, 3904 + 0x90, "2200c03d", "2224c03d"),  # ldr q2, [x1, #0x90]
    "BL": (AARCH64, 283, 16, -64 + 16 - 64, "00000094", "f0ffff97"),  # bl #-0x40
    "B": (AARCH64, 282, 16, 4096 + 16 - 64, "00000014", "00040014"),  # b #0x1000
}


@pytest.mark.parametrize("case", CASES)
def test_relocations(case):
    machine, kind, at, addend, before, after = CASES[case]
    before = bytes.fromhex(before)
    after = bytes.fromhex(after) if isinstance(after, str) else after
    made = elf_object(machine, kind, at, before, addend)
    image, entry = elf.flatten(made, "entry", ORIGIN)
    assert entry == 0
    assert image[at : at + len(after)].hex() == after.hex()
    untouched = image[:at] + bytes(len(after)) + image[at + len(after) :]
    assert untouched == bytes(CODE) + bytes(range(256)) * 32


@pytest.mark.parametrize("align", (64, 256, 4096))
def test_constants_are_aligned_in_memory(align):
    """An image begins `ORIGIN` bytes into a page, so its first byte is not on every border."""
    made = elf_object(X86_64, 2, 0, bytes(4), 0, align=align)
    image, _ = elf.flatten(made, "entry", ORIGIN)
    (distance,) = struct.unpack_from("<i", image, 0)
    assert (ORIGIN + distance) % align == 0
    assert image[distance : distance + 256] == bytes(range(256))


@pytest.mark.parametrize(
    ("why", "change"),
    (
        ("a relocation that it does not know", {"kind": 311}),  # R_AARCH64_ADR_GOT_PAGE
        ("one of the other processor", {"kind": 2}),
        ("a function from outside", {"external": True}),
        ("another processor", {"machine": 243}),  # RISC-V
        ("too large for the shortest relocation", {"data": 1 << 20}),
    ),
)
def test_what_needs_a_linker(why, change):
    known = {"machine": AARCH64, "kind": 283, "at": 0, "instruction": bytes(4), "addend": 0}
    assert elf.flatten(elf_object(**known), "entry", ORIGIN) is not None
    assert elf.flatten(elf_object(**{**known, **change}), "entry", ORIGIN) is None, why


def test_what_is_no_object_file():
    assert elf.flatten(b"\xcf\xfa\xed\xfe" + bytes(100), "entry", ORIGIN) is None  # Mach-O
    made = elf_object(X86_64, 2, 0, bytes(4), 0)
    assert elf.flatten(made, "other", ORIGIN) is None


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the object files of this system are not read",
)
def test_a_kernel_that_clears_memory_needs_no_linker():
    """LLVM used to make its rows of zeros into calls of memset, which kept it from an image."""
    pytest.importorskip("numba")
    kernel = jit._function("attention.attention", (("D", 16), ("Dv", 16), ("kv", "float")))
    made = jit._object(kernel, "attention.attention", "entry")
    assert elf.flatten(made, "entry", kernel_files.HEAD) is not None
