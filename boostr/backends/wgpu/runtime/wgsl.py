"""WGSL sources: templates rendered for a device, and what every one of them declares.

A source is a Jinja template whose statements are lines that begin with `#` (`# if X == "bf16"`,
`# for i in range(4)`, `# include "rows.wgsl"`). It sees `caps`, the values of its variant, and the
functions below, which write declarations in one form, so that no source spells out how 16-bit
numbers lie in 32-bit words or how parameters arrive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from boostr import dtypes, shaders

if TYPE_CHECKING:
    from boostr.backends.wgpu.runtime.device import Caps

# dtype -> its name in WGSL sources; those below 32 bits lie packed in u32 words
NAMES = {
    dtypes.float32: "f32", dtypes.float16: "f16", dtypes.bfloat16: "bf16", dtypes.int32: "i32",
    dtypes.uint32: "u32", dtypes.int8: "i8", dtypes.uint8: "u8", dtypes.bool_: "u8",
}  # fmt: skip
PER_WORD = {"f32": 1, "i32": 1, "u32": 1, "f16": 2, "bf16": 2, "u16": 2, "i8": 4, "u8": 4}
VALUE = {
    "f32": "f32",
    "f16": "f32",
    "bf16": "f32",
    "i32": "i32",
    "i8": "i32",
    "u32": "u32",
    "u8": "u32",
    "u16": "u32",  # bits of either
}


_BYTES = {"u32": 4, "i32": 4, "f32": 4, "bool": 4, "f16": 2}
_SHARED = re.compile(r"var<workgroup> \w+: ([^;]+);")
_ARRAY = re.compile(r"array<(.+), *(\d+)>")


def name_of(dtype: Any) -> str:
    """The name in WGSL sources of a dtype that the device can hold."""
    return NAMES[np.dtype(dtype)]


@dataclass
class _Declarations:
    """The functions that a template calls; one object for each rendering."""

    immediates: bool
    poison_memory: bool
    shared: list[tuple[str, str, int]] = field(default_factory=list)

    def read(self, binding: int, name: str, dtype: str, width: int = 1) -> str:
        """A read-only array of words (`width` 2 or 4: of vectors of words), NAME, and for width 1
        NAME_at(i): element i as f32, i32 or u32; NAME_at4(i): elements i..i+3, i a multiple of 4.
        """
        return _array(binding, name, dtype, width, "read") + (
            _accessors(name, dtype) if width == 1 else ""
        )

    def write(self, binding: int, name: str, dtype: str, width: int = 1) -> str:
        """A read-write array of words, NAME, and for width 1 NAME_at, NAME_at4 and NAME_put(w, v):
        word w from 1, 2 or 4 elements v (f32, vec2<f32>, vec4<i32>, ...).
        """
        text = _array(binding, name, dtype, width, "read_write")
        return text + (_accessors(name, dtype) + _put(name, dtype) if width == 1 else "")

    def parameters(self, binding: int) -> str:
        """`p`, of a struct Params that the source defines, of u32, i32 and f32 only: immediates,
        or a uniform buffer bound behind all arrays (`binding` is their number)."""
        if self.immediates:
            return "var<immediate> p: Params;\n"
        return f"@group(0) @binding({binding}) var<uniform> p: Params;\n"

    def workgroup(self, name: str, element: str, length: int) -> str:
        """A workgroup array; dirty until it is written (see `poison`)."""
        self.shared.append((name, element, length))
        return f"var<workgroup> {name}: array<{element}, {length}>;\n"

    def poison(self, index: str, threads: int) -> str:
        """First statement of an entry point that has workgroup arrays: in debug mode fills them
        with nan. `index` is the thread's (local_invocation_index)."""
        if not self.poison_memory:
            return ""
        loops = "".join(
            f"for (var i_ = {index}; i_ < {length}u; i_ += {threads}u) "
            f"{{ {name}[i_] = {element}({_poison_value(element)}); }}\n"
            for name, element, length in self.shared
        )
        return loops + "workgroupBarrier();\n"


def _poison_value(element: str) -> str:
    scalar = element.partition("<")[2].rstrip(">") or element
    return {"f32": "poison_f32()", "f16": "f16(poison_f32())"}.get(scalar, f"{scalar}(2143289344)")


def _array(binding: int, name: str, dtype: str, width: int, access: str) -> str:
    word = dtype if PER_WORD[dtype] == 1 else "u32"
    element = word if width == 1 else f"vec{width}<{word}>"
    head = f"@group(0) @binding({binding}) var<storage, {access}> "
    return f"{head}{name}: array<{element}>;\n"


def _accessors(name: str, dtype: str) -> str:
    per, value = PER_WORD[dtype], VALUE[dtype]
    if per == 1:
        one = f"{name}[i]"
        four = f"vec4<{value}>({name}[i], {name}[i + 1u], {name}[i + 2u], {name}[i + 3u])"
    elif per == 2:
        one = f"unpack_{dtype}({name}[i / 2u])[i % 2u]"
        pair = f"unpack_{dtype}({name}[i / 2u])"
        four = f"vec4<{value}>({pair}, unpack_{dtype}({name}[i / 2u + 1u]))"
    else:
        one = f"unpack_{dtype}({name}[i / 4u])[i % 4u]"
        four = f"unpack_{dtype}({name}[i / 4u])"
    return (
        f"fn {name}_at(i: u32) -> {value} {{ return {one}; }}\n"
        f"fn {name}_at4(i: u32) -> vec4<{value}> {{ return {four}; }}\n"
    )


def _put(name: str, dtype: str) -> str:
    per, value = PER_WORD[dtype], VALUE[dtype]
    if per == 1:
        return f"fn {name}_put(w: u32, v: {value}) {{ {name}[w] = v; }}\n"
    kind = f"vec{per}<{value}>"
    return f"fn {name}_put(w: u32, v: {kind}) {{ {name}[w] = pack_{dtype}(v); }}\n"


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(shaders.rooms("wgsl"))
    return jinja2.Environment(
        loader=loader, line_statement_prefix="#", undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def source(
    family: str, values: Mapping[str, Any], caps: Caps, immediates: bool, poison: bool = False
) -> str:
    """The text of `FAMILY.wgsl` behind the prelude, for a device and a variant's values."""
    declarations = _Declarations(immediates, poison)
    functions = {
        name: getattr(declarations, name)
        for name in ("read", "write", "parameters", "workgroup", "poison")
    }
    known = {"caps": caps, "PER_WORD": PER_WORD, "VALUE": VALUE, **functions, **values}
    parts = [
        _environment().get_template(f"{name}.wgsl").render(known) for name in ("prelude", family)
    ]
    return "".join(parts)


def shared_bytes(text: str) -> int:
    """Bytes of workgroup memory that a source declares, without padding. wgpu-native does not
    compare them with the device's limit, and a driver that is asked for more may never answer."""
    return sum(_bytes_of(kind, text) for kind in _SHARED.findall(text))


def _bytes_of(kind: str, text: str) -> int:
    kind = kind.strip()
    if kind in _BYTES:
        return _BYTES[kind]
    if array := _ARRAY.fullmatch(kind):
        return _bytes_of(array[1], text) * int(array[2])
    if inner := re.fullmatch(r"atomic<(.+)>", kind):
        return _bytes_of(inner[1], text)
    if vector := re.fullmatch(r"vec([234])<(.+)>", kind):
        return {"2": 2, "3": 4, "4": 4}[vector[1]] * _bytes_of(vector[2], text)
    if alias := re.search(rf"alias {kind} = ([^;]+);", text):
        return _bytes_of(alias[1], text)
    members = re.search(rf"struct {kind} \{{([^}}]+)\}}", text)
    if members is None:
        raise ValueError(f"{kind} is no type of workgroup memory that a source may have")
    kinds = re.findall(r"\w+: *([^,<]+(?:<[^>]+>)?)", members[1])
    return sum(_bytes_of(one, text) for one in kinds)
