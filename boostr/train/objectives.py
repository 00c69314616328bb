"""Objectives: what a training step makes smaller.

Each is a sum over what counts of a batch, divided by a count that the batches of a step share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from boostr import ops
from boostr.autograd import no_grad
from boostr.backends.collectives import Alone, Communicator
from boostr.engine.embedder import EmbeddingModel
from boostr.engine.loaded import Loaded
from boostr.engine.packed import IGNORED, PackedBatch
from boostr.errors import OptionError
from boostr.models.heads import unit
from boostr.nn.batch import Batch
from boostr.ops import core
from boostr.tensor import Tensor, arange, full
from boostr.train.config import TrainConfig
from boostr.train.data import Dataset
from boostr.train.groups import PAIR, PREFERENCE
from boostr.train.packing import Packs

_NEVER = -1e9  # a logit of what is not there


@dataclass(frozen=True)
class Inputs:
    """A batch on the device, of S sequences, of which those behind the first B are filler.

    Attributes:
        targets: int32 [T], -100 where nothing counts.   sequences: int32 scalar, B.
        reference: float32 [S], see `PackedBatch`.
    """

    batch: Batch
    targets: Tensor
    sequences: Tensor
    reference: Tensor


class Objective(ABC):
    """What is made smaller."""

    @abstractmethod
    def count(self, batch: PackedBatch) -> int:
        """How many things of a batch the mean is over."""

    @abstractmethod
    def loss(self, inputs: Inputs, count: Tensor) -> Tensor:
        """The sum over a batch, divided by a count: a float32 scalar on the tape."""


class NextToken(Objective):
    """Cross-entropy of each label that counts."""

    def __init__(self, model: Loaded) -> None:
        self._module = model.module

    def count(self, batch: PackedBatch) -> int:
        return batch.target_count

    def loss(self, inputs: Inputs, count: Tensor) -> Tensor:
        hidden = self._module.hidden(inputs.batch)
        return self._module.losses(hidden, inputs.targets, count=count)


class Contrastive(Objective):
    """Cross-entropy of finding each anchor's positive, by cosine, among all positives and negatives
    of the batch.

    Args:
        width: samples of a group, in turn: 2 are anchor and positive, 3 have a negative, too.
        scale: of the cosines, 1 / temperature.
    Source: Henderson et al. 2017; sentence-transformers' MultipleNegativesRankingLoss.
    """

    def __init__(self, model: EmbeddingModel, width: int = 2, scale: float = 20.0) -> None:
        self._model, self._width, self._scale = model, width, scale

    def count(self, batch: PackedBatch) -> int:
        return len(batch.lengths) // self._width

    def loss(self, inputs: Inputs, count: Tensor) -> Tensor:
        width = self._width
        vectors = unit(self._model.vectors(inputs.batch))
        N = len(vectors) // width
        groups = vectors[: N * width].reshape((N, width, vectors.shape[1]))
        found = core.concat([groups[:, i] for i in range(1, width)])
        number = arange(N, backend=vectors.backend)
        there = number < inputs.sequences // width
        cosines = groups[:, 0] @ found.T
        columns = core.concat([there] * (width - 1))
        logits = core.where(columns.unsqueeze(0), cosines * self._scale, _NEVER)
        targets = core.where(there, number, IGNORED)
        return ops.cross_entropy(logits, targets, reduction="sum") / count


class Preference(Objective):
    """Direct preference optimization: -log σ(β · (how much likelier than under the reference model
    the chosen answer has become, less the same of the rejected one)), in logarithms.

    Args:
        beta: β, how dear it is to leave the reference model.
    Source: Rafailov et al. 2023, equation 7.
    """

    def __init__(self, model: Loaded, beta: float = 0.1) -> None:
        self._module, self._beta = model.module, beta

    def count(self, batch: PackedBatch) -> int:
        if batch.reference is None:
            raise OptionError("Preference: the batch has no reference; give it to train.pack")
        return len(batch.lengths) // 2

    def loss(self, inputs: Inputs, count: Tensor) -> Tensor:
        hidden = self._module.hidden(inputs.batch)
        losses = self._module.losses(hidden, inputs.targets, reduction="none")
        batch = inputs.batch
        sums = core.scatter_add((len(batch.cu_seqlens),), batch.owners, -losses)[:-1]
        gains = sums - inputs.reference
        N = len(gains) // 2
        pairs = gains[: N * 2].reshape((N, 2))
        margins = (pairs[:, :1] - pairs[:, 1:]) * self._beta
        number = arange(N, backend=gains.backend)
        zeros = full(number.shape, 0, "int32", number.backend)
        targets = core.where(number < inputs.sequences // 2, zeros, IGNORED)
        logits = core.concat([margins, margins * 0], 1)  # whose -log softmax is -log σ(margin)
        return ops.cross_entropy(logits, targets, reduction="sum") / count


def objective_for(model: Loaded, data: Dataset, config: TrainConfig) -> Objective:
    """What a model learns from data of this kind.

    Raises:
        OptionError: pairs for a decoder, or anything else for an embedding model.
    """
    if isinstance(model, EmbeddingModel) and data.kind == PAIR:
        return Contrastive(model, data.width, config.contrastive_scale)
    if isinstance(model, EmbeddingModel) or data.kind == PAIR:
        raise OptionError(
            f"{data.name} has rows of a {data.kind}, and {model.source} is {model.is_a}: pairs "
            "(anchor and positive) train embedding models, all other rows decoders"
        )
    if data.kind == PREFERENCE:
        return Preference(model, config.dpo_beta)
    return NextToken(model)


def log_probabilities(model: Loaded, packs: Packs, rank: Communicator | None = None) -> np.ndarray:
    """Of each sample of the data the log-probability of its labels, float32 [N]; ranks share the
    work."""
    rank = rank or Alone(model.backend)
    found = np.zeros(len(packs.data), np.float32)
    walk = packs.batches(rank=rank.rank, ranks=rank.size)
    with no_grad():
        for samples in packs.epoch(0)[rank.rank :: rank.size]:
            _, batch = next(walk)
            hidden = model.module.hidden(model.upload(batch))
            targets = model.runner.tensor(batch.targets)
            losses = model.module.losses(hidden, targets, reduction="none").numpy()
            found[samples] = -np.add.reduceat(losses, batch.cu_seqlens[:-1])
    return sum(rank.gather(found))  # type: ignore[return-value]
