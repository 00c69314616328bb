"""Flops of a step, and what a device could do at most: their ratio is the MFU of the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from boostr import dtypes
from boostr.engine.packed import PackedBatch
from boostr.models.adapters import owners_of
from boostr.models.base import GENERATES
from boostr.nn.linear import Linear
from boostr.nn.specs import AttentionSpec
from boostr.operands import LowRank

if TYPE_CHECKING:
    from boostr.engine.loaded import Loaded

# Dense products of 16 bits with float32 sums, as NVIDIA's data sheets have them, by a part of the
# device's name; the first that fits counts.
_PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "L4": 121e12, "A10G": 70e12, "A10": 125e12, "T4": 65e12,
}  # fmt: skip


class ModelFlops:
    """What a model's step needs, without what is computed again for memory's sake.

    A token needs 6 a weight of a product that is trained (2 forward, 4 backward), and 4 a weight
    that is not: its gradient is left out. Attention needs 12 · H · D for each pair of tokens that
    see each other, in each layer. A table counts where it is the head, too.
    Source: Chowdhery et al. 2022, PaLM, appendix B, which takes all pairs of a full context.
    """

    def __init__(self, model: Loaded) -> None:
        module = model.module
        has_head = GENERATES in module.capabilities
        head_is_table = has_head and getattr(module, "lm_head", None) is None
        self._per_token = 0
        for name, (owner, attribute) in owners_of(module).items():
            table = head_is_table and name.endswith("embed_tokens.weight")
            if attribute == "weight" and (table or isinstance(owner, Linear)):
                weight = getattr(owner, attribute)
                lowered = isinstance(weight, LowRank)
                parts = (weight.base, weight.down, weight.up) if lowered else (weight,)
                for part in parts:
                    trained = getattr(part, "requires_grad", False)
                    self._per_token += (6 if trained else 4) * part.size
        mixers = (layer.mixer for layer in module.config.layers)
        self._attention = [
            (12 * m.heads * m.head_dim, (m.window, m.causal))
            for m in mixers
            if isinstance(m, AttentionSpec)
        ]

    def of(self, batch: PackedBatch) -> float:
        """Of a step on a batch."""
        pairs = {view: _pairs(batch.lengths, *view) for _, view in self._attention}
        attention = sum(each * pairs[view] for each, view in self._attention)
        return float(self._per_token * len(batch) + attention)


def _pairs(lengths: np.ndarray, window: int | None, causal: bool) -> int:
    """(query, key) that see each other, over segments."""
    n = lengths.astype(np.int64)
    seen = n if window is None else np.minimum(n, window)
    before = int((seen * (seen + 1) // 2 + (n - seen) * seen).sum())
    return before if causal else 2 * before - int(n.sum())


def peak_flops(model: Loaded) -> float | None:
    """Of products in 16 bits a second on the model's device; None for one that is not known, and
    for a model in float32."""
    if model.module.activation_dtype not in dtypes.LOW_PRECISION:
        return None
    device = getattr(getattr(model.backend, "caps", None), "name", "")
    return next((peak for part, peak in _PEAKS.items() if part in device), None)
