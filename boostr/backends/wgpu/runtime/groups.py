"""Bind groups, made once for each set of buffers; and parameters that need a buffer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.backends.wgpu.runtime.buffers import Block
from boostr.backends.wgpu.runtime.device import Caps
from boostr.backends.wgpu.runtime.kernels import Layout, Pipeline
from boostr.backends.wgpu.runtime.provider import Provider
from boostr.errors import BackendError

_MOST = 8192  # bind groups, and uniform buffers


class Group:
    """A bind group's C pointer, released with this object."""

    __slots__ = ("_release", "handle")

    def __init__(self, handle: Any, release: Any) -> None:
        self.handle, self._release = handle, release

    def __del__(self) -> None:
        self._release(self.handle)


class Groups:
    """Bind groups by what they bind. Forgotten when one of their blocks goes back to the GPU."""

    def __init__(self, provider: Provider, device: Any, caps: Caps) -> None:
        self._provider, self._device, self.caps = provider, device, caps
        self._found: dict[Any, Group] = {}
        self._uniforms: dict[bytes, Any] = {}

    def __len__(self) -> int:
        return len(self._found)

    def window(self, array: GpuArray) -> tuple[int, int]:
        """(start, bytes) of what is bound for an array: its whole block where a kernel can see so
        much, else the part that its elements span."""
        size = array.buffer.block.size
        if size <= self.caps.binding_bytes:
            return 0, size
        width = array.dtype.itemsize
        low, high = array.span
        start = low * width // self.caps.offset_alignment * self.caps.offset_alignment
        length = min(-(-(high * width - start) // 16) * 16, size - start)
        if length > self.caps.binding_bytes:
            raise BackendError(
                f"wgpu: an array of shape {list(array.shape)} ({array.dtype}) spans "
                f"{length / 2**20:.1f} MiB, more than the {self.caps.binding_bytes / 2**20:.1f} "
                f"MiB that a kernel can see at once on {self.caps.name}"
            )
        return start, max(length, 16)

    def get(
        self,
        pipeline: Pipeline,
        reads: Sequence[GpuArray],
        writes: Sequence[GpuArray],
        params: bytes,
    ) -> Group:
        """The bind group of these arrays, and of `params` if the pipeline takes a uniform."""
        layout, limit = pipeline.layout, self.caps.binding_bytes
        key: list[Any] = [layout]
        for array in (*reads, *writes):
            block = array.buffer.block
            if block.size <= limit:
                key.append(block.uid)
            else:
                key.append((block.uid, *self.window(array)))
        if pipeline.uniform:
            key.append(params)
        whole = tuple(key)
        found = self._found.get(whole)
        if found is None:
            _check_aliases(pipeline.name, reads, writes)
            found = self._make(layout, (*reads, *writes), params if pipeline.uniform else None)
            if len(self._found) >= _MOST:
                self._found.clear()
            self._found[whole] = found
            for array in (*reads, *writes):
                array.buffer.block.groups.add(whole)
        return found

    def _make(self, layout: Layout, arrays: Sequence[GpuArray], params: bytes | None) -> Group:
        ffi = self._provider.ffi
        count = len(arrays) + (params is not None)
        entries = ffi.new("WGPUBindGroupEntry[]", count)
        for i, array in enumerate(arrays):
            entries[i].binding, entries[i].buffer = i, array.buffer.block.handle
            entries[i].offset, entries[i].size = self.window(array)
        if params is not None:
            last = entries[count - 1]
            last.binding, last.buffer = count - 1, self._uniform(params)._internal
            last.offset, last.size = 0, -(-len(params) // 16) * 16
        described = ffi.new("WGPUBindGroupDescriptor *")
        described.layout, described.entries = layout.group._internal, entries
        described.entryCount = count
        made = self._provider.safe.wgpuDeviceCreateBindGroup(self._device._internal, described)
        return Group(made, self._provider.raw.wgpuBindGroupRelease)

    def _uniform(self, params: bytes) -> Any:
        """A small buffer that holds these parameters, shared by all launches that have them."""
        found = self._uniforms.get(params)
        if found is None:
            if len(self._uniforms) >= _MOST:
                self._uniforms.clear()
            usage = self._provider.flags.BufferUsage
            padded = params + bytes(-len(params) % 16)
            found = self._device.create_buffer(
                size=len(padded), usage=usage.UNIFORM | usage.COPY_DST
            )
            self._device.queue.write_buffer(found, 0, padded)
            self._uniforms[params] = found
        return found

    def drop(self, block: Block) -> None:
        """Forget what names a block."""
        for key in block.groups:
            self._found.pop(key, None)
        block.groups.clear()


def _check_aliases(name: str, reads: Sequence[GpuArray], writes: Sequence[GpuArray]) -> None:
    blocks = [a.buffer.block.uid for a in writes]
    if len(set(blocks)) < len(blocks) or any(a.buffer.block.uid in blocks for a in reads):
        raise BackendError(f"{name}[wgpu]: an array that it writes shares memory with another one")
