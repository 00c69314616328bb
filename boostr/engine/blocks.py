"""BlockPool: the blocks of keys and values of one group of layers, as numbers.

Holders of a block are counted. A block whose tokens are known has a key, and keeps it when nobody
holds it any more, until it is taken for other tokens: that is the prefix cache. Of the blocks that
nobody holds those without a key are taken first, then those that were given back longest ago.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from boostr.errors import OptionError, OutOfMemoryError


class BlocksExhausted(OutOfMemoryError):  # noqa: N818
    """Fewer blocks are free than were to be taken."""


def chain(parent: bytes, ids: Sequence[int], size: int) -> Iterator[bytes]:
    """The keys of the blocks of `size` tokens that these ids fill: 16 bytes of BLAKE2b
    over the key before it, that of the first being `parent`, and its token ids as int32."""
    tokens = struct.pack(f"<{len(ids)}i", *ids)
    for start in range(0, len(tokens), 4 * size):
        block = tokens[start : start + 4 * size]
        parent = hashlib.blake2b(parent + block, digest_size=16).digest()
        yield parent


def most_blocks(length: int, windows: Sequence[int | None], size: int, chunk: int) -> list[int]:
    """For each group the most blocks of `size` that a job of `length` tokens ever holds.

    windows: how far back each group sees; None: all.   chunk: the most tokens that it computes at
    once.
    """
    whole, most = -(-length // size), []
    for window in windows:
        if window is None:
            most.append(whole)
        else:  # what a chunk writes and sees, wherever in a block it begins
            most.append(min(whole, (window - 1 + chunk + size - 2) // size + 1))
    return most


def first_seen(position: int, window: int | None, size: int) -> int:
    """The first column of blocks of `size` that a token at `position` still sees."""
    return 0 if window is None else max(0, position - window + 1) // size


class BlockPool:
    """`count` blocks 0 .. count - 1 of `size` tokens each."""

    def __init__(self, count: int, size: int) -> None:
        if count < 0 or size < 1:
            raise OptionError(f"BlockPool: {count} blocks of {size} tokens; sizes start at 1")
        self.count, self.size = 0, size
        self._holders: list[int] = []
        self._free: OrderedDict[int, None] = OrderedDict()  # the next to be taken first
        self._keys: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}
        self.grow(count)

    @property
    def free(self) -> int:
        """How many blocks can be taken: all that nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` blocks with one holder each; their keys are forgotten.

        Raises BlocksExhausted, and takes none, when fewer are free.
        """
        if count > len(self._free):
            raise BlocksExhausted(f"{count} blocks of {self.size} tokens asked, {self.free} free")
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
            key = self._keys.pop(block, None)
            if key is not None:
                del self._blocks[key]
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One holder more for each."""
        for block in blocks:
            if not self._holders[block]:
                del self._free[block]
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each, the last one first: the tail of a sequence is taken first.

        Raises OptionError for a block that nobody holds.
        """
        for block in reversed(blocks):
            if not self._holders[block]:
                raise OptionError(f"block {block} is released, but nobody holds it")
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None
                if block not in self._keys:
                    self._free.move_to_end(block, last=False)

    def enter(self, block: int, key: bytes) -> None:
        """Say what a held block has in it. The first of a key and the first of a block win."""
        if key not in self._blocks and block not in self._keys:
            self._blocks[key] = block
            self._keys[block] = key

    def find(self, key: bytes) -> int | None:
        """The block that has the tokens of this key."""
        return self._blocks.get(key)

    def forget(self) -> None:
        """Drop all keys; who holds which block stays."""
        self._keys.clear()
        self._blocks.clear()

    def grow(self, count: int) -> None:
        """Make it `count` blocks in all. Raises OptionError where it has more."""
        if count < self.count:
            raise OptionError(f"a pool of {self.count} blocks cannot shrink to {count}")
        for block in reversed(range(self.count, count)):  # nothing is known of them: taken first
            self._free[block] = None
            self._free.move_to_end(block, last=False)
        self._holders += [0] * (count - self.count)
        self.count = count
