"""What a layer keeps of a sequence between forward passes, as declarations: the engine allocates.

A layer's `states()` gives one of these for each thing it keeps. What grows by the token lies in
blocks that sequences take (`Paged`, `Latent`); what has one size lies in a row of each sequence
(`Recurrent`, `Conv`) and is known at its last token only, so that no prefix of it can be shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from boostr import dtypes
from boostr.quant.kv import KVForm


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


@dataclass(frozen=True)
class Conv:
    """The last width - 1 inputs [channels] of a causal convolution, the newest last: zeros before
    the first."""

    channels: int
    width: int
    dtype: np.dtype | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.width - 1, self.channels


@dataclass(frozen=True)
class Cross:
    """Keys and values of another sequence, written once."""

    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Shares:
    """What layer `layer` keeps is read; nothing of its own."""

    layer: int


ByToken = Paged | Latent
ByRow = Recurrent | Conv
State = ByToken | ByRow | Cross | Shares


def token_bytes(state: ByToken, activations: np.dtype, packed: KVForm | None = None) -> int:
    """Bytes of one token; `packed`: the form of all that is kept by token."""
    if packed is not None:
        return state.kv_heads * sum(map(packed.nbytes, state.widths))
    return state.kv_heads * sum(state.widths) * (state.dtype or activations).itemsize


def row_bytes(state: ByRow, activations: np.dtype) -> int:
    """Bytes of one sequence."""
    return math.prod(state.shape) * (state.dtype or activations).itemsize
