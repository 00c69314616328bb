"""Losses on what models give."""

from __future__ import annotations

from boostr import ops
from boostr.errors import ShapeError
from boostr.models.heads import unit
from boostr.tensor import Tensor, arange


def contrastive_loss(anchors: Tensor, positives: Tensor, scale: float = 20.0) -> Tensor:
    """Cross-entropy of finding each anchor's positive among all positives of the batch, by cosine.

    Args:
        anchors, positives: [N, E], row i of one belonging to row i of the other; N of 2 or more.
        scale: of the cosines, 1 / temperature.
    Returns:
        a float32 scalar, the mean over anchors.
    Source: Henderson et al. 2017; sentence-transformers' MultipleNegativesRankingLoss.
    """
    if anchors.ndim != 2 or anchors.shape != positives.shape or len(anchors) < 2:
        raise ShapeError(
            "contrastive_loss: expected anchors and positives [N, E] with N of 2 or more, got "
            f"{list(anchors.shape)} and {list(positives.shape)}"
        )
    cosines = unit(anchors) @ unit(positives).T
    own = arange(len(anchors), backend=anchors.backend)
    return ops.cross_entropy(cosines * scale, own)
