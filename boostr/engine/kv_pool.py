"""KVPool: keys and values of all layers in blocks, which block tables give to sequences.

The layers' states say what they keep; those with one window form a group, with blocks and a block
table of its own. Packed keys and values have planes that are blocked alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boostr import ops
from boostr.backends.base import Backend
from boostr.errors import BackendError
from boostr.nn.states import Paged, State
from boostr.operands import KV, Cache, planes_of
from boostr.ops.cache import new_kv
from boostr.quant.kv import KVForm
from boostr.tensor import Tensor


@dataclass
class _Group:
    """Layers of one window: keys [NB, bs, K, D] and values of each."""

    layers: dict[int, Paged]
    keys: dict[int, KV]
    values: dict[int, KV]


class KVPool:
    """Blocks of `block_size` tokens for the layers of a model.

    Args:
        dtype: of keys and values.   packed: the form that they have instead; None: they are floats.
    Attributes:
        windows: of each group: how many tokens back its layers see; None: all.
        counts: blocks of each group; none before `grow`.
    """

    def __init__(
        self,
        states: Sequence[Sequence[State]],
        backend: Backend,
        block_size: int,
        dtype: np.dtype,
        packed: KVForm | None = None,
    ) -> None:
        self.backend, self.block_size = backend, block_size
        self._states = _listed(states)
        self._dtype, self._packed = dtype, packed
        paged = _paged(states)
        self.windows = tuple(dict.fromkeys(state.window for state in paged.values()))
        self._groups = [
            _Group({i: s for i, s in paged.items() if s.window == window}, {}, {})
            for window in self.windows
        ]
        self.counts = [0] * len(self._groups)

    def fits(self, states: Sequence[Sequence[State]]) -> bool:
        """Whether layers that keep this can use it."""
        return _listed(states) == self._states

    def block_bytes(self, group: int) -> int:
        """Bytes of one block of a group, in all of its layers."""
        states = self._groups[group].layers.values()
        each = sum(state.bytes_per_token(self._dtype, self._packed) for state in states)
        return each * self.block_size

    def grow(self, counts: Sequence[int]) -> None:
        """Make it that many blocks in each group; what the present ones have stays.

        Programs over the old memory must not run again.

        Raises:
            BackendError: they do not fit into memory; the pool is as it was.
        """
        try:
            made = [self._grown(g, n) for g, n in enumerate(counts)]
        except MemoryError:
            size = sum(self.block_bytes(g) * n for g, n in enumerate(counts))
            raise BackendError(
                f"keys and values of {max(counts) * self.block_size} tokens need "
                f"{size / 2**30:.1f} GiB, which is not free; lower max_tokens, the batch or "
                "BOOSTR_KV_MEMORY"
            ) from None
        for group, (keys, values) in zip(self._groups, made, strict=True):
            group.keys, group.values = keys, values
        self.counts = list(counts)

    def _grown(self, number: int, count: int) -> tuple[dict[int, KV], dict[int, KV]]:
        group, known = self._groups[number], self.counts[number]
        if count == known:
            return group.keys, group.values
        found: tuple[dict[int, KV], dict[int, KV]] = ({}, {})
        for layer, state in group.layers.items():
            stored = self._packed or state.dtype or self._dtype
            widths = (state.head_dim, state.v_head_dim)
            for new, old, width in zip(found, (group.keys, group.values), widths, strict=True):
                shape = (count, self.block_size, state.kv_heads, width)
                new[layer] = new_kv(shape, stored, self.backend)
                if known:
                    planes = zip(planes_of(new[layer]), planes_of(old[layer]), strict=True)
                    for target, source in planes:
                        target[: len(source)].assign(source)
        return found

    @property
    def nbytes(self) -> int:
        """Bytes reserved; on the CPU only what has been written is resident."""
        return sum(self.block_bytes(g) * n for g, n in enumerate(self.counts))

    def views(
        self,
        block_tables: Sequence[Tensor],
        positions: Tensor,
        sequence_ids: Tensor,
        kv_lens: Tensor,
    ) -> dict[int, Cache]:
        """For each layer what a forward pass reads and writes for tokens at these places.

        block_tables: int32 [B, columns] of each group.   positions, sequence_ids: int32 [T]; the
        latter index rows of the block tables, negative: written nowhere.
        kv_lens: int32 [B], tokens of each sequence with the new ones.
        """
        found = {}
        for group, table in zip(self._groups, block_tables, strict=True):
            slots = ops.slot_mapping(positions, sequence_ids, table, self.block_size)
            for layer, keys in group.keys.items():
                found[layer] = Cache(keys, group.values[layer], slots, table, kv_lens)
        return found


def _listed(states: Sequence[Sequence[State]]) -> list[list[State]]:
    return [list(kept) for kept in states]


def _paged(states: Sequence[Sequence[State]]) -> dict[int, Paged]:
    """The paged state of every layer."""
    found = {}
    for layer, kept in enumerate(states):
        for state in kept:
            if not isinstance(state, Paged):
                raise BackendError(
                    f"layer {layer} keeps {state}; this pool keeps keys and values alone"
                )
            found[layer] = state
    return found
