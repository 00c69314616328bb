"""Which module of this backend holds the kernel of which op. Opened on first use."""

from __future__ import annotations

import importlib

from boostr.backends.base import Kernel

# module of boostr.backends.wgpu -> the ops in its KERNELS
OPS_OF: dict[str, tuple[str, ...]] = {}
_MODULE = {op: module for module, ops in OPS_OF.items() for op in ops}


def find_kernel(op: str) -> Kernel | str:
    """The kernel of an op, or why there is none here."""
    if op not in _MODULE:
        return "the wgpu backend has no kernel for it"
    return importlib.import_module(f"boostr.backends.wgpu.{_MODULE[op]}").KERNELS[op]
