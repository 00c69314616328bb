"""KVPool: keys and values of all layers in blocks, which block tables give to sequences.

The layers' states say what they keep; those with one window form a group, with blocks and a block
table of its own. Packed keys and values have planes that are blocked alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boostr import env, ops
from boostr.backends.base import Backend
from boostr.engine.row_pool import RowPool
from boostr.errors import BackendError
from boostr.nn.states import ByRow, ByToken, Shares, State, token_bytes
from boostr.operands import KV, Cache, planes_of
from boostr.ops import core
from boostr.ops.cache import new_kv
from boostr.quant.kv import KVForm
from boostr.tensor import Tensor


@dataclass
class _Group:
    """Layers of one window: keys [NB, bs, K, D] of each, and values of those that have others."""

    layers: dict[int, ByToken]
    keys: dict[int, KV]
    values: dict[int, KV]


class KVPool:
    """Blocks of `block_size` tokens for the layers of a model.

    Args:
        dtype: of keys and values.   packed: the form that they have instead; None: they are floats.
    Attributes:
        windows: of each group: how many tokens back its layers see; None: all.
        counts: blocks of each group; none before `grow`.
        rows: what layers keep of a sequence as a whole.
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
        by_token, self._shared = _by_token(states), _shared(states)
        self.windows = tuple(dict.fromkeys(state.window for state in by_token.values()))
        self._groups = [
            _Group({i: s for i, s in by_token.items() if s.window == window}, {}, {})
            for window in self.windows
        ]
        self.counts = [0] * len(self._groups)
        self.rows = RowPool(states, backend, dtype)

    def fits(self, states: Sequence[Sequence[State]]) -> bool:
        """Whether layers that keep this can use it."""
        return _listed(states) == self._states

    def block_bytes(self, group: int) -> int:
        """Bytes of one block of a group, in all of its layers."""
        states = self._groups[group].layers.values()
        each = sum(token_bytes(state, self._dtype, self._packed) for state in states)
        return each * self.block_size

    def grow(self, counts: Sequence[int], rows: int = 0) -> None:
        """Make it that many blocks in each group, and rows; what the present ones have stays.

        Programs over the old memory must not run again.

        Raises:
            BackendError: they do not fit into memory; the pool is as it was.
        """
        try:
            made = [self._grown(g, n) for g, n in enumerate(counts)]
            made_rows = self.rows.grown(rows)
        except MemoryError:
            size = sum(self.block_bytes(g) * n for g, n in enumerate(counts))
            raise BackendError(
                f"keys and values of {max(counts, default=0) * self.block_size} tokens and what "
                f"else layers keep of {rows} sequences need "
                f"{env.human_bytes(size + rows * self.rows.row_bytes)}, which are not free; lower "
                f"max_tokens, the batch or {env.KV_MEMORY.name}"
            ) from None
        for group, (keys, values) in zip(self._groups, made, strict=True):
            group.keys, group.values = keys, values
        self.counts = list(counts)
        self.rows.take(made_rows, rows)

    def _grown(self, number: int, count: int) -> tuple[dict[int, KV], dict[int, KV]]:
        group, known = self._groups[number], self.counts[number]
        if count == known:
            return group.keys, group.values
        found: tuple[dict[int, KV], dict[int, KV]] = ({}, {})
        for layer, state in group.layers.items():
            stored, tensors = self._packed or state.dtype or self._dtype, (group.keys, group.values)
            for new, old, width in zip(found, tensors, state.widths, strict=False):
                shape = (count, self.block_size, state.kv_heads, width)
                new[layer] = new_kv(shape, stored, self.backend)
                if known:
                    planes = zip(planes_of(new[layer]), planes_of(old[layer]), strict=True)
                    for target, source in planes:
                        target[: len(source)].assign(source)
        return found

    def copy(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """(group, source, target): blocks become what others are, all of which are read first.
        Behind the programs that were started before."""
        for number, group in enumerate(self._groups):
            own = [(source, target) for of, source, target in copies if of == number]
            if not own:
                continue
            read, written = (
                Tensor(np.array(blocks, np.int32), backend=self.backend)
                for blocks in zip(*own, strict=True)
            )
            for kept in (*group.keys.values(), *group.values.values()):
                for plane in planes_of(kept):
                    new = core.take(plane, read)
                    self.backend.put_rows(plane.data, written.data, new.data)

    @property
    def nbytes(self) -> int:
        """Bytes reserved; on the CPU only what has been written is resident."""
        blocks = sum(self.block_bytes(g) * n for g, n in enumerate(self.counts))
        return blocks + self.rows.count * self.rows.row_bytes

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
                values = group.values.get(layer, keys)
                found[layer] = Cache(keys, values, slots, table, kv_lens)
        return found | {layer: found[source] for layer, source in self._shared.items()}


def _listed(states: Sequence[Sequence[State]]) -> list[list[State]]:
    return [list(kept) for kept in states]


def _by_token(states: Sequence[Sequence[State]]) -> dict[int, ByToken]:
    """What each layer keeps of every token.

    Raises BackendError for one that keeps several such things.
    """
    found = {}
    for layer, kept in enumerate(states):
        by_token = [state for state in kept if not isinstance(state, ByRow)]
        if len(by_token) > 1:
            raise BackendError(
                f"layer {layer} keeps {by_token[1]} beside {by_token[0]}; a layer has one of "
                "Paged, Latent and Shares, and any of Recurrent, Conv and Cross"
            )
        if by_token and isinstance(by_token[0], ByToken):
            found[layer] = by_token[0]
    return found


def _shared(states: Sequence[Sequence[State]]) -> dict[int, int]:
    """Which layer's keys and values others read.

    Raises BackendError where that one is not before them, or has none.
    """
    found = {i: s.layer for i, kept in enumerate(states) for s in kept if isinstance(s, Shares)}
    for layer, source in found.items():
        if source not in range(layer) or not any(isinstance(s, ByToken) for s in states[source]):
            raise BackendError(
                f"layer {layer} keeps {Shares(source)}; that must be a layer before it which keeps "
                "one of Paged and Latent"
            )
    return found
