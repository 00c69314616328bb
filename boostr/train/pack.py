"""pack: sequences end to end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boostr.engine.packed import PackedBatch
from boostr.errors import OptionError, ShapeError


def pack(
    sequences: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]] | None = None,
    *,
    reference: Sequence[float] | np.ndarray | None = None,
) -> PackedBatch:
    """Sequences of token ids as one batch, without padding; no token sees another sequence.

    Args:
        labels: for each id the one that should have been predicted there, itself by default; -100
            does not count. The shift to the token before is made inside.
        reference: of each sequence the log-probability of its labels, see `Preference`.
    """
    if not sequences or not all(len(ids) for ids in sequences):
        raise OptionError("pack: expected sequences of at least one token each")
    lengths = [len(ids) for ids in sequences]
    if labels is not None and [len(own) for own in labels] != lengths:
        raise ShapeError(
            f"pack: labels must be as long as their sequences, {lengths}, got "
            f"{[len(own) for own in labels]}"
        )
    compared = None if reference is None else np.array(reference, np.float32)
    if compared is not None and compared.shape != (len(lengths),):
        raise ShapeError(
            f"pack: reference must be [{len(lengths)}], a number a sequence, got "
            f"{list(compared.shape)}"
        )
    ids = _whole_numbers("token ids", sequences)
    return PackedBatch(
        ids,
        ids.copy() if labels is None else _whole_numbers("labels", labels),
        np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        np.cumsum([0, *lengths]).astype(np.int32),
        compared,
    )


def _whole_numbers(what: str, lists: Sequence[Sequence[int]]) -> np.ndarray:
    numbers = np.concatenate([np.asarray(own) for own in lists])
    if numbers.dtype.kind not in "iu" or not np.array_equal(numbers, numbers.astype(np.int32)):
        raise OptionError(f"pack: {what} must be integers of 32 bits, got {numbers.dtype}")
    return numbers.astype(np.int32)
