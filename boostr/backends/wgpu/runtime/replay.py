"""Runs of a program encoded ahead of time, on threads.

Commands can be submitted once, so every run encodes them anew, which costs the host about 5 us a
command. Where llvmlite is installed, a loop in machine code makes the C calls without Python's
lock, and threads keep encoded runs in store; else the main thread encodes each when it is run. They
are kept unfinished: wgpu-native frees an encoder that is given up, but never a finished command
buffer that was not submitted.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from boostr import env
from boostr.backends.wgpu.runtime.provider import Provider

_IN_STORE = 2
_THREADS = "implicit-device-synchronization"  # Dawn's devices are for one thread without it
# commands of a run whose first ones start while the others are submitted, in pieces that grow
_LONG, _FIRST, _GROWTH = 256, 16, 4
_FIELDS = 7  # of a row: pipeline or 0, bind group, parameters, their bytes, x, y, z
# loop(pass, rows, count, set pipeline, set bind group, set immediates, dispatch)
_LOOP = """
define void @encode(ptr %pass, ptr %rows, i64 %count, ptr %pipe, ptr %group, ptr %imm, ptr %go) {
entry:
  br label %head
head:
  %i = phi i64 [0, %entry], [%next, %tail]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %body, label %done
body:
  %at = mul i64 %i, 7
  %row = getelementptr i64, ptr %rows, i64 %at
  %p0 = load ptr, ptr %row
  %same = icmp eq ptr %p0, null
  br i1 %same, label %bind, label %change
change:
  call void %pipe(ptr %pass, ptr %p0)
  br label %bind
bind:
  %a1 = getelementptr i64, ptr %row, i64 1
  %p1 = load ptr, ptr %a1
  call void %group(ptr %pass, i32 0, ptr %p1, i64 0, ptr null)
  %a2 = getelementptr i64, ptr %row, i64 2
  %p2 = load ptr, ptr %a2
  %a3 = getelementptr i64, ptr %row, i64 3
  %n3 = load i64, ptr %a3
  %none = icmp eq i64 %n3, 0
  br i1 %none, label %tail, label %give
give:
  call void %imm(ptr %pass, i32 0, ptr %p2, i64 %n3)
  br label %tail
tail:
  %a4 = getelementptr i64, ptr %row, i64 4
  %x4 = load i32, ptr %a4
  %a5 = getelementptr i64, ptr %row, i64 5
  %x5 = load i32, ptr %a5
  %a6 = getelementptr i64, ptr %row, i64 6
  %x6 = load i32, ptr %a6
  call void %go(ptr %pass, i32 %x4, i32 %x5, i32 %x6)
  %next = add i64 %i, 1
  br label %head
done:
  ret void
}
"""
_CALLS = ("SetPipeline", "SetBindGroup", "SetImmediates", "DispatchWorkgroups")


def _loop() -> tuple[Any, Any]:
    """The compiled loop, and what keeps its memory."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(_LOOP), machine)
    engine.finalize_object()
    kinds = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 4]
    return ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address("encode")), engine


@cache
def _compiled() -> Future:
    """The loop, under way: importing LLVM takes a third of a second."""
    return encoders().submit(_loop)


@cache
def encoders() -> ThreadPoolExecutor:
    """Three threads: recording a run takes as long as finishing it."""
    return ThreadPoolExecutor(3, "boostr-encode")


class Replay:
    """Commands that are encoded over and over."""

    def __init__(self, provider: Provider, device: Any, commands: Sequence[tuple]) -> None:
        self._provider, self._device, self._commands = provider, device, commands
        self._addresses = [provider.address(f"wgpuComputePassEncoder{c}") for c in _CALLS]
        self._rows = np.zeros((len(commands), _FIELDS), np.int64)
        self._held = []  # memory of the parameters
        for rows, part in zip(pieces(self._rows), pieces(commands), strict=True):
            last = None  # a pass begins without a pipeline
            for row, (pipeline, group, params, nbytes, x, y, z, _) in zip(rows, part, strict=True):
                held = ctypes.create_string_buffer(params, max(nbytes, 1)) if nbytes else None
                where = ctypes.addressof(held) if held is not None else 0
                changed = 0 if pipeline is last else provider.number(pipeline)
                row[:] = changed, provider.number(group), where, nbytes, x, y, z
                self._held.append(held)
                last = pipeline
        self._store: deque[Future] = deque()

    def take(self) -> Any:
        """The encoders of a run if one is in store, else None; others are begun."""
        loop = _compiled()
        if not loop.done() or loop.exception() is not None:
            return None
        made = self._store.popleft().result() if self._store else None
        while len(self._store) < _IN_STORE:
            self._store.append(encoders().submit(self._encode, loop.result()[0]))
        return made

    def _encode(self, loop: Any) -> list[Any]:
        """Command encoders. Runs on a thread, almost all the time without the interpreter."""
        provider = self._provider
        raw, null = provider.raw, provider.ffi.NULL
        made = []
        for piece in pieces(self._rows):
            encoder = provider.encoder(self._device)
            compute = raw.wgpuCommandEncoderBeginComputePass(encoder, null)
            where = provider.number(compute)
            loop(where, piece.ctypes.data, len(piece), *self._addresses)
            raw.wgpuComputePassEncoderEnd(compute)
            raw.wgpuComputePassEncoderRelease(compute)
            made.append(encoder)
        return made

    def close(self) -> None:
        """Give up what is in store."""
        release = self._provider.raw.wgpuCommandEncoderRelease

        def drop(done: Future) -> None:
            for encoder in done.result():
                release(encoder)

        while self._store:
            self._store.popleft().add_done_callback(drop)


def pieces(commands: Any) -> list[Any]:
    """A run's commands, those of a long run in parts that are submitted one after the other."""
    if len(commands) < _LONG:
        return [commands]
    made, start, size = [], 0, _FIRST
    while start < len(commands):
        made.append(commands[start : start + size])
        start, size = start + size, size * _GROWTH
    return made


def replay(provider: Provider, device: Any, commands: Sequence[tuple]) -> Replay | None:
    """How commands are encoded ahead of time; None where they are encoded when they run."""
    able = env.cores() > 2 and (provider.name == "wgpu" or _THREADS in device.features)
    if not commands or not able or importlib.util.find_spec("llvmlite") is None:
        return None
    return Replay(provider, device, commands)
