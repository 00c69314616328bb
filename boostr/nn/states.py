"""What a layer keeps of a sequence between forward passes, as declarations: the engine allocates.

A layer's `states()` gives one of these for each thing it keeps. What grows by the token lies in
blocks that sequences take (`Paged`, `Latent`), which other layers may read, too (`Shares`); what
has one size lies in a row of each sequence (`Recurrent`, `Conv`, `Cross`) and is of all its tokens,
so that no prefix of it can be shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from boostr import dtypes
from boostr.quant.kv import KVForm

RowTensor = tuple[tuple[int, ...], np.dtype | None]  # of one sequence; None: as activations


@dataclass(frozen=True)
class Paged:
    """Keys [K, D] and values [K, Dv] of every token that can still be seen.

    Attributes:
        window: how many tokens back these are read; None: all.
        dtype: of both where they are not packed; None: that of the activations.
    """

    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    dtype: np.dtype | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Of a head's vector in each tensor."""
        return self.head_dim, self.v_head_dim


@dataclass(frozen=True)
class Latent:
    """One vector [width] of every token, which keys and values are products of (MLA): both are
    read from it."""

    width: int
    window: int | None = None
    dtype: np.dtype | None = None
    kv_heads = 1

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.width,)


@dataclass(frozen=True)
class Recurrent:
    """One tensor that every token changes.

    Attributes:
        shape: of one sequence, such as [H, D, N]; it begins as zeros.
        rewindable: whether the layer can go back some tokens by itself; else whoever may take
            tokens back copies the row before.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | None = dtypes.float32
    rewindable: bool = False

    @property
    def tensors(self) -> tuple[RowTensor, ...]:
        return ((self.shape, self.dtype),)


@dataclass(frozen=True)
class Conv:
    """The last width - 1 inputs [channels] of a causal convolution, the newest last: zeros before
    the first."""

    channels: int
    width: int
    dtype: np.dtype | None = None

    @property
    def tensors(self) -> tuple[RowTensor, ...]:
        return (((self.width - 1, self.channels), self.dtype),)


@dataclass(frozen=True)
class Cross:
    """Keys [length, K, D] and values of another sequence, such as an encoder's, and int32 [], how
    many there are: the pass over a sequence's first tokens writes them, see `ops.begin_rows`.

    Later passes only read them. A decode step may give the rows to `ops.paged_attention` as blocks
    of `length` tokens; a pass that begins sequences must not, as attention reads old keys early.
    """

    kv_heads: int
    head_dim: int
    length: int
    dtype: np.dtype | None = None

    @property
    def tensors(self) -> tuple[RowTensor, ...]:
        each = (self.length, self.kv_heads, self.head_dim), self.dtype
        return each, each, ((), dtypes.int32)


@dataclass(frozen=True)
class Shares:
    """Keys and values of an earlier layer are read, and none are kept: `batch.cache` gives those,
    without a cache `batch.shared`."""

    layer: int


ByToken = Paged | Latent
ByRow = Recurrent | Conv | Cross
State = ByToken | ByRow | Shares


def token_bytes(state: ByToken, activations: np.dtype, packed: KVForm | None = None) -> int:
    """Bytes of one token; `packed`: the form of all that is kept by token."""
    if packed is not None:
        return state.kv_heads * sum(map(packed.nbytes, state.widths))
    return state.kv_heads * sum(state.widths) * (state.dtype or activations).itemsize


def row_bytes(state: ByRow, activations: np.dtype) -> int:
    """Bytes of one sequence."""
    return sum(math.prod(s) * (dtype or activations).itemsize for s, dtype in state.tensors)
