"""numba's part of a compilation: from a kernel's Python function to LLVM IR with one entry point.

Imported only when something must be compiled. The IR that comes out needs nothing of numba or
Python: no reference counts, no error objects; `jit.py` checks that.
"""

import re
from typing import Any

import numba
from numba import types

from boostr.backends.numpy.kernels.runtime.memory import Pointer

# -inf is a mask value in attention and NaN must stay visible, so nnan and ninf stay off.
njit: Any = numba.njit  # untyped: its published overloads do not know these options
FASTMATH = {"contract", "reassoc", "nsz", "arcp", "afn"}

_ENTRY = """
define void @{symbol}(i64 %params, i64 %start, i64 %stop) {{
  %result = alloca ptr
  %error = alloca ptr
  %status = call i32 @{inner}(ptr %result, ptr %error, i64 %params, i64 %start, i64 %stop)
  ret void
}}
"""


def llvm_ir(function, symbol: str) -> str:
    """The LLVM IR of a kernel.

    `function(params, start, stop)` is plain Python in the language of `simd.py`, and returns
    nothing. The IR defines `void symbol(i64 params, i64 start, i64 stop)`, which calls numba's own
    entry with its hidden result and error arguments and drops the status: kernels cannot raise.
    """
    signature: Any = types.void(Pointer("i64"), types.int64, types.int64)
    compiled: Any = njit(
        signature, no_cpython_wrapper=True, no_cfunc_wrapper=True, nogil=True,
        error_model="numpy", boundscheck=False, fastmath=FASTMATH,
    )(function)  # fmt: skip
    (result,) = compiled.overloads.values()
    inner = result.fndesc.llvm_func_name
    text = result.library.get_llvm_str()
    found = re.search(r'^define [^@]*@("?)' + re.escape(inner) + r'("?)\(', text, re.M)
    if found is None:
        raise RuntimeError(f"numba gave no definition of {inner}")
    text += _ENTRY.format(symbol=symbol, inner=f'"{inner}"')
    # or LLVM would make a row of stores into a call of memset, which needs a linker to find it
    return re.sub(r"^(define .*) \{$", r'\1 "no-builtins" {', text, flags=re.MULTILINE)
