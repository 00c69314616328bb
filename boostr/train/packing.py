"""Packs: samples in batches of T tokens, whole and best fitted, in an order that two numbers say.

An epoch's order is a permutation of (seed, epoch). Windows of it are packed one by one: the longest
sample first, each where least is left; what stays open goes into the next window, so that no batch
but the last ones has much room left and no sample is cut. Samples that belong together are packed
as one. Pairs are taken in their order instead: as each is judged against its batch, a text comes in
a batch once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from boostr.engine.packed import PackedBatch
from boostr.errors import OptionError
from boostr.train.data import Dataset
from boostr.train.groups import PAIR
from boostr.train.pack import pack

_WINDOW = 64  # batches' worth of tokens that are packed together
_OPEN = 8  # batches that may stay open from window to window
_WAITING = 64  # batches in which a pair's texts are looked for
_FULL = 0.99  # of T: such a batch is not left open


class Position(NamedTuple):
    """Where a run is: the next batch, of an epoch."""

    epoch: int = 0
    batch: int = 0


@dataclass
class _Bin:
    """A batch that is being filled."""

    groups: list[int]
    texts: set[bytes]
    room: int  # tokens


class Packs:
    """The batches of a dataset, epoch for epoch, the same for the same arguments.

    Args:
        tokens: T, the most of a batch.   max_sequences: B, the most samples of one.
        seed: of the order.
    Attributes:
        reference: float32 [N], of each sample what batches shall have as theirs; None for none.
    Raises:
        OptionError: a sample, or several that belong together, of more tokens than T.
    """

    reference: np.ndarray | None = None

    def __init__(self, data: Dataset, tokens: int, max_sequences: int = 512, seed: int = 0) -> None:
        self._lengths = data.lengths.reshape(-1, data.width).sum(1)  # of each group
        longest = int(self._lengths.max())
        if longest > tokens or max_sequences < data.width:
            raise OptionError(
                f"batches of {tokens} tokens and {max_sequences} sequences: {data.name} has "
                f"{'samples' if data.width == 1 else f'groups of {data.width} samples'} of "
                f"{longest} tokens; raise tokens, or open the data with a lower max_length"
            )
        self.data, self.tokens, self.max_sequences, self.seed = data, tokens, max_sequences, seed
        self._epoch = functools.lru_cache(maxsize=2)(self._packed)

    def batches(
        self,
        start: Position = Position(),  # noqa: B008
        rank: int = 0,
        ranks: int = 1,
    ) -> Iterator[tuple[Position, PackedBatch]]:
        """(the position behind it, batch), without end, from a position on.

        With several ranks, of every `ranks` batches in turn that of `rank`; the position is behind
        all of them.
        """
        position = start
        while True:
            own = start
            for turn in range(ranks):
                own = position if turn == rank else own
                epoch, behind = position.epoch, position.batch + 1
                more = behind < len(self._epoch(epoch))
                position = Position(epoch, behind) if more else Position(epoch + 1)
            yield position, self._batch(self._samples(own))

    def epoch(self, number: int) -> list[np.ndarray]:
        """The samples of each batch of an epoch, int64 [B] each; every sample is in one."""
        return [self._samples(Position(number, i)) for i in range(len(self._epoch(number)))]

    def fill(self, epoch: int = 0) -> float:
        """The share of its batches' tokens that are of samples."""
        return float(self.data.ends[-1]) / (len(self._epoch(epoch)) * self.tokens)

    def _samples(self, of: Position) -> np.ndarray:
        within = np.arange(self.data.width)
        return (self._epoch(of.epoch)[of.batch][:, None] * len(within) + within).ravel()

    def _batch(self, samples: np.ndarray) -> PackedBatch:
        ids, labels = zip(*(self.data[int(i)] for i in samples), strict=True)
        compared = None if self.reference is None else self.reference[samples]
        return pack(ids, labels, reference=compared)

    def _packed(self, epoch: int) -> list[np.ndarray]:
        """The groups of each batch."""
        lengths, N = self._lengths, len(self._lengths)
        bits = np.random.Philox(key=[self.seed, epoch])  # whose bits are the same in all versions
        order = np.argsort(bits.random_raw(N), kind="stable")
        if self.data.kind == PAIR:
            return self._apart(order)
        sums = np.cumsum(lengths[order]) // (_WINDOW * self.tokens)
        packs, left = list[np.ndarray](), np.empty(0, np.int64)
        for window in np.split(order, np.flatnonzero(np.diff(sums)) + 1):
            bins = self._fitted(np.concatenate([left, window]))
            bins.sort(key=lambda own: -lengths[own].sum())
            full = sum(lengths[own].sum() >= _FULL * self.tokens for own in bins)
            full = max(full, len(bins) - _OPEN)
            packs += bins[:full]
            left = np.concatenate([*bins[full:], np.empty(0, np.int64)])
        packs += self._fitted(left)
        return [packs[i] for i in np.argsort(bits.random_raw(len(packs)), kind="stable")]

    def _fitted(self, groups: np.ndarray) -> list[np.ndarray]:
        """Groups in bins of at most T tokens and B samples, by best fit, the longest first."""
        lengths, most_groups = self._lengths[groups], self.max_sequences // self.data.width
        bins: list[list[int]] = []
        room: dict[int, list[int]] = {}  # tokens left -> bins with so many
        left = 0  # bit c: there is a bin with c tokens left
        for i in np.argsort(-lengths, kind="stable"):
            n = int(lengths[i])
            fits = left >> n
            if fits:
                most = n + (fits & -fits).bit_length() - 1  # the least that is enough
                index = room[most].pop()
                left &= ~(1 << most) if not room[most] else -1
            else:
                most, index = self.tokens, len(bins)
                bins.append([])
            bins[index].append(int(groups[i]))
            if len(bins[index]) < most_groups and most > n:
                room.setdefault(most - n, []).append(index)
                left |= 1 << (most - n)
        return [np.array(own, np.int64) for own in bins]

    def _apart(self, order: np.ndarray) -> list[np.ndarray]:
        """Groups in their order, in batches in which no text comes twice: a group that would bring
        one again is in the next, of _WAITING at most that are open beside its own."""
        bins, open_bins = list[list[int]](), list[_Bin]()
        for group in order.tolist():
            brings, length = self._texts(group), int(self._lengths[group])
            for own in list(open_bins):
                if length > own.room or len(own.groups) == self.max_sequences // self.data.width:
                    open_bins.remove(own)
                elif own.texts.isdisjoint(brings):
                    break
            else:
                own = _Bin([], set(), self.tokens)
                bins.append(own.groups)
                open_bins = [*open_bins[-_WAITING:], own]
            own.groups.append(group)
            own.texts |= brings
            own.room -= length
        if self.data.width == 2 and max(map(len, bins)) < 2:
            raise OptionError(
                f"{self.data.name}: no batch of {self.tokens} tokens and {self.max_sequences} "
                "sequences holds two pairs of different texts, so that there is nothing to tell "
                "apart"
            )
        return [np.array(own, np.int64) for own in bins]

    def _texts(self, group: int) -> set[bytes]:
        first = group * self.data.width
        return {self.data[i].ids.tobytes() for i in range(first, first + self.data.width)}
