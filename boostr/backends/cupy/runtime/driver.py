"""The CUDA driver through ctypes: modules, launches with attributes, tensor maps.

CuPy's own launches take no attributes (no programmatic dependent launch), which decoding needs.
All calls work on the context that CuPy made current.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np

from boostr.errors import BackendError

_MAX_DYNAMIC_SHARED = 8  # CUfunction_attribute
_PROGRAMMATIC_SERIALIZATION = 6  # CUlaunchAttributeID
_MOST_ARGUMENT_BYTES = 4096
_BUFFER_POINTER, _BUFFER_SIZE = 1, 2  # CU_LAUNCH_PARAM_*


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int * 16)]


class _Config(ctypes.Structure):
    _fields_ = [
        *((f"{name}_{axis}", ctypes.c_uint) for name in ("grid", "block") for axis in "xyz"),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    ]


_DEPENDENT = _Attribute(_PROGRAMMATIC_SERIALIZATION, 0, (ctypes.c_int * 16)(1))


@cache
def library() -> ctypes.CDLL:
    """libcuda; raises BackendError if there is no NVIDIA driver."""
    for name in ("libcuda.so.1", "libcuda.so", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendError("no NVIDIA driver: libcuda.so.1 was not found")


def check(status: int, what: str) -> None:
    """Raise BackendError with the driver's own words for an error code."""
    if status:
        text = ctypes.c_char_p()
        library().cuGetErrorString(status, ctypes.byref(text))
        words = text.value.decode() if text.value else "unknown error"
        raise BackendError(f"CUDA: {what}: {words} (error {status})")


class Module:
    """Loaded machine code. Kernels are looked up by name."""

    def __init__(self, cubin: bytes, name: str) -> None:
        self._handle = ctypes.c_void_p()
        self._name = name
        check(library().cuModuleLoadData(ctypes.byref(self._handle), cubin), f"loading {name}")

    def function(self, name: str) -> Function:
        """A kernel by its name."""
        handle = ctypes.c_void_p()
        status = library().cuModuleGetFunction(ctypes.byref(handle), self._handle, name.encode())
        check(status, f"{self._name} has no kernel {name}")
        return Function(handle, name)


class Function:
    """A kernel, and the most shared memory that it was launched with so far."""

    def __init__(self, handle: ctypes.c_void_p, name: str) -> None:
        self.handle, self._name = handle, name
        self._shared_bytes = 0
        self._layout: struct.Struct | None = None

    def pack_into(self, room: ctypes.Array, args: Sequence[Any]) -> int:
        """Put arguments where the driver reads them; the bytes that they take.

        An array is its address (None: a null pointer), int is `int`, float is `float`, numpy.int64
        is `long long`; bytes (a tensor map) lie as they are and must come first. All naturally
        aligned, as C has them. What stands where is taken from the first launch: it is the kernel's
        signature.
        """
        layout = self._layout
        if layout is None:
            skipped = self.first_offset if args and isinstance(args[0], bytes) else 0
            layout = struct.Struct(f"@{skipped}x" + "".join(map(_code, args)))
            self._layout = layout
        values = [
            arg if arg.__class__ in _PLAIN else 0 if arg is None else arg.data.ptr for arg in args
        ]
        layout.pack_into(room, 0, *values)
        return layout.size

    def reserve(self, shared_bytes: int) -> None:
        """Allow launches with so much dynamic shared memory; beyond 48 KiB, static ones included,
        the driver refuses what was not asked for."""
        if shared_bytes > self._shared_bytes:
            status = library().cuFuncSetAttribute(self.handle, _MAX_DYNAMIC_SHARED, shared_bytes)
            check(status, f"{self._name}: {shared_bytes} bytes of shared memory")
            self._shared_bytes = shared_bytes

    @cached_property
    def first_offset(self) -> int:
        """Where the first argument lies in the block of arguments: a tensor map must be at a
        multiple of 64, which the block itself is not."""
        offset, size = ctypes.c_size_t(), ctypes.c_size_t()
        status = library().cuFuncGetParamInfo(
            self.handle, ctypes.c_size_t(0), ctypes.byref(offset), ctypes.byref(size)
        )
        check(status, f"{self._name}: its arguments")
        return offset.value


_PLAIN = frozenset((int, float, bytes, np.int64))


def _code(arg: Any) -> str:
    """How `struct` calls the C type of an argument."""
    if isinstance(arg, bytes):
        return f"{len(arg)}s"
    return {int: "i", float: "f", np.int64: "q"}.get(type(arg), "P")


class _Room(threading.local):
    """What a launch is described in, made once for each thread: it is half of a launch's cost."""

    def __init__(self) -> None:
        self.words = ctypes.create_string_buffer(_MOST_ARGUMENT_BYTES)
        self.size = ctypes.c_size_t()
        self.extra = (ctypes.c_void_p * 5)(
            _BUFFER_POINTER, ctypes.addressof(self.words), _BUFFER_SIZE,
            ctypes.addressof(self.size), 0,
        )  # fmt: skip
        self.config = _Config()
        self.config_at = ctypes.byref(self.config)
        self.run = library().cuLaunchKernelEx


_room: _Room | None = None


def launch(
    function: Function,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    stream: int,
    shared_bytes: int = 0,
    dependent: bool = False,
) -> None:
    """Start a kernel. `dependent`: it may begin before the one before it has ended (sm_90)."""
    global _room
    room = _room
    if room is None:
        room = _room = _Room()
    function.reserve(shared_bytes)
    room.size.value = function.pack_into(room.words, args)
    config = room.config
    config.grid_x, config.grid_y, config.grid_z = (*grid, 1, 1)[:3]
    config.block_x, config.block_y, config.block_z = (*block, 1, 1)[:3]
    config.shared_bytes, config.stream = shared_bytes, stream
    if dependent:
        config.attributes, config.attribute_count = ctypes.pointer(_DEPENDENT), 1
    else:
        config.attribute_count = 0
    status = room.run(room.config_at, function.handle, None, room.extra)
    if status:
        check(status, f"launch of grid {tuple(grid)}, block {tuple(block)}, {shared_bytes} bytes")
