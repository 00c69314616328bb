"""ChunkProgram: the forward pass over one chunk of one prompt, recorded to be repeated.

A GPU that runs a small model is faster than Python can start its kernels. The chunks of long
prompts are alike: only ids, positions and the cache's row differ, and these are tensors.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np

from boostr.engine.kv_cache import KVCache
from boostr.nn.batch import Batch
from boostr.program import Program, capture
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.engine.runner import Runner


class _Chunk:
    """What the forward pass works on; calling it runs or records one. The cache owns it."""

    def __init__(self, runner: Runner, cache: KVCache, length: int) -> None:
        self._module = runner.module
        self.cache = weakref.proxy(cache)
        tables = cache.block_tables([0])
        sizes = [length, length, 1, *(t.size for t in tables)]
        self.state = runner.tensor(np.zeros(sum(sizes)))  # one upload a chunk
        ends = np.cumsum(sizes).tolist()
        parts = [self.state[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        self.ids, self.positions, self.kv_lens = parts[:3]
        shapes = [t.shape for t in tables]
        self.tables = [t.reshape(s) for t, s in zip(parts[3:], shapes, strict=True)]
        self._cu, self._owners = runner.tensor([0, length]), runner.tensor(np.zeros(length))
        self._ropes = runner.rotary.decode(cache.length, self.positions)

    def __call__(self) -> Tensor:
        """Hidden states [T, E]."""
        views = self.cache.views(self.tables, self.positions, self._owners, self.kv_lens)
        batch = Batch(self.ids, self.positions, self._cu, self._ropes, views)
        return self._module.hidden(batch)


class ChunkProgram:
    """`length` tokens of one sequence, written into a cache; lives as long as that cache."""

    def __init__(self, runner: Runner, cache: KVCache, length: int) -> None:
        self._backend = runner.backend
        self._chunk = _Chunk(runner, cache, length)
        self._program: Program | None = None

    def run(self, row: int, ids: np.ndarray, start: int) -> Tensor:
        """Hidden states [T, E] of tokens from position `start` on; overwritten by the next run."""
        chunk = self._chunk
        stop = start + len(ids)
        tables = [t.ravel() for t in chunk.cache.block_tables([row])]
        values = np.concatenate([ids, np.arange(start, stop), [stop], *tables])
        chunk.state.assign(values.astype(np.int32))
        if self._program is None:
            with self._backend.constant_weights():
                self._program = capture(chunk, self._backend)
        else:
            self._program.run()
        return self._program.outputs
