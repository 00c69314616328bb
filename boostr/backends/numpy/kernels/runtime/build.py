"""numba's part of a compilation: from a kernel's Python function to LLVM IR with one entry point.

Imported only when something must be compiled. The IR that comes out needs nothing of numba or
Python: no reference counts, no error objects; `jit.py` checks that.
"""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
from numba import types

from boostr.backends.numpy.kernels.runtime.memory import Pointer
from boostr.backends.numpy.kernels.runtime.simd import OPTIONS

njit: Any = numba.njit  # untyped: its published overloads do not know these options

_ENTRY = """
define void @{symbol}(i64 %params, i64 %start, i64 %stop) {{
  %result = alloca ptr
  %error = alloca ptr
  %status = call i32 @{inner}(ptr %result, ptr %error, i64 %params, i64 %start, i64 %stop)
  ret void
}}
"""


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile: there is little, and much to look through."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def llvm_ir(function, symbol: str) -> str:
    """The LLVM IR of a kernel.

    `function(params, start, stop)` is plain Python in the language of `simd.py`, and returns
    nothing. The IR defines `void symbol(i64 params, i64 start, i64 stop)`, which calls numba's own
    entry with its hidden result and error arguments and drops the status: kernels cannot raise.
    """
    signature: Any = types.void(Pointer("i64"), types.int64, types.int64)
    with _uncollected():
        compiled: Any = njit(signature, **OPTIONS)(function)
    (result,) = compiled.overloads.values()
    inner = result.fndesc.llvm_func_name
    text = result.library.get_llvm_str()
    found = re.search(r'^define [^@]*@("?)' + re.escape(inner) + r'("?)\(', text, re.M)
    if found is None:
        raise RuntimeError(f"numba gave no definition of {inner}")
    text += _ENTRY.format(symbol=symbol, inner=f'"{inner}"')
    # or LLVM would make a row of stores into a call of memset, which needs a linker to find it
    return re.sub(r"^(define .*) \{$", r'\1 "no-builtins" {', text, flags=re.MULTILINE)
