"""NVRTC through ctypes: CUDA C++ text to machine code, kept on disk.

It needs no GPU, so that tests compile every kernel for every architecture. The library and CUDA's
headers come with the pip packages `nvidia-cuda-nvrtc` and `nvidia-cuda-runtime` or a toolkit;
`cuda-pathfinder`, which CuPy installs, finds them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from boostr import env
from boostr.errors import BackendError

_OPTIONS = ("--std=c++17", "-default-device", "--ptxas-options=-v", "-lineinfo")
_FIRST = threading.Lock()
_started: list[Compiled] = []


class CompileError(BackendError):
    """NVRTC refused a kernel; the message is its log."""


@dataclass(frozen=True)
class Compiled:
    """Machine code for one architecture, and what the assembler said of it."""

    cubin: bytes
    log: str

    @property
    def registers(self) -> int:
        """The most registers that a thread of one of the kernels takes."""
        return max((int(n) for n in re.findall(r"Used (\d+) registers", self.log)), default=0)

    @property
    def spilled_bytes(self) -> int:
        """Bytes of registers that went to memory, over all kernels."""
        return sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", self.log))

    @property
    def warnings(self) -> list[str]:
        """Lines by which ptxas says that it gave up an optimisation (serialised wgmma, ...)."""
        return [line for line in self.log.splitlines() if re.search(r"C75\d\d|[Ww]arning", line)]


@cache
def library() -> ctypes.CDLL:
    """NVRTC, loaded; raises BackendError with the pip line that installs it."""
    try:
        from cuda import pathfinder

        path = pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path
    except Exception as error:
        raise BackendError(
            f"NVRTC, CUDA's run-time compiler, was not found ({error}); "
            "pip install 'boostr[cuda13]' (or cuda12 for drivers before 580)"
        ) from None
    return ctypes.CDLL(path)


@cache
def version() -> tuple[int, int]:
    """NVRTC's version, such as (13, 0)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@cache
def include_folder() -> str:
    """The folder of CUDA's headers (`cuda_fp16.h`, `cuda_bf16.h`)."""
    from cuda import pathfinder

    found = pathfinder.find_nvidia_header_directory("cudart")
    if not found:
        raise BackendError(
            "CUDA's headers (cuda_bf16.h) were not found; pip install 'boostr[cuda13]'"
        )
    return found


def compile_cached(text: str, arch: str, name: str) -> Compiled:
    """As `compile_source`, from the cache on disk if it has been compiled before."""
    key = hashlib.sha256(repr((text, arch, _OPTIONS, version())).encode()).hexdigest()[:32]
    path = env.cache_dir() / "cuda" / f"{name}-{arch}-{key}.cubin"
    try:
        return Compiled(path.read_bytes(), "")
    except OSError:
        made = compile_source(text, arch, name)
        _store(path, made.cubin)
        return made


def _store(path: Path, content: bytes) -> None:
    """Written whole or not at all; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        return


def compile_source(text: str, arch: str, name: str) -> Compiled:
    """Compile `text` for `arch` ("sm_80", "sm_90a").

    Raises:
        CompileError: with NVRTC's log.
    """
    with _FIRST:  # NVRTC finds its built-ins in the first compilation, which must be alone
        if not _started:
            _started.append(_compile('extern "C" __global__ void start() {}', arch, "start"))
    return _compile(text, arch, name)


def _compile(text: str, arch: str, name: str) -> Compiled:
    lib = library()
    program = ctypes.c_void_p()
    code = text.encode()
    _check(
        lib.nvrtcCreateProgram(ctypes.byref(program), code, f"{name}.cu".encode(), 0, None, None),
        name,
    )
    try:
        options = [f"-arch={arch}", f"-I{include_folder()}", *_OPTIONS]
        array = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        status = lib.nvrtcCompileProgram(program, len(options), array)
        log = _text(lib, "ProgramLog", program).decode(errors="replace").strip("\0\n ")
        if status:
            raise CompileError(f"{name} for {arch} does not compile:\n{log}")
        return Compiled(_text(lib, "CUBIN", program), log)
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _text(lib: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    """The log or the machine code of a compiled program."""
    size = ctypes.c_size_t()
    _check(getattr(lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(lib, f"nvrtcGet{what}")(program, buffer), what)
    return buffer.raw


def _check(status: int, what: str) -> None:
    if status:
        words = library().nvrtcGetErrorString
        words.restype = ctypes.c_char_p
        raise BackendError(f"NVRTC: {words(status).decode()} (error {status}) for {what}")
