"""Operands of fused ops that are more than one tensor. Plain tuples, so that backends, ops and the
gradient tape see the tensors inside; nothing here computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Union

from boostr.quant.kv import KVForm, kv_form_of

if TYPE_CHECKING:
    from boostr.quant.scheme import QuantizedTensor
    from boostr.tensor import Tensor


class Norm(NamedTuple):
    """A norm of what a product reads, or of the heads it gives.

    Attributes:
        kind: "rms" or "layer".   weight: [E]; of heads [D] for each, [H, D] for each its own, or
            [H·D] for all at once.
        bias: as weight; of layer norms only.   eps: see `ops.rms_norm`.
        offset: added to the weight (Gemma stores weight - 1).
    """

    kind: str
    weight: Tensor
    bias: Tensor | None
    eps: float
    offset: float = 0.0


class HeadNorms(NamedTuple):
    """Norms of queries and keys, before rope or after it; None for none."""

    q: Norm | None = None
    k: Norm | None = None
    after_rope: bool = False


class Rope(NamedTuple):
    """Tables cos, sin float32 [S, R/2], the row of each token int32 [T], how pairs lie; and what
    queries are multiplied by after it, float32 [S], if anything (Llama 4, Ministral 3)."""

    cos: Tensor
    sin: Tensor
    rows: Tensor
    layout: str = "split-half"
    query_factors: Tensor | None = None


class PackedKV(NamedTuple):
    """Keys or values of a cache in a packed form; `boostr/quant/kv.py` says what the planes are."""

    codes: Tensor
    scales: Tensor

    @property
    def form(self) -> KVForm:
        return kv_form_of(self.codes.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """[NB, bs, K, D], of the numbers that are kept."""
        *lead, width = self.codes.shape
        return (*lead, width * 8 // self.form.bits)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


KV = Union["Tensor", PackedKV]  # what keeps keys or values, [NB, bs, K, D]


def planes_of(kept: KV) -> tuple[Tensor, ...]:
    """The tensors that keys or values are kept in."""
    return kept if isinstance(kept, PackedKV) else (kept,)


class Cache(NamedTuple):
    """Where the keys and values of one layer are kept, and where new tokens of it go.

    Attributes:
        keys, values: [NB, bs, K, D] and [NB, bs, K, Dv], floats or packed, alike.
        slots: int32 [T], negative: not written.
        block_table: int32 [B, max_blocks].   kv_lens: int32 [B], the new tokens included.
    """

    keys: KV
    values: KV
    slots: Tensor
    block_table: Tensor
    kv_lens: Tensor


class StateRows(NamedTuple):
    """One thing that a layer keeps of every sequence as a whole; see `ops.read_rows`.

    Attributes:
        values: [R, ...]; row r is of the sequence that has row r.
        rows: int32 [B], of the sequences of a pass; negative: what is written is lost.
        begun: int32 [B], 0 where a sequence has no earlier tokens: it reads zeros, whatever its row
            holds. None: all have.
    """

    values: Tensor
    rows: Tensor
    begun: Tensor | None = None


class Ordered(NamedTuple):
    """A weight whose inputs are sorted, so that those that share a scale lie together (GPTQ's
    desc_act): column j is that of input order[j]. A form like any other, as LowRank.

    Attributes:
        base: [N, K].   order: int32 [K], each input once.
    """

    base: QuantizedTensor
    order: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def nbytes(self) -> int:
        return self.base.nbytes + self.order.nbytes

    @property
    def size(self) -> int:
        """Weights as numbers."""
        return self.base.size

    def rows(self, start: int, stop: int) -> Ordered:
        """Outputs [start, stop), as views."""
        return Ordered(self.base.rows(start, stop), self.order)


class Dropout(NamedTuple):
    """What an adapter's product reads while it is trained; see `ops.dropout`.

    Attributes:
        rate: of inputs that are 0.   key: of the mask, two words.
        step: int32 [1], which mask; each forward pass of training has the next.
    """

    rate: float
    key: tuple[int, int]
    step: Tensor


class LowRank(NamedTuple):
    """A weight with an adapter over it: base + scale · up · down. A form like any other: products
    and embeddings take it wherever they take its base.

    Attributes:
        base: [N, K] in any stored form.   down: [r, K].   up: [N, r].
        dropout: of what `down` reads while it is trained; products with a table have none.
    Source: Hu et al. 2021, LoRA.
    """

    base: Tensor | QuantizedTensor | Ordered
    down: Tensor
    up: Tensor
    scale: float = 1.0
    dropout: Dropout | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def nbytes(self) -> int:
        return self.base.nbytes + self.down.nbytes + self.up.nbytes

    @property
    def size(self) -> int:
        """Weights as numbers, those of the adapter included."""
        return self.base.size + self.down.size + self.up.size


class Recorded(NamedTuple):
    """A weight whose product shows its input to somebody first. A form like any other, as LowRank.

    Attributes:
        base: [N, K] in any stored form.   see: called with x [..., K].
    """

    base: Tensor | QuantizedTensor | Ordered
    see: Callable[[Tensor], None]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape
