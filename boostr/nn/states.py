"""What a layer keeps of a sequence between forward passes, as declarations: the engine allocates.

A layer's `states()` gives one of these for each thing it keeps. Sizes are of one sequence.
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

    def bytes_per_token(self, activations: np.dtype, packed: KVForm | None = None) -> int:
        if packed is None:
            rows = (self.head_dim + self.v_head_dim) * (self.dtype or activations).itemsize
        else:
            rows = packed.nbytes(self.head_dim) + packed.nbytes(self.v_head_dim)
        return self.kv_heads * rows


@dataclass(frozen=True)
class Latent:
    """One vector [width] of every token, which keys and values are products of (MLA)."""

    width: int
    dtype: np.dtype | None = None

    def bytes_per_token(self, activations: np.dtype) -> int:
        return self.width * (self.dtype or activations).itemsize


@dataclass(frozen=True)
class Recurrent:
    """One tensor that every token changes; it cannot be taken back unless `rewindable`."""

    shape: tuple[int, ...]
    dtype: np.dtype = dtypes.float32
    rewindable: bool = False

    def bytes_per_token(self, activations: np.dtype) -> int:
        return 0

    def bytes_per_sequence(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Conv:
    """The last width - 1 inputs [channels] of a causal convolution."""

    channels: int
    width: int
    dtype: np.dtype = dtypes.float32

    def bytes_per_token(self, activations: np.dtype) -> int:
        return 0

    def bytes_per_sequence(self) -> int:
        return self.channels * (self.width - 1) * self.dtype.itemsize


@dataclass(frozen=True)
class Cross:
    """Keys and values of another sequence, written once."""

    kv_heads: int
    head_dim: int

    def bytes_per_token(self, activations: np.dtype) -> int:
        return 0


@dataclass(frozen=True)
class Shares:
    """What layer `layer` keeps is read; nothing of its own."""

    layer: int

    def bytes_per_token(self, activations: np.dtype) -> int:
        return 0


State = Paged | Latent | Recurrent | Conv | Cross | Shares
