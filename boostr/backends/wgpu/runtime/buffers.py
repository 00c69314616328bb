"""Memory: blocks of the GPU's, given out as buffers and kept for reuse when those die."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

from boostr.errors import BackendError, OutOfMemoryError
from boostr.program import SHARED

_uids = itertools.count(1)
_LEAST = 256
_FINE_ABOVE = 1 << 24  # bytes; above, blocks are made to measure
_GRAIN = 1 << 16
_SPARE = 1 << 28  # bytes that may be idle whatever was in use


class Block:
    """One GPU buffer. `handle` is its C pointer, `serial` the batch of commands that may use it
    last, `groups` the keys of cached bind groups that name it."""

    __slots__ = ("gpu", "groups", "handle", "home", "serial", "size", "uid")

    def __init__(self, gpu: Any, size: int, home: Pool | None) -> None:
        self.gpu, self.handle, self.size, self.home = gpu, gpu._internal, size, home
        self.uid = next(_uids)
        self.serial = -1
        self.groups: set[Any] = set()


class Buffer:
    """A block while somebody uses it: goes back where it came from when the last view dies."""

    __slots__ = ("__weakref__", "block")

    def __init__(self, block: Block) -> None:
        self.block = block

    def __del__(self) -> None:
        home = self.block.home
        if home is not None:
            home.returned.append(self.block)  # nothing else: a collection may run anywhere


def size_class(nbytes: int) -> int:
    """The size of the block that serves a request: powers of two in four steps, so that at most
    a quarter is lost; above 16 MiB multiples of 64 KiB."""
    if nbytes <= _LEAST:
        return _LEAST
    if nbytes > _FINE_ABOVE:
        return -(-nbytes // _GRAIN) * _GRAIN
    step = max(1 << ((nbytes - 1).bit_length() - 3), 64)
    return -(-nbytes // step) * step


class Pool:
    """Blocks by size.

    Args:
        make: (bytes) -> a GPU buffer; raises OutOfMemoryError.
        serial: the number of the batch of commands that is being collected.
        drop: forgets what is cached about a block that will be given back to the GPU.
        relieve: submits and waits, so that memory given back is really free.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        serial: Callable[[], int],
        drop: Callable[[Block], None],
        relieve: Callable[[], None],
    ) -> None:
        self._make, self._serial, self._drop, self._relieve = make, serial, drop, relieve
        self.returned: deque[Block] = deque()
        self._free: dict[int, list[Block]] = {}
        # all of them: a collection finalises whatever only garbage names, and blocks outlive it
        self._blocks: dict[int, Block] = {}
        self.allocated = 0  # bytes of all blocks
        self.idle = 0  # bytes of blocks in `_free`
        self._peak = 0  # the most bytes that were in use at once

    @property
    def count(self) -> int:
        """Blocks, in use and idle."""
        return len(self._blocks)

    def take(self, nbytes: int, exact: bool = False) -> Buffer:
        """A buffer of at least so many bytes; `exact`: of its own size, not kept afterwards."""
        return Buffer(self.block(nbytes, exact))

    def block(self, nbytes: int, exact: bool = False) -> Block:
        """What `take` makes a buffer of; whoever takes it gives it to `returned` at the end."""
        size = -(-max(nbytes, 16) // 16) * 16 if exact else size_class(nbytes)
        if self.returned:
            self.drain()
        free = self._free.get(size)
        if free and not exact:
            block = free.pop()
            self.idle -= size
        else:
            block = self._new(size, _Exact(self) if exact else self)
        self._peak = max(self._peak, self.allocated - self.idle)
        return block

    def drain(self) -> None:
        """Take back the blocks whose buffers have died."""
        serial = self._serial()
        while self.returned:
            block = self.returned.popleft()
            block.serial = serial
            if isinstance(block.home, _Exact):
                self._forget(block)
                continue
            block.home = self
            self._free.setdefault(block.size, []).append(block)
            self.idle += block.size
        self._evict(self._peak + self._peak // 2 + _SPARE)

    def _evict(self, most: int) -> None:
        """Give the blocks that were idle longest back until so many bytes are left: work whose
        sizes change would else fill the memory with blocks of sizes that never return."""
        if self.allocated <= most:
            return
        for block in sorted(itertools.chain(*self._free.values()), key=lambda b: b.serial):
            if self.allocated <= most:
                break
            self._free[block.size].remove(block)
            self.idle -= block.size
            self._forget(block)

    def trim(self) -> None:
        """Give every idle block back to the GPU."""
        free, self._free, self.idle, self._peak = self._free, {}, 0, 0
        for block in itertools.chain(*free.values()):
            self._forget(block)

    def _forget(self, block: Block) -> None:
        self._drop(block)
        self.allocated -= block.size
        del self._blocks[block.uid]
        block.home, block.gpu = None, None

    def _new(self, size: int, home: Any) -> Block:
        try:
            gpu = self._make(size)
        except OutOfMemoryError:
            self.drain()
            self.trim()
            self._relieve()
            gpu = self._make(size)
        self.allocated += size
        block = Block(gpu, size, home)
        self._blocks[block.uid] = block
        return block


class _Exact:
    """The home of blocks that are not kept: the pool only learns that they have died."""

    __slots__ = ("returned",)

    def __init__(self, pool: Pool) -> None:
        self.returned = pool.returned


class Arena:
    """The memory of programs that never run at the same time: blocks that only they use, so that a
    replay writes nothing that belongs to others, and all of which each of them may use. They return
    to the pool when neither the programs nor arrays that these made are left."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._blocks: list[Block] = []
        self.begin()

    def begin(self) -> None:
        """Another program is recorded."""
        self.returned: deque[Block] = deque(self._blocks)  # buffers of earlier ones go elsewhere
        self._free: dict[int, list[Block]] = {}

    def take(self, nbytes: int) -> Buffer:
        while self.returned:
            block = self.returned.popleft()
            self._free.setdefault(block.size, []).append(block)
        free = self._free.get(size_class(nbytes))
        if free:
            return ArenaBuffer(free.pop(), self)
        block = self._pool.block(nbytes)
        self._blocks.append(block)
        return ArenaBuffer(block, self)

    def owns(self, buffer: Buffer) -> bool:
        """Whether it was made by the program that is recorded.

        Raises:
            BackendError: by an earlier one of the arena.
        """
        if not isinstance(buffer, ArenaBuffer) or buffer.arena is not self:
            return False
        if buffer.returned is not self.returned:
            raise BackendError(SHARED)
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.size for block in self._blocks)

    def __del__(self) -> None:
        self._pool.returned.extend(self._blocks)


class ArenaBuffer(Buffer):
    """A block while an array of a program uses it."""

    __slots__ = ("arena", "returned")

    def __init__(self, block: Block, arena: Arena) -> None:
        super().__init__(block)
        self.arena, self.returned = arena, arena.returned

    def __del__(self) -> None:
        self.returned.append(self.block)
