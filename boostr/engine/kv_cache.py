"""KVCache: keys and values of all layers, for a fixed number of sequences.

The layers' states say what they keep; those with one window form a group. A layer that sees
everything keeps `capacity` positions of each sequence; one with a sliding window keeps a ring of
window + chunk positions, in which old ones are overwritten.
Both are block tables over [NB, bs, K, D] (see `ops.paged_attention`): here one block for each
sequence, in a paged cache many small ones that sequences share. Packed keys and values have planes
that are blocked alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boostr import ops
from boostr.backends.base import Backend
from boostr.errors import BackendError
from boostr.nn.states import Paged, State
from boostr.operands import KV, Cache, planes_of
from boostr.ops.cache import new_kv
from boostr.quant.kv import KVForm
from boostr.tensor import Tensor


@dataclass(frozen=True)
class _Group:
    """Layers of one window: keys [N, capacity, K, D] and values of each."""

    capacity: int
    keys: dict[int, KV]
    values: dict[int, KV]


class KVCache:
    """Room for `sequences` sequences of up to `length` tokens.

    Args:
        chunk: most tokens of one sequence that a single forward pass writes.
        dtype: of keys and values.   packed: the form that they have instead; None: they are floats.
    """

    def __init__(
        self,
        states: Sequence[Sequence[State]],
        backend: Backend,
        sequences: int,
        length: int,
        chunk: int,
        dtype: np.dtype,
        packed: KVForm | None = None,
    ) -> None:
        self.sequences, self.length, self.chunk, self.backend = sequences, length, chunk, backend
        self.dtype, self.packed = dtype, packed
        self.programs: dict[int, Any] = {}  # recorded over this memory; see `Runner`
        self._states = states
        paged = _paged(states)
        windows = dict.fromkeys(state.window for state in paged.values())
        self._groups = [
            self._group(w, {i: s for i, s in paged.items() if s.window == w}) for w in windows
        ]

    def _group(self, window: int | None, layers: dict[int, Paged]) -> _Group:
        capacity = self.length if window is None else min(self.length, window + self.chunk)
        rows = (self.sequences, capacity)

        def made(width: str) -> dict[int, KV]:
            return {
                i: new_kv(
                    (*rows, s.kv_heads, getattr(s, width)), self.packed or s.dtype or self.dtype,
                    self.backend,
                )
                for i, s in layers.items()
            }  # fmt: skip

        try:
            keys, values = made("head_dim"), made("v_head_dim")
        except MemoryError:
            tokens = self.sequences * capacity
            each = (s.bytes_per_token(self.dtype, self.packed) for s in layers.values())
            size = tokens * sum(each)
            raise BackendError(
                f"the KV cache for {self.sequences} sequences of {self.length} tokens needs "
                f"{size / 2**30:.1f} GiB, which is not free; lower max_tokens or the batch"
            ) from None
        return _Group(capacity, keys, values)

    def grown(self, length: int, written: int, keep: int) -> KVCache | None:
        """A cache with room for `length` tokens that has the first `keep` of the `written` ones.

        This cache if it is long enough, else a copy. None if a ring has overwritten what would be
        seen again: after a wrap only the whole sequence can be continued.
        """
        wrapped = any(group.capacity < written for group in self._groups)
        if wrapped and keep < written:
            return None
        if length <= self.length:
            return self
        larger = KVCache(
            self._states, self.backend, self.sequences, length, self.chunk, self.dtype, self.packed
        )
        for old, new in zip(self._groups, larger._groups, strict=True):
            if old.capacity < written and old.capacity != new.capacity:
                return None
            rows = min(keep if old.capacity >= written else old.capacity, old.capacity)
            for source, target in ((old.keys, new.keys), (old.values, new.values)):
                for layer, kept in source.items():
                    for new, plane in zip(planes_of(target[layer]), planes_of(kept), strict=True):
                        new[:, :rows].assign(plane[:, :rows])
        return larger

    @property
    def has_rings(self) -> bool:
        """Whether some layers keep only the newest positions, so that writing overwrites."""
        return any(group.capacity < self.length for group in self._groups)

    @property
    def nbytes(self) -> int:
        """Bytes reserved; on the CPU only what has been written is resident."""
        tensors = (t for g in self._groups for t in (*g.keys.values(), *g.values.values()))
        return sum(t.nbytes for t in tensors)

    def block_tables(self, rows: Sequence[int]) -> list[np.ndarray]:
        """For each group the block table int32 [B, 1] of the given sequences."""
        return [np.array(rows, np.int32).reshape(-1, 1) for _ in self._groups]

    def views(
        self,
        block_tables: Sequence[Tensor],
        positions: Tensor,
        sequence_ids: Tensor,
        kv_lens: Tensor,
    ) -> dict[int, Cache]:
        """For each layer what a forward pass reads and writes for tokens at these places.

        positions, sequence_ids: int32 [T]; the latter index rows of the block tables.
        kv_lens: int32 [B], tokens of each sequence with the new ones.
        """
        found = {}
        for group, table in zip(self._groups, block_tables, strict=True):
            slots = ops.slot_mapping(positions, sequence_ids, table, group.capacity)
            for layer, keys in group.keys.items():
                found[layer] = Cache(keys, group.values[layer], slots, table, kv_lens)
        return found


def _paged(states: Sequence[Sequence[State]]) -> dict[int, Paged]:
    """The paged state of every layer."""
    found = {}
    for layer, kept in enumerate(states):
        for state in kept:
            if not isinstance(state, Paged):
                raise BackendError(
                    f"layer {layer} keeps {state}; this cache keeps keys and values alone"
                )
            found[layer] = state
    return found
