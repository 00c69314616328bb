"""Sources of GPU kernels: found, their includes inlined, specialised by macros.

One text goes to the compiler, so that a cache keyed by the text can never be stale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from boostr.errors import BackendError

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
def read(path: str) -> str:
    """The text of a source such as "cuda/norm.cu"."""
    return (folder() / path).read_text(encoding="utf-8")


def cuda_source(family: str, defines: Mapping[str, int | str]) -> str:
    """`cuda/FAMILY.cu` with its own includes inlined, each once, under a head of #defines."""
    head = "".join(f"#define {name} {value}\n" for name, value in sorted(defines.items()))
    return head + _inlined(f"cuda/{family}.cu", set())


def _inlined(path: str, seen: set[str]) -> str:
    def include(found: re.Match[str]) -> str:
        inner = f"cuda/{found[1]}"
        if inner in seen:
            return ""
        seen.add(inner)
        return _inlined(inner, seen)

    return _INCLUDE.sub(include, read(path))
