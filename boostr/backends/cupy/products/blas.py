"""cuBLASLt through ctypes: matrix products that can be recorded in a CUDA graph.

CuPy's own binding sets cuBLAS's stream before every call, which cuBLAS refuses while a stream is
being captured. cuBLASLt takes the stream as an argument. Enumerations are those of NVIDIA's
cuBLAS documentation (cublasLt.h, cuBLAS 12 and 13).

cuBLASLt counts by columns: a row-major [R, C] of leading dimension ld is its C x R. So y = x wᵀ is
asked for as yᵀ = w xᵀ, whose first operand is w's memory, transposed.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from boostr import dtypes
from boostr.errors import BackendError

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

_WORKSPACE_BYTES = 32 << 20  # what NVIDIA advises for Hopper
_MAJORS = (12, 13)  # versions whose enumerations are the ones below

_TYPES = {  # cudaDataType
    dtypes.float32: 0, dtypes.float64: 1, dtypes.float16: 2, dtypes.bfloat16: 14,
}  # fmt: skip
_COMPUTE_32F, _COMPUTE_64F = 68, 70  # cublasComputeType_t; 32F multiplies f32 without TF32
_DESC_TRANSA, _DESC_TRANSB, _DESC_EPILOGUE, _DESC_BIAS_POINTER = 3, 4, 7, 8
_LAYOUT_BATCH_COUNT, _LAYOUT_BATCH_STRIDE = 5, 6
_PREFERENCE_WORKSPACE, _PREFERENCE_REDUCTION, _PREFERENCE_ALIGNMENT = 1, 3, 5  # 5..8: A B C D
_REDUCE_IN_FLOAT = 2  # CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE: shares of K are added in f32
_OP_T, _EPILOGUE_BIAS = 1, 4
_STATUS = {
    1: "not initialized", 3: "allocation failed", 7: "invalid value", 8: "architecture mismatch",
    13: "execution failed", 14: "internal error", 15: "not supported",
}  # fmt: skip


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


@cache
def library() -> ctypes.CDLL:
    """cublasLt, loaded and of a version that we know; else BackendError with the pip line."""
    advice = "pip install 'boostr[cuda13]' (or cuda12 for drivers before 580)"
    path = None
    try:
        from cuda import pathfinder

        path = pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path
    except Exception:
        path = ctypes.util.find_library("cublasLt")
    if path is None:
        raise BackendError(f"cuBLASLt, NVIDIA's matrix products, was not found; {advice}")
    try:
        lib = ctypes.CDLL(path)
    except OSError as error:
        raise BackendError(f"cuBLASLt does not load ({error}); {advice}") from None
    lib.cublasLtGetVersion.restype = ctypes.c_size_t
    version = lib.cublasLtGetVersion()
    major = version // 10000
    if major not in _MAJORS:
        raise BackendError(f"cuBLASLt {major} is not known, only {_MAJORS}; {advice}")
    return lib


def _check(status: int, what: str) -> None:
    if status:
        raise BackendError(
            f"cuBLASLt: {what}: {_STATUS.get(status, 'unknown error')} (status {status})"
        )


@dataclass(frozen=True)
class Operand:
    """A matrix in memory as cuBLASLt sees it: columns lie `ld` elements apart.

    Attributes:
        rows, columns: by columns, before `transposed`.   stride: elements between matrices of a
            batch.   alignment: bytes that the address is a multiple of, at most 256.
    """

    dtype: np.dtype
    rows: int
    columns: int
    ld: int
    alignment: int
    transposed: bool = False
    stride: int = 0


@dataclass(frozen=True)
class _Key:
    """All that decides which algorithm serves a product."""

    a: Operand
    b: Operand
    c: Operand
    d: Operand
    batch: int
    bias_alignment: int  # 0: no bias
    accumulate: bool


class _Plan:
    """One product prepared: descriptors, and the algorithm that the heuristics chose."""

    def __init__(self, handle: ctypes.c_void_p, key: _Key) -> None:
        lib = library()
        double = key.a.dtype == dtypes.float64
        scale = dtypes.float64 if double else dtypes.float32
        self.desc = ctypes.c_void_p()
        compute = _COMPUTE_64F if double else _COMPUTE_32F
        _check(
            lib.cublasLtMatmulDescCreate(ctypes.byref(self.desc), compute, _TYPES[scale]), "plan"
        )
        self.describe(_DESC_TRANSA, ctypes.c_int32(_OP_T if key.a.transposed else 0))
        self.describe(_DESC_TRANSB, ctypes.c_int32(_OP_T if key.b.transposed else 0))
        if key.bias_alignment:
            self.describe(_DESC_EPILOGUE, ctypes.c_int32(_EPILOGUE_BIAS))
            self.describe(_DESC_BIAS_POINTER, ctypes.c_void_p(1 << 20 | key.bias_alignment))
        self.layouts = [_layout(operand, key.batch) for operand in (key.a, key.b, key.c, key.d)]
        real = ctypes.c_double if double else ctypes.c_float
        self.alpha, self.beta = real(1), real(1 if key.accumulate else 0)
        self.found = _Heuristic()
        self.key = key
        self._choose(handle, key)
        self.alpha_at, self.beta_at = map(ctypes.addressof, (self.alpha, self.beta))
        self.algorithm_at = ctypes.addressof(self.found)

    def describe(self, attribute: int, value: Any) -> None:
        status = library().cublasLtMatmulDescSetAttribute(
            self.desc, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))
        )
        _check(status, f"attribute {attribute} of a product")

    def _choose(self, handle: ctypes.c_void_p, key: _Key) -> None:
        lib = library()
        preference, count = ctypes.c_void_p(), ctypes.c_int()
        _check(lib.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)), "preference")
        wishes: list[tuple[int, Any]] = [
            (_PREFERENCE_WORKSPACE, ctypes.c_uint64(_WORKSPACE_BYTES)),
            (_PREFERENCE_REDUCTION, ctypes.c_uint32(_REDUCE_IN_FLOAT)),
        ]
        for i, operand in enumerate((key.a, key.b, key.c, key.d)):
            wishes.append((_PREFERENCE_ALIGNMENT + i, ctypes.c_uint32(operand.alignment)))
        for attribute, value in wishes:
            status = lib.cublasLtMatmulPreferenceSetAttribute(
                preference, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))
            )
            _check(status, f"preference {attribute}")
        status = lib.cublasLtMatmulAlgoGetHeuristic(
            handle, self.desc, *self.layouts, preference, 1,
            ctypes.byref(self.found), ctypes.byref(count),
        )  # fmt: skip
        lib.cublasLtMatmulPreferenceDestroy(preference)
        if status or not count.value or self.found.state:
            _check(status or 15, f"no algorithm for {key}")


def _layout(operand: Operand, batch: int) -> ctypes.c_void_p:
    lib, layout = library(), ctypes.c_void_p()
    status = lib.cublasLtMatrixLayoutCreate(
        ctypes.byref(layout), _TYPES[operand.dtype], ctypes.c_uint64(operand.rows),
        ctypes.c_uint64(operand.columns), ctypes.c_int64(operand.ld),
    )  # fmt: skip
    _check(status, f"layout of {operand}")
    if batch > 1:
        for attribute, value in (
            (_LAYOUT_BATCH_COUNT, ctypes.c_int32(batch)),
            (_LAYOUT_BATCH_STRIDE, ctypes.c_int64(operand.stride)),
        ):
            status = lib.cublasLtMatrixLayoutSetAttribute(
                layout, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))
            )
            _check(status, f"batch of {operand}")
    return layout


class Blas:
    """cuBLASLt on one device: its handle, workspace and plans."""

    def __init__(self, backend: CupyBackend) -> None:
        backend.stream_pointer()  # makes the device current
        self._handle = ctypes.c_void_p()
        _check(library().cublasLtCreate(ctypes.byref(self._handle)), "start")
        self._workspace = backend.lasting(backend.empty, (_WORKSPACE_BYTES,), np.uint8)
        self._workspace_at = self._workspace.data.ptr
        self._plans: dict[_Key, _Plan] = {}
        self.known: dict[tuple, _Plan] = {}  # plans by what `linear` has at hand
        self._matmul = library().cublasLtMatmul
        self._matmul.argtypes = [ctypes.c_void_p] * 14 + [ctypes.c_size_t, ctypes.c_void_p]
        self._whole = backend.whole  # a product may be several kernels that share the workspace

    def run(
        self,
        stream: int,
        operands: tuple[Operand, Operand, Operand, Operand],
        pointers: tuple[int, int, int, int],
        *,
        batch: int = 1,
        bias: int = 0,
        accumulate: bool = False,
    ) -> None:
        """D = op(A) op(B) [+ bias of D's rows] [+ C]; addresses in the order A, B, C, D."""
        key = _Key(*operands, batch, bias and _alignment(bias), accumulate)
        self.launch(stream, self.plan(key), pointers, bias)

    def plan(self, key: _Key) -> _Plan:
        """The plan of a product, made when it is first asked for."""
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = _Plan(self._handle, key)
        return plan

    def launch(self, stream: int, plan: _Plan, pointers: tuple[int, ...], bias: int) -> None:
        """Start a product; addresses in the order A, B, C, D."""
        a, b, c, d = pointers
        la, lb, lc, ld = plan.layouts
        with self._whole:
            if bias:
                plan.describe(_DESC_BIAS_POINTER, ctypes.c_void_p(bias))
            status = self._matmul(
                self._handle, plan.desc, plan.alpha_at, a, la, b, lb, plan.beta_at, c, lc, d, ld,
                plan.algorithm_at, self._workspace_at, _WORKSPACE_BYTES, stream,
            )  # fmt: skip
        if status:
            _check(status, f"product of {plan.key}")


_STARTED: WeakKeyDictionary[Any, Blas] = WeakKeyDictionary()


def prepare(backend: CupyBackend) -> Blas:
    """The library for this backend's device; started on the first call, best before a capture."""
    found = _STARTED.get(backend)
    if found is None:
        found = _STARTED.setdefault(backend, Blas(backend))
    return found


def _alignment(pointer: int) -> int:
    return min(pointer & -pointer, 256) if pointer else 256


def linear(
    backend: CupyBackend, x: Any, weight: Any, out: Any, bias: Any = None, residual: Any = None
) -> None:
    """out = x weightᵀ + bias + residual on 2-D arrays whose rows are dense (any row stride).

    x [M, K] and weight [N, K] of one dtype; out [M, N] of the same or float32; bias [N] and
    residual [M, N] in out's dtype. Neither M, N nor K is 0.
    """
    (M, K), N = x.shape, weight.shape[0]

    def operand(array: Any, rows: int, columns: int, transposed: bool = False) -> Operand:
        ld = array.strides[0] // array.itemsize if array.shape[0] > 1 else rows
        return Operand(array.dtype, rows, columns, ld, _alignment(array.data.ptr), transposed)

    source = out if residual is None else residual
    pointers = (weight.data.ptr, x.data.ptr, source.data.ptr, out.data.ptr)
    bias_at = 0 if bias is None else bias.data.ptr
    blas = prepare(backend)
    short = (  # all that the plan depends on, quick to compare
        x.dtype.num, out.dtype.num, M, N, K, weight.strides[0], x.strides[0], source.strides[0],
        out.strides[0], *(p & 255 for p in pointers), bias_at and 1 + (bias_at & 255),
        residual is None,
    )  # fmt: skip
    plan = blas.known.get(short)
    if plan is None:
        operands = (
            operand(weight, K, N, True),
            operand(x, K, M),
            operand(source, N, M),
            operand(out, N, M),
        )
        key = _Key(*operands, 1, bias_at and _alignment(bias_at), residual is not None)
        plan = blas.known[short] = blas.plan(key)
    blas.launch(backend.stream_pointer(), plan, pointers, bias_at)


# -- a @ b with broadcast leading axes ---------------------------------------------------------
def matmul(backend: CupyBackend, a: Any, b: Any, dtype: Any = None, add_to: Any = None) -> Any:
    """[..., M, K] @ [..., K, N] of one float dtype; summed in float32, float64 in float64.

    `dtype` of the result: a's by default, or float32 of 16-bit operands. The product is added to
    `add_to`, a dense array of it, if there is one.
    """
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    (M, K), N = a.shape[-2:], b.shape[-1]
    out = add_to
    if out is None:
        out = backend.empty((*lead, M, N), a.dtype if dtype is None else dtype)
    if out.size == 0 or (add_to is not None and K == 0):
        return out
    if K == 0:
        out.fill(0)
        return out
    a, b = _strided(backend, a), _strided(backend, b)
    steps = [_batch_steps(x, lead) for x in (a, b, out)]
    axes = [i for i, n in enumerate(lead) if n != 1]
    inner, outer = _merge(lead, axes, steps)
    count = int(np.prod([lead[i] for i in inner], dtype=np.int64)) if inner else 1
    last = inner[-1] if inner else 0
    strides = [step[last] if inner else 0 for step in steps]
    # by columns: outᵀ = bᵀ aᵀ
    first, second = _by_columns(b, strides[1]), _by_columns(a, strides[0])
    result = Operand(out.dtype, N, M, N, _alignment(out.data.ptr), False, strides[2])
    for at in np.ndindex(*(lead[i] for i in outer)):
        pa, pb, pd = (
            x.data.ptr + x.itemsize * sum(i * step[axis] for i, axis in zip(at, outer, strict=True))
            for x, step in zip((a, b, out), steps, strict=True)
        )
        operands = tuple(
            Operand(o.dtype, o.rows, o.columns, o.ld, _alignment(p), o.transposed, o.stride)
            for o, p in ((first, pb), (second, pa), (result, pd), (result, pd))
        )
        prepare(backend).run(
            backend.stream_pointer(), operands, (pb, pa, pd, pd), batch=count,  # type: ignore[arg-type]
            accumulate=add_to is not None,
        )  # fmt: skip
    return out


def _strided(backend: CupyBackend, x: Any) -> Any:
    """x, or a copy, with its rows or its columns dense and no matrix overlapping itself."""
    rows, columns = x.shape[-2:]
    down, across = (s // x.itemsize for s in x.strides[-2:])
    whole = all(s % x.itemsize == 0 and s >= 0 for s in x.strides)
    by_rows = (across == 1 or columns == 1) and (down >= columns or rows == 1)
    by_columns = (down == 1 or rows == 1) and (across >= rows or columns == 1)
    return x if whole and (by_rows or by_columns) else backend.copy(x)


def _by_columns(x: Any, stride: int) -> Operand:
    """x [..., R, C] as cuBLASLt's operand op(·) of C rows and R columns."""
    rows, columns = x.shape[-2:]
    down, across = (s // x.itemsize for s in x.strides[-2:])
    if (across == 1 or columns == 1) and (down >= columns or rows == 1):
        ld = down if rows > 1 else columns
        return Operand(x.dtype, columns, rows, ld, 0, False, stride)
    return Operand(x.dtype, rows, columns, across if columns > 1 else rows, 0, True, stride)


def _batch_steps(x: Any, lead: tuple[int, ...]) -> list[int]:
    """Elements from one matrix to the next along each axis of `lead`; 0 where x is broadcast."""
    own = x.shape[:-2]
    steps = [0] * (len(lead) - len(own))
    return steps + [
        0 if n == 1 else s // x.itemsize for n, s in zip(own, x.strides[:-2], strict=True)
    ]


def _merge(
    lead: tuple[int, ...], axes: list[int], steps: list[list[int]]
) -> tuple[list[int], list[int]]:
    """(the last axes that one stride each can walk together, the axes before them)."""
    if not axes:
        return [], []
    start = len(axes) - 1
    while start > 0:
        here, before = axes[start], axes[start - 1]
        if any(step[before] != step[here] * lead[here] for step in steps):
            break
        start -= 1
    return axes[start:], axes[:start]
