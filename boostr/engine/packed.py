"""PackedBatch: sequences of a training batch end to end, on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from boostr.errors import TokenizerError

IGNORED = -100  # a label that does not count


@dataclass(frozen=True)
class PackedBatch:
    """T tokens of B sequences, without padding. Made by `boostr.train.pack`.

    Attributes:
        input_ids: int32 [T].   labels: int32 [T], of the token itself; -100 does not count.
        position_ids: int32 [T], of each token in its sequence.
        cu_seqlens: int32 [B+1], where each sequence begins.
        reference: float32 [B], the log-probability of each sequence's labels under the model that a
            trained one is compared with; None where it is compared with none.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    cu_seqlens: np.ndarray
    reference: np.ndarray | None = None

    @property
    def targets(self) -> np.ndarray:
        """int32 [T]: the label of the token behind each; the last of a sequence has none."""
        shifted = np.full_like(self.labels, IGNORED)
        shifted[:-1] = self.labels[1:]
        ends = self.cu_seqlens[1:][np.diff(self.cu_seqlens) > 0] - 1
        shifted[ends] = IGNORED
        return shifted

    @property
    def target_count(self) -> int:
        """How many targets count."""
        return int(np.count_nonzero(self.targets != IGNORED))

    def check(self, vocabulary: int) -> None:
        """Raises TokenizerError: an id, or a label that counts, outside of a vocabulary of so many
        tokens."""
        labels = self.labels[self.labels != IGNORED]
        for what, ids in (("input_ids", self.input_ids), ("labels", labels)):
            if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary:
                raise TokenizerError(
                    f"{what} must be in the model's vocabulary 0..{vocabulary - 1}, got "
                    f"{ids.min()} to {ids.max()}"
                )

    @property
    def lengths(self) -> np.ndarray:
        """int32 [B]: tokens of each sequence."""
        return np.diff(self.cu_seqlens)

    def __len__(self) -> int:
        return len(self.input_ids)
