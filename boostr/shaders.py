"""Sources of GPU kernels: found, their includes inlined, specialised by macros.

One text goes to the compiler, so that a cache keyed by the text can never be stale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from boostr.errors import BackendError
from boostr.quant.forms import CODES

# a header that is made, not read: how the elements of weights are numbered
_FORMS = "".join(f"#define {name.upper()} {number}\n" for name, number in CODES.items())
_INCLUDE = re.compile(r'^\s*#include\s+"([^"]+)"\s*$', re.MULTILINE)


@cache
def folder() -> Path:
    """Where the sources lie: in the package when it is installed, else beside it in the tree."""
    here = Path(__file__).resolve().parent
    for place in (here / "shaders", here.parent / "shaders"):
        if (place / "README.md").is_file():
            return place
    raise BackendError(f"the GPU sources are missing: expected a folder {here / 'shaders'}")


@cache
def rooms(language: str) -> tuple[Path, ...]:
    """The folders of a language's ("cuda", "wgsl") sources: `runtime`, `products`, ..."""
    return tuple(sorted(place for place in (folder() / language).iterdir() if place.is_dir()))


@cache
def read(language: str, name: str) -> str:
    """The text of a source such as "norm.cu", whose name no other room of its language has."""
    for room in rooms(language):
        if (room / name).is_file():
            return (room / name).read_text(encoding="utf-8")
    raise BackendError(f"the GPU sources have no {language} file {name}; see {folder() / language}")


def cuda_source(family: str, defines: Mapping[str, int | str]) -> str:
    """`FAMILY.cu` with its own includes inlined, each once, under a head of #defines."""
    head = "".join(f"#define {name} {value}\n" for name, value in sorted(defines.items()))
    return head + _inlined(f"{family}.cu", set())


def _inlined(name: str, seen: set[str]) -> str:
    def include(found: re.Match[str]) -> str:
        inner = found[1]
        if inner in seen:
            return ""
        seen.add(inner)
        return _inlined(inner, seen)

    text = _FORMS if name == "forms.cuh" else read("cuda", name)
    return _INCLUDE.sub(include, text)
